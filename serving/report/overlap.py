"""How alike the lists of two arms are, user by user."""

from dataclasses import dataclass

import numpy as np

from recsys.types import FloatArray, IntArray

PERSISTENCE = 0.9  # of RBO: chance that a reader goes on to the next item
_CHUNK_CELLS = 20_000_000  # bytes held at once


@dataclass(frozen=True)
class Overlap:
    """Means over users.

    Args:
        jaccard: shared items over all items of both lists.
        rbo: rank-biased overlap, where the first places count most.
        same: share of users whose lists are identical.
    """

    jaccard: float
    rbo: float
    same: float


def overlap(a: IntArray, b: IntArray) -> Overlap:
    """Overlap of two sets of lists without repeats; two empty lists overlap fully.

    RBO is cut at the lists' length and divided by the most it can be there, so that equal lists have 1.
    Source: Webber, Moffat, Zobel 2010, "A similarity measure for indefinite rankings".

    Args:
        a, b: item positions, best first, (n_users, k); -1 is empty.
    """
    if not len(a):
        return Overlap(float("nan"), float("nan"), float("nan"))
    step = max(1, _CHUNK_CELLS // a.shape[1] ** 2)
    parts = [_of_chunk(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step)]
    jaccard, rbo = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Overlap(float(jaccard.mean()), float(rbo.mean()), float((a == b).all(1).mean()))


def _of_chunk(a: IntArray, b: IntArray) -> tuple[FloatArray, FloatArray]:
    """Jaccard and RBO of each user, (n_users,) each."""
    n_users, k = a.shape
    in_both = (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
    # an item at places i and j is shared from depth max(i, j) on
    depth = np.maximum(np.arange(k)[:, None], np.arange(k)).ravel()
    found = in_both.reshape(n_users, -1).nonzero()
    shared = np.bincount(found[0] * k + depth[found[1]], minlength=n_users * k).reshape(n_users, k).cumsum(1)
    longest = np.maximum((a >= 0).cumsum(1), (b >= 0).cumsum(1))
    agreement = np.where(longest > 0, shared / np.maximum(longest, 1), 1.0)
    weight = PERSISTENCE ** np.arange(k)
    union = (a >= 0).sum(1) + (b >= 0).sum(1) - shared[:, -1]
    jaccard = np.where(union > 0, shared[:, -1] / np.maximum(union, 1), 1.0)
    return jaccard, agreement @ weight / weight.sum()

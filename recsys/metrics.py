"""Ranking metrics: pure functions, arrays in, one value per user out."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy import stats

from recsys.types import BoolArray, FloatArray, IntArray

ROUNDING = 1e-12  # of a mean: an error below is that of the numbers, not of users


def hits_of(ranked: IntArray, relevant: sp.csr_matrix) -> BoolArray:
    """True where a slot holds a relevant item, (n_users, n_slots); a repeated item counts once.

    Args:
        ranked: item positions, best first, (n_users, n_slots); -1 marks an empty slot.
        relevant: non-zero where relevant, (n_users, n_items); a stored zero is not relevant.

    Raises:
        ValueError: the arrays disagree on n_users, or a position is outside the n_items.
    """
    n_users, n_items = relevant.shape
    if len(ranked) != n_users:
        raise ValueError(f"ranked has {len(ranked)} users, relevant {n_users}; pass the same users to both")
    # such a position would count as an item of the next user
    if ranked.size and ranked.max() >= n_items:
        raise ValueError(f"ranked holds item position {ranked.max()}, relevant only {n_items} items; rank within them")
    rows = np.repeat(np.arange(n_users), np.diff(relevant.indptr))
    wanted = (rows * n_items + relevant.indices)[relevant.data != 0]
    keys = np.where(ranked >= 0, np.arange(n_users)[:, None] * n_items + ranked, -1)
    hits = np.isin(keys, wanted)
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    again = np.zeros_like(hits)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return hits & ~again


def places(scores: FloatArray, indptr: IntArray) -> IntArray:
    """Place of each pair among those of its user, from 0, (n_pairs,); ties keep the order of the pairs.

    Args:
        indptr: where each user's pairs start, (n_users + 1,).

    >>> places(np.array([1.0, 2.0, 2.0, 5.0]), np.array([0, 3, 4])).tolist()
    [2, 0, 1, 0]
    """
    user = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    found = np.empty(len(scores), dtype=np.int64)
    found[np.lexsort((-scores, user))] = np.arange(len(scores)) - indptr[user]
    return found


def ndcg(hits: BoolArray, n_relevant: IntArray, k: int) -> FloatArray:
    """Discounted hits over the best possible, (n_users,) float64; nan for a user with nothing relevant.

    >>> ndcg(np.array([[False, True]]), np.array([1]), k=2).round(3)
    array([0.631])
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(n_relevant, k)]
    return _over(hits[:, :k] @ discount[: hits.shape[1]], ideal)


def recall(hits: BoolArray, n_relevant: IntArray, k: int) -> FloatArray:
    """Share of each user's relevant items in their first k slots, (n_users,); nan with nothing relevant.

    >>> recall(np.array([[True, False]]), np.array([2]), k=2)
    array([0.5])
    """
    return _over(hits[:, :k].sum(1), n_relevant)


def average_precision(hits: BoolArray, n_relevant: IntArray, k: int) -> FloatArray:
    """Mean precision at each hit over min(n_relevant, k), (n_users,); nan with nothing relevant."""
    at = hits[:, :k]
    precisions = np.cumsum(at, axis=1) / np.arange(1, at.shape[1] + 1)
    return _over((precisions * at).sum(axis=1), np.minimum(n_relevant, k))


def reciprocal_rank(hits: BoolArray, k: int) -> FloatArray:
    """One over the slot of the first hit within k, 0 without one, (n_users,)."""
    at = hits[:, :k]
    return (at / np.arange(1, at.shape[1] + 1)).max(axis=1, initial=0.0)


def hit_rate(hits: BoolArray, k: int) -> FloatArray:
    """1 where any of the first k slots hits, else 0, (n_users,)."""
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def coverage(ranked: IntArray, n_items: int) -> float:
    """Share of the catalogue that is in anybody's list."""
    return float(len(np.unique(ranked[ranked >= 0])) / max(1, n_items))


def gini(counts: IntArray | FloatArray) -> float:
    """Gini coefficient of exposure: 0 where all items are shown equally, near 1 where one takes all.

    >>> gini(np.array([1, 1]))
    0.0
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    n, total = len(ordered), ordered.sum()
    if total == 0:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total))


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval over `n` users, and the two-sided `p` that the true mean is 0."""

    mean: float
    low: float
    high: float
    n: int
    p: float = float("nan")


def mean_interval(values: FloatArray, alpha: float = 0.05) -> Interval:
    """Mean of one value per user with its t-interval; nan values are left out.

    Fewer than two values give nan for the interval and p. Values that are all the same show no spread: p is then that of
    their signs, 2^(1 - n), or 1 at a mean of 0, and the interval is nan where p is not below alpha.
    """
    known = values[~np.isnan(values)]
    n = len(known)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(known.mean())
    error = float(known.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    half = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error if n > 1 else float("nan")
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float("nan")
    if error <= ROUNDING * abs(mean):
        p = 2.0 ** (1 - n) if mean else 1.0
        half = 0.0 if p < alpha or not mean else float("nan")
    return Interval(mean, mean - half, mean + half, n, p)


def paired_interval(a: FloatArray, b: FloatArray, alpha: float = 0.05) -> Interval:
    """Mean of b - a over users with its t-interval and the p-value of the paired t-test."""
    return mean_interval(b - a, alpha)


def _over(part: FloatArray | IntArray, whole: FloatArray | IntArray) -> FloatArray:
    return np.where(whole > 0, part / np.maximum(whole, 1e-12), np.nan)

"""Trains the ranker on the middle window, from what was known when it began."""

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from features import pairs
from features.candidates import gather
from features.snapshot import Snapshot
from recsys.config import Config
from recsys.metrics import ndcg
from recsys.ranker import LinearFusion, Ranker, fit_trees, refuse_future
from recsys.text_tower import Progress
from recsys.types import FloatArray, IntArray

VALIDATION_SHARE = 0.2  # of the users, for early stop and the guard
MAX_GAIN = 30  # LambdaMART's labels are small integers

Group = tuple[FloatArray, FloatArray, IntArray]


def fit_ranker(
    snapshot: Snapshot,
    targets: sp.csr_matrix,
    config: Config,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Ranker:
    """Trees and fusion on the labels of a window; the trees ship only when they beat the fusion.

    Args:
        snapshot: the world when the window began.
        targets: label weight of what each user took in the window, (n_users, n_items).
    """
    users = rng.permutation(np.flatnonzero(np.diff(targets.indptr) > 0))[: config.ranker.max_users]
    n_valid = int(len(users) * VALIDATION_SHARE)
    valid = _pairs_of(snapshot, np.sort(users[:n_valid]), targets, config, progress)
    train = _pairs_of(snapshot, np.sort(users[n_valid:]), targets, config, progress)
    columns = tuple(pairs.NAMES.index(name) for name in pairs.FUSED)
    refuse_future(train[0], train[1], pairs.NAMES)
    fusion = LinearFusion.fit(*train, columns)
    if not _positives(train) or not _positives(valid):
        return Ranker(pairs.NAMES, fusion, None, "fusion", {})
    trees = fit_trees(_informative(train), _informative(valid), pairs.NAMES, fusion, config.ranker, config.seed)
    both = Ranker(pairs.NAMES, fusion, trees, "trees", {})
    guard = {name: _ndcg(valid, both.score(valid[0], name)) for name in ("trees", "fusion")}
    chosen = max(guard, key=lambda name: guard[name])
    return Ranker(pairs.NAMES, fusion, trees, chosen, guard)


def chunks(users: IntArray, size: int) -> Iterator[IntArray]:
    """User positions in runs of `size`."""
    for start in range(0, len(users), size):
        yield users[start : start + size]


def _pairs_of(
    snapshot: Snapshot, users: IntArray, targets: sp.csr_matrix, config: Config, progress: Progress | None
) -> Group:
    """Features, integer gains and group bounds of some users' candidates."""
    features, labels, sizes = [], [], []
    for done, chunk in enumerate(chunks(users, config.serving.chunk_users)):
        some = snapshot.histories.of_users(chunk)
        candidates = gather(snapshot, some)
        features.append(pairs.build(snapshot, some, candidates).features)
        taken = targets[chunk][candidates.user_row, candidates.item_pos]
        labels.append(np.asarray(taken).ravel())
        sizes.append(np.diff(candidates.indptr))
        if progress:
            progress(min(len(users), (done + 1) * config.serving.chunk_users), len(users))
    if not features:
        return np.zeros((0, len(pairs.NAMES)), np.float32), np.zeros(0), np.zeros(1, np.int64)
    gain = np.concatenate(labels)
    unit = gain[gain > 0].min() if (gain > 0).any() else 1.0
    gain = np.minimum(np.ceil(np.log2(1 + gain / unit) - 1e-9), MAX_GAIN)  # 1, 2, 3, ... for 1, 2-3, 4-7, ... units
    return np.concatenate(features), gain, np.concatenate([[0], np.cumsum(np.concatenate(sizes))])


def _informative(group: Group) -> Group:
    """Without users who took none of their candidates: they teach LambdaMART nothing and cost time."""
    features, labels, indptr = group
    sizes = np.diff(indptr)
    user = np.repeat(np.arange(len(sizes)), sizes)
    useful = np.bincount(user, labels, minlength=len(sizes)) > 0
    keep = useful[user]
    return features[keep], labels[keep], np.concatenate([[0], np.cumsum(sizes[useful])])


def _positives(group: Group) -> int:
    return int((group[1] > 0).sum())


def _ndcg(group: Group, scores: FloatArray) -> float:
    """Mean NDCG@10 over users with a positive among their candidates."""
    _, labels, indptr = _informative(group)
    sizes = np.diff(group[2])
    keep = (np.bincount(np.repeat(np.arange(len(sizes)), sizes), group[1], minlength=len(sizes)) > 0)[
        np.repeat(np.arange(len(sizes)), sizes)
    ]
    return mean_ndcg(labels, indptr, scores[keep])


def mean_ndcg(labels: FloatArray, indptr: IntArray, scores: FloatArray, k: int = 10) -> float:
    """Mean NDCG@k of scored pairs grouped by `indptr`; ties keep the order of the pairs."""
    sizes = np.diff(indptr)
    user = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((np.arange(len(scores)), -scores, user))
    slot = np.arange(len(scores)) - np.repeat(indptr[:-1], sizes)
    keep = slot < k
    hits = np.zeros((len(sizes), k), dtype=bool)
    hits[user[keep], slot[keep]] = labels[order][keep] > 0
    n_relevant = np.bincount(user[labels > 0], minlength=len(sizes))
    return float(np.nanmean(ndcg(hits, n_relevant, k)))

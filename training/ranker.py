"""Trains the ranker on the middle window, from what was known when it began."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from features import pairs
from features.candidates import gather
from features.chunks import chunk_size, chunks
from features.cold_order import in_cold_order
from features.snapshot import Snapshot
from recsys.config import Config
from recsys.metrics import ndcg, places
from recsys.ranker import POPULAR, LinearFusion, Ranker, first_trees, fit_trees, list_scores, refuse_future
from recsys.types import BoolArray, FloatArray, IntArray, Progress
from training.calibration import fit_calibration

K = 10  # items of a list that count
FOLDS = 3  # each user's validation scores come from trees that never saw that user's labels
KINDS = ("fusion", "trees")
USUAL = "popular"  # that of 30 days: best or level in three windows of online-retail, docs/experiments.md
MIN_STRANGERS = 30
MAX_GAIN = 30  # LambdaMART's labels are small integers
SUMMED = 1e-5  # what sums of float32 weights may be off by, as a difference of logs

Group = tuple[FloatArray, FloatArray, IntArray]


def fit_ranker(
    snapshot: Snapshot,
    targets: sp.csr_matrix,
    config: Config,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Ranker:
    """Trees and fusion on the labels of a window; the trees ship only when they beat the fusion by a standard error.

    Both are judged on users they did not learn from and that did not choose the number of trees, by cross-validation
    over users; what ships then learns from all of them, with as many trees as the folds stopped at. Users without history
    judge neither, nor what `p` says: they are not ranked.

    Args:
        snapshot: the world when the window began.
        targets: label weight of what each user took in the window, (n_users, n_items).
    """
    targets = snapshot.countable(targets)
    users, fold = draw_users(targets, config, rng)
    group = pairs_of(snapshot, users, targets, progress)
    refuse_future(group[0], group[1], pairs.NAMES, config.ranker.max_feature_auc)
    columns = tuple(pairs.NAMES.index(name) for name in pairs.FUSED)
    fusion = LinearFusion.fit(*group, columns)
    n_relevant = np.diff(targets[users].indptr)
    is_stranger = snapshot.histories.loaded().n_events[users] == 0
    strangers, listed = for_strangers(group, n_relevant, is_stranger)
    if not can_be_judged(group, fold):
        return Ranker(pairs.NAMES, fusion, None, "fusion", listed, strangers=strangers)
    tried = cross_validate(group, fold, n_relevant, config, columns).among(~is_stranger)
    guard = {name: float(np.mean(values)) for name, values in tried.ndcg.items()}
    trees, _ = fit_trees(_informative(group), None, pairs.NAMES, fusion, config.ranker, config.seed, tried.n_trees)
    calibration = None
    if config.ranker.calibrate and not is_stranger.all():
        regular = ~is_stranger  # p is said of nobody else
        scores, gains, indptr = _of_users((tried.scores[tried.chosen], group[1], group[2]), regular)
        calibration = fit_calibration(snapshot, users[regular], targets, indptr, gains, scores)
    return Ranker(pairs.NAMES, fusion, trees, tried.chosen, guard | listed, calibration, strangers)


def draw_users(targets: sp.csr_matrix, config: Config, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Users with a target that the ranker learns from, ascending, and the fold of each, (n_some,) both."""
    users = np.sort(rng.permutation(np.flatnonzero(np.diff(targets.indptr) > 0))[: config.ranker.max_users])
    return users, rng.permutation(len(users)) % FOLDS


def can_be_judged(group: Group, fold: IntArray) -> bool:
    """Whether every fold has a user who took one of their candidates."""
    has_positive = _has_positive(group)
    return all(has_positive[fold == f].any() for f in range(FOLDS))


def for_strangers(group: Group, n_relevant: IntArray, is_stranger: BoolArray) -> tuple[str, dict[str, float]]:
    """The popular list for users without history: `USUAL`, unless another is better by a standard error.

    They are not ranked. Nothing is known of them but what sells, and that trees learn by heart for their own window:
    users they did not learn from, but of the same window, cannot show it (docs/experiments.md). A list has nothing to
    learn. With fewer strangers than `MIN_STRANGERS` all users choose.

    Args:
        group: the pairs of all users.
        n_relevant: what each user took, (n_users,).
        is_stranger: (n_users,).

    Returns:
        The list, and NDCG@10 of each over those who chose, for the record.
    """
    judges = is_stranger if is_stranger.sum() >= MIN_STRANGERS else np.ones_like(is_stranger)
    if judges.sum() < 2:
        return USUAL, {}
    features, labels, indptr = _of_users(group, judges)
    found = {
        source: ndcg_of_pairs(labels, indptr, list_scores(features, pairs.NAMES, source), n_relevant[judges])
        for source in POPULAR
    }
    best = max(found, key=lambda source: float(found[source].mean()))
    chosen = best if is_better(found[best], found[USUAL]) else USUAL
    return chosen, {f"strangers {k}": float(v.mean()) for k, v in found.items()}


def is_better(values: FloatArray, usual: FloatArray) -> bool:
    """Whether users' values are higher than their usual ones by more than a standard error, (n_users,) both.

    Source: Breiman et al., Classification and regression trees, 1984 (the one-standard-error rule).
    """
    gain = values - usual
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


@dataclass(frozen=True)
class Tried:
    """Trees and fusion on users they did not learn from, under the names "trees" and "fusion".

    ndcg: NDCG@10 of each user, (n_users,); scores: of each pair, (n_pairs,); n_trees: what the folds stopped at, on the
    mean.
    """

    ndcg: dict[str, FloatArray]
    scores: dict[str, FloatArray]
    n_trees: int

    def among(self, judges: BoolArray) -> "Tried":
        """Judged by some users, (n_users,): strangers get a popular list, whatever ranks the others. By all where few are left."""
        if judges.sum() < 2:
            return self
        return replace(self, ndcg={kind: ndcg[judges] for kind, ndcg in self.ndcg.items()})

    @property
    def chosen(self) -> str:
        """What ships: trees that gain less than chance may are noise learned by heart."""
        return "trees" if is_better(self.ndcg["trees"], self.ndcg["fusion"]) else "fusion"


def cross_validate(
    group: Group, fold: IntArray, n_relevant: IntArray, config: Config, columns: tuple[int, ...]
) -> Tried:
    """Every user by the models of the other folds, and by as many trees as the other folds stopped at; cold items in the order
    that lists have.

    A fold chooses its number of trees, the best of hundreds, on its own users: to judge trees on these users by that
    number would flatter them, where the fusion chooses nothing.

    Args:
        group: the pairs of all users.
        fold: of each user, (n_users,).
        n_relevant: what each user took, among the pairs or not, (n_users,).
        columns: what the fusion adds up.
    """
    ndcg: dict[str, FloatArray] = {name: np.zeros(len(fold)) for name in KINDS}
    scores: dict[str, FloatArray] = {name: np.zeros(len(group[1])) for name in KINDS}
    tried = [_fit_fold(group, fold == f, config, columns) for f in range(FOLDS)]
    stopped = np.array([n for _, _, n in tried])
    for f, (fusion, trees, _) in enumerate(tried):
        is_valid = fold == f
        rows = np.repeat(is_valid, np.diff(group[2]))
        features, labels, indptr = _of_users(group, is_valid)
        ranker = Ranker(pairs.NAMES, fusion, first_trees(trees, _mean(np.delete(stopped, f))), "trees", {})
        for name in KINDS:
            found = in_cold_order(ranker.score(features, name, indptr), features, indptr)
            scores[name][rows], ndcg[name][is_valid] = found, ndcg_of_pairs(labels, indptr, found, n_relevant[is_valid])
    return Tried(ndcg, scores, _mean(stopped))


def _fit_fold(
    group: Group, is_valid: BoolArray, config: Config, columns: tuple[int, ...]
) -> tuple[LinearFusion, str, int]:
    """Fusion and trees of the users who are not held out, and how many trees did best on those who are.

    The parts are cut out here, so that one fold's copy of the features is in memory at a time.
    """
    train, valid = _of_users(group, ~is_valid), _informative(_of_users(group, is_valid))
    fusion = LinearFusion.fit(*train, columns)
    return fusion, *fit_trees(_informative(train), valid, pairs.NAMES, fusion, config.ranker, config.seed)


def _mean(counts: IntArray) -> int:
    return max(1, round(float(np.mean(counts))))


def pairs_of(snapshot: Snapshot, users: IntArray, targets: sp.csr_matrix, progress: Progress | None = None) -> Group:
    """Features, integer gains and group bounds of some users' candidates."""
    features, labels, sizes = [], [], []
    for chunk in chunks(users, chunk_size(snapshot.histories.n_items), progress):
        some = snapshot.histories.of_users(chunk)
        candidates = gather(snapshot, some)
        features.append(np.ascontiguousarray(pairs.build(snapshot, some, candidates).features))
        labels.append(candidates.values_of(targets[chunk]))
        sizes.append(np.diff(candidates.indptr))
    if not features:
        return np.zeros((0, len(pairs.NAMES)), np.float32), np.zeros(0), np.zeros(1, np.int64)
    return (
        np.concatenate(features),
        gains(np.concatenate(labels)),
        np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
    )


def gains(weights: FloatArray) -> FloatArray:
    """Labels of LambdaMART for summed label weights, (n_pairs,) float64: 1, 2, 3, ... for 1, 2-3, 4-7, ... of the least one.

    >>> gains(np.array([0.0, 0.5, 1.5, 2.0])).astype(int).tolist()
    [0, 1, 2, 3]
    """
    units = weights.astype(np.float64) / weights[weights > 0].min(initial=np.inf)
    return np.minimum(np.ceil(np.log2(1 + units) - SUMMED), MAX_GAIN)


def _of_users(group: Group, keep: BoolArray) -> Group:
    """The pairs of some users, (n_users,) True where kept."""
    features, labels, indptr = group
    sizes = np.diff(indptr)
    rows = np.repeat(keep, sizes)
    return features[rows], labels[rows], np.concatenate([[0], np.cumsum(sizes[keep])])


def _informative(group: Group) -> Group:
    """Without users who took none of their candidates: they teach LambdaMART nothing and cost time."""
    return _of_users(group, _has_positive(group))


def _has_positive(group: Group) -> BoolArray:
    """Whether each user took one of their candidates, (n_users,)."""
    _, labels, indptr = group
    sizes = np.diff(indptr)
    user = np.repeat(np.arange(len(sizes)), sizes)
    return np.asarray(np.bincount(user, labels, minlength=len(sizes)) > 0)


def ndcg_of_pairs(labels: FloatArray, indptr: IntArray, scores: FloatArray, n_relevant: IntArray) -> FloatArray:
    """NDCG@10 of each user from scored pairs grouped by `indptr`, (n_users,); ties keep the order of the pairs.

    Args:
        n_relevant: what each user took, among the pairs or not, (n_users,).
    """
    sizes, slot = np.diff(indptr), places(scores, indptr)
    user = np.repeat(np.arange(len(sizes)), sizes)
    is_hit = (slot < K) & (labels > 0)
    hits = np.zeros((len(sizes), K), dtype=bool)
    hits[user[is_hit], slot[is_hit]] = True
    return ndcg(hits, n_relevant, K)

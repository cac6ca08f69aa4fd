"""One score per (user, item): a linear fusion, and LightGBM LambdaMART trees that start from it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from recsys.calibration import Calibration
from recsys.config import RankerConfig
from recsys.errors import ModelError, shown
from recsys.tree_text import checked_trees
from recsys.types import FloatArray, IntArray

EARLY = 0.25  # share of the trees that see the first `REFINED` pairs of a user when lists are made
REFINED = 150  # what is further down by the fusion stays there
FINALISTS = 60  # pairs of a user that the other trees see: those first after the early ones
UNLISTED = 10_000.0  # longer than any list
FEW = 30  # positives that chance can sort
POPULAR = ("recent", "popular", "all_time")  # lists of everybody, which strangers may get
PATIENCE = 30  # trees without a gain after which there will be none


@dataclass(frozen=True)
class LinearFusion:
    """A weighted sum of a few standardised scores.

    Args:
        columns: feature columns that are added.
        weights: one per column, and a shift and scale that standardise it.
    """

    columns: tuple[int, ...]
    weights: tuple[float, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]

    @classmethod
    def fit(
        cls, features: FloatArray, labels: FloatArray, indptr: IntArray, columns: tuple[int, ...]
    ) -> "LinearFusion":
        """Weights that minimise the listwise softmax loss; convex, so the start does not matter.

        Args:
            features: (n_pairs, n_features), nan counts as the mean; a column of nothing else counts for nothing.
            labels: (n_pairs,) gains, 0 where not taken.
            indptr: where each user's pairs start, (n_users + 1,).
            columns: feature columns to use.

        Source: Cao et al., Learning to rank: from pairwise to listwise approach (ListNet), ICML 2007.
        """
        x = features[:, list(columns)].astype(np.float64)
        n_known = np.maximum((~np.isnan(x)).sum(axis=0), 1)
        means = np.nansum(x, axis=0) / n_known
        scales = np.sqrt(np.nansum((x - means) ** 2, axis=0) / n_known) + 1e-9
        x = np.nan_to_num((x - means) / scales)
        user = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        share = labels / np.maximum(np.bincount(user, labels, minlength=len(indptr) - 1), 1e-12)[user]
        starts = indptr[:-1][np.diff(indptr) > 0]
        sizes = np.diff(indptr)[np.diff(indptr) > 0]

        def loss(w: FloatArray) -> tuple[float, FloatArray]:
            s = x @ w
            s = s - np.repeat(np.maximum.reduceat(s, starts), sizes)
            e = np.exp(s)
            p = e / np.repeat(np.add.reduceat(e, starts), sizes)
            value = -(share * np.log(np.maximum(p, 1e-300))).sum() + 0.5 * (w @ w)
            return float(value), x.T @ (p * np.repeat(np.add.reduceat(share, starts), sizes) - share) + w

        found = minimize(loss, np.zeros(len(columns)), jac=True, method="L-BFGS-B", options={"maxiter": 100})
        return cls(columns, tuple(map(float, found.x)), tuple(map(float, means)), tuple(map(float, scales)))

    def score(self, features: FloatArray) -> FloatArray:
        """(n_pairs,) float64; higher is better."""
        scores = np.zeros(len(features))
        for _, added in self.contributions(features):
            scores += added
        return scores

    def contributions(self, features: FloatArray) -> Iterator[tuple[int, FloatArray]]:
        """Each of its columns and what that adds to the scores, (n_pairs,); 0 where it is unknown."""
        for column, weight, mean, scale in zip(self.columns, self.weights, self.means, self.scales, strict=True):
            x = (features[:, column] - mean) * (weight / scale)
            yield column, np.where(np.isnan(x), 0, x)


@dataclass(frozen=True)
class Ranker:
    """What sorts the candidates: the fusion plus boosted trees where these help on validation, else the fusion.

    The first tree begins at the fusion's scores: what is linear and sure needs no trees to be learned again.

    Args:
        names: feature columns in order; scoring another number of columns is refused.
        fusion: the linear guard.
        trees: LightGBM's model as text, or None.
        chosen: "trees" or "fusion".
        guard: NDCG@10 of both on users they did not learn from, for the record.
        calibration: of the chosen scores to probabilities; None where it is off or there was too little to fit it on.
        strangers: popular list, one of `POPULAR`, in whose order users without history get theirs; None
            where they are ranked like everybody.
    """

    names: tuple[str, ...]
    fusion: LinearFusion
    trees: str | None
    chosen: str
    guard: dict[str, float]
    calibration: Calibration | None = None
    strangers: str | None = None

    def score(self, features: FloatArray, by: str | None = None, bounds: IntArray | None = None) -> FloatArray:
        """Scores of pairs, (n_pairs,) float64, comparable within a user.

        Args:
            features: (n_pairs, len(names)).
            by: "trees" or "fusion" to overrule the choice.
            bounds: where each user's pairs start, (n_users + 1,); then the first trees see only the `REFINED` pairs of
                each user that the fusion puts first, and the others only the `FINALISTS` that come first after those.
                What they do not see counts like the worst that they do, so it stays below.

        Source: Cambazoglu et al., Early exit optimizations for additive machine learned ranking systems, WSDM 2010.
        """
        if features.shape[1] != len(self.names):
            raise ModelError(f"ranker: got {features.shape[1]} features, was trained on {len(self.names)}; train again")
        scores = self._fused(features, by or self.chosen, bounds)
        if by is None and self.strangers:
            is_stranger = features[:, self.names.index("user_events")] == 0
            scores[is_stranger] = list_scores(features[is_stranger], self.names, self.strangers)
        return scores

    def _fused(self, features: FloatArray, by: str, bounds: IntArray | None) -> FloatArray:
        if by == "fusion" or self.trees is None:
            return self.fusion.score(features)
        scores, asked = self.fusion.score(features), np.ascontiguousarray(features[:, self._asked])
        if bounds is None:
            return scores + self._trees(self.booster, asked)
        for some, n_pairs in zip(self._stages, (REFINED, FINALISTS), strict=True):
            seen = _first_of_each(scores, bounds, n_pairs)
            scores += _with_least(self._trees(some, asked[seen]), seen, bounds)
        return scores

    def contributions(self, features: FloatArray, bounds: IntArray) -> FloatArray:
        """What each feature adds to the scores, (n_pairs, len(names) + 1) float64; a row's sum is what `score` gives with `bounds`.

        The last column is what no feature says: the mean of the trees, the least of those that did not see a pair, and a
        stranger's place in the popular list.

        Source: Lundberg et al., From local explanations to global understanding with explainable AI for trees, Nature
            Machine Intelligence 2020 (of the trees).
        """
        added = np.zeros((len(features), len(self.names) + 1))
        for column, values in self.fusion.contributions(features):
            added[:, column] = values
        if self.chosen == "trees":
            scores, asked = self.fusion.score(features), np.ascontiguousarray(features[:, self._asked])
            for some, n_pairs in zip(self._stages, (REFINED, FINALISTS), strict=True):
                seen = _first_of_each(scores, bounds, n_pairs)
                of_trees = _with_least(self._trees(some, asked[seen]), seen, bounds)
                scores += of_trees
                of_trees[seen] = 0
                added[:, -1] += of_trees
                if some.num_trees() and len(seen):
                    added[seen] += some.predict(features[seen], pred_contrib=True, num_threads=1)
        if self.strangers:
            is_stranger = features[:, self.names.index("user_events")] == 0
            added[is_stranger] = 0
            added[is_stranger, -1] = list_scores(features[is_stranger], self.names, self.strangers)
        return added

    def _trees(self, some: Any, asked: FloatArray) -> FloatArray:
        """What some of the trees add, (n_pairs,) float64.

        LightGBM copies a row value by value before it comes to its trees, which takes longer than a dozen of them. Of a
        sparse row it takes what is there alone, so it is given nothing but the features that trees ask for.

        Args:
            some: a booster of these.
            asked: these features, (n_pairs, n_asked) float32.
        """
        if not some.num_trees() or not len(asked):
            return np.zeros(len(asked))
        n, width = asked.shape
        starts = np.arange(n + 1, dtype=np.int32) * np.int32(width)
        rows = sp.csr_matrix((asked.ravel(), np.tile(self._asked, n), starts), (n, len(self.names)))
        # one thread: chunks of users are scored side by side already
        return np.asarray(some.predict(rows, num_threads=1))

    @cached_property
    def booster(self) -> Any:
        """The trees, parsed once."""
        return lgb.Booster(model_str=self.trees)

    @cached_property
    def _stages(self) -> tuple[Any, Any]:
        """The trees that see the first `REFINED` pairs of a user, and the others, each in a booster of its own.

        LightGBM writes into a booster which of its trees a prediction is by: where two threads ask one for different trees,
        either may get the other's.
        """
        n_early, text = int(np.ceil(EARLY * self.booster.num_trees())), self.booster.model_to_string
        early, others = text(num_iteration=n_early), text(start_iteration=n_early, num_iteration=-1)
        return lgb.Booster(model_str=early), lgb.Booster(model_str=others)

    @cached_property
    def _asked(self) -> IntArray:
        """Columns of the features that any tree splits by, ascending int32."""
        return np.flatnonzero(self.booster.feature_importance("split")).astype(np.int32)

    def importance(self) -> dict[str, float]:
        """Share of the trees' total gain per feature, largest first; empty without trees."""
        if self.trees is None:
            return {}
        gain = self.booster.feature_importance("gain")
        order = np.argsort(-gain)
        return {self.names[i]: float(gain[i] / max(gain.sum(), 1e-12)) for i in order}

    def save(self, folder: Path) -> None:
        """Writes ranker.json and, where there are trees and a calibration, ranker.txt and calibration.json."""
        fields = {k: list(getattr(self.fusion, k)) for k in ("columns", "weights", "means", "scales")}
        text = {
            "names": list(self.names),
            "fusion": fields,
            "chosen": self.chosen,
            "guard": self.guard,
            "strangers": self.strangers,
        }
        (folder / "ranker.json").write_text(json.dumps(text, indent=2))
        if self.trees is not None:
            (folder / "ranker.txt").write_text(self.trees)
        if self.calibration is not None:
            self.calibration.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Ranker":
        """A ranker saved by `save`.

        Raises:
            ModelError: naming what in its files no training writes.
        """
        trees = (folder / "ranker.txt").read_text() if (folder / "ranker.txt").exists() else None
        try:
            text = json.loads((folder / "ranker.json").read_text())
            names = tuple(map(str, text["names"]))
            fusion = _fusion(text["fusion"], len(names))
            trees = None if trees is None else checked_trees(trees, names)
            chosen, strangers = text["chosen"], text.get("strangers")
            if chosen != "fusion" and (chosen != "trees" or trees is None):
                raise ValueError(f"chosen is {shown(chosen)}, which is not there")
            if strangers not in (None, *POPULAR):
                raise ValueError(f"strangers is {shown(strangers)}, no popular list")
            return cls(names, fusion, trees, chosen, text["guard"], Calibration.load(folder), strangers)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"{folder}: the ranker is damaged: {shown(error, 200)}; train again") from error


def _fusion(fields: Any, n_features: int) -> LinearFusion:
    fusion = LinearFusion(**{name: tuple(values) for name, values in fields.items()})
    numbers = (fusion.weights, fusion.means, fusion.scales)
    if not all(isinstance(column, int) and 0 <= column < n_features for column in fusion.columns):
        raise ValueError(f"fusion: columns {shown(fusion.columns)} are not those of {n_features} features")
    if any(len(some) != len(fusion.columns) or not all(isinstance(n, float) for n in some) for some in numbers):
        raise ValueError(f"fusion: expected {len(fusion.columns)} weights, means and scales, all of them numbers")
    if any(scale <= 0 for scale in fusion.scales):
        raise ValueError(f"fusion: scales {shown(fusion.scales)} are not above 0")
    return fusion


def list_scores(features: FloatArray, names: tuple[str, ...], source: str) -> FloatArray:
    """Scores that sort pairs as a source lists them, (n_pairs,) float64; then come those of the list of all time."""
    rank, all_time = (features[:, names.index(f"{name}_rank")].astype(np.float64) for name in (source, "all_time"))
    unlisted = UNLISTED + np.where(np.isnan(all_time), UNLISTED, all_time)
    return -np.where(np.isnan(rank), unlisted, rank)


def _first_of_each(scores: FloatArray, bounds: IntArray, n: int) -> IntArray:
    """Ascending positions of each user's n highest scores, all that tie with the last of them included."""
    sizes = np.diff(bounds)
    user = np.repeat(np.arange(len(sizes)), sizes)
    padded = np.full((len(sizes), max(n, int(sizes.max(initial=0)))), -np.inf)
    padded[user, np.arange(len(scores)) - bounds[user]] = scores
    least = np.partition(padded, padded.shape[1] - n, axis=1)[:, padded.shape[1] - n]
    return np.flatnonzero(~(scores < least[user]))


def _with_least(added: FloatArray, seen: IntArray, bounds: IntArray) -> FloatArray:
    """What was added to some pairs, and to each user's others the least of it.

    Args:
        seen: ascending positions of the pairs, some of every user who has any.
    """
    sizes = np.diff(bounds)
    starts = np.searchsorted(seen, bounds[:-1])[sizes > 0]
    filled = np.repeat(np.minimum.reduceat(added, starts) if len(starts) else added, sizes[sizes > 0])
    filled[seen] = added
    return filled


def fit_trees(
    train: tuple[FloatArray, FloatArray, IntArray],
    valid: tuple[FloatArray, FloatArray, IntArray] | None,
    names: tuple[str, ...],
    fusion: LinearFusion,
    config: RankerConfig,
    seed: int,
    n_trees: int | None = None,
) -> tuple[str, int]:
    """LambdaMART that starts from the fusion's scores.

    Args:
        train, valid: features (n_pairs, n_features), labels (n_pairs,) small integers, indptr (n_users + 1,);
            training ends where `valid`, if there is one, has not gained from `PATIENCE` trees more.
        n_trees: how many; `config.trees` by default.

    Returns:
        All trees as LightGBM's model text, and how many of them did best on `valid`; see `first_trees`.

    Source: Burges, From RankNet to LambdaRank to LambdaMART, MSR-TR-2010-82.
    """
    params = {
        "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "lambdarank_truncation_level": 20,
        "num_leaves": config.leaves, "learning_rate": config.learning_rate, "min_data_in_leaf": config.min_rows_per_leaf,
        "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0,
        "seed": seed, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    sets = [
        lgb.Dataset(
            x, label=y, group=np.diff(indptr)[np.diff(indptr) > 0], feature_name=list(names), init_score=fusion.score(x)
        )
        for x, y, indptr in filter(None, (train, valid))
    ]
    stop: list[Callable[..., Any]] = [lgb.early_stopping(PATIENCE, verbose=False)] if valid else []
    model = lgb.train(params, sets[0], n_trees or config.trees, valid_sets=sets[1:], callbacks=stop)
    return str(model.model_to_string(num_iteration=-1)), model.best_iteration or model.num_trees()


def first_trees(trees: str, n: int) -> str:
    """The first n trees of a model text, or all where there are fewer."""
    return str(lgb.Booster(model_str=trees).model_to_string(num_iteration=n))


def refuse_future(features: FloatArray, labels: FloatArray, names: tuple[str, ...], limit: float) -> None:
    """Refuses a feature that all but tells the label: it was made from events after the cut. Few labels tell nothing.

    Args:
        features: (n_pairs, n_features), nan ranks lowest.
        labels: (n_pairs,), positive where taken.
        limit: `ranker.max_feature_auc`.

    Raises:
        ModelError: naming the feature and the area under its ROC curve.
    """
    positive = labels > 0
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if n_pos < FEW or not n_neg:
        return
    for index, name in enumerate(names):
        values = np.nan_to_num(features[:, index], nan=-1e30)
        _, dense, counts = np.unique(values, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each tied group, from 1
        auc = (middle[dense][positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
        if max(auc, 1 - auc) > limit:
            raise ModelError(
                f"ranker: feature {name} alone sorts the labels (AUC {auc:.4f}, limit {limit:g}), as if it had seen events "
                "after the cut; make it from what was known before; where everybody takes the same again it may be "
                "honest: raise ranker.max_feature_auc"
            )

"""Guardrails: properties of the lists that B may not worsen by more than a margin."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.text import item_texts
from recsys.config import ReportConfig
from recsys.types import FloatArray, IntArray
from serving.report.decision import Judged
from serving.report.measures import Lists, known_mean
from serving.report.statistics import exposure, jackknife_interval, paired_effect, ratio
from serving.report.world import Arm, World

SMOOTHING = 0.01  # share of the user's own taste mixed into the list's, so that a missing category costs, not breaks
MAX_TEXT = 500  # characters of an item that count for diversity
_CHUNK = 10_000  # users at once


@dataclass(frozen=True)
class Guardrail:
    """A property of the lists that B may not worsen by more than `margin`; see `Judged` for the interval."""

    metric: str
    beside: dict[str, float]
    a: float
    b: float
    diff: float
    relative: float
    low: float
    high: float
    margin: float
    is_higher_better: bool

    @property
    def judged(self) -> Judged:
        """For the decision rule, turned so that more is better."""
        low, high = (self.low, self.high) if self.is_higher_better else (-self.high, -self.low)
        can_fall = not (self.is_higher_better and self.a == 0)
        return Judged(self.metric, low, high, self.margin, can_fall)


def guardrails(
    world: World,
    arms: tuple[Arm, Arm],
    a: Lists,
    b: Lists,
    beside: dict[str, Lists],
    k: int,
    config: ReportConfig,
) -> tuple[Guardrail, ...]:
    """Exposure, then properties of each user's list, then cost; what needs a history, categories or times is left
    out without them. A margin is relative to A, and never under the floor of its property.
    """
    rows = [*_exposures(world, a, b, beside, k, config)]
    kit = _Kit.of(world, beside.get("Popularity"), k)
    in_a, in_b = (kit.shapes(lists) for lists in (a, b))
    others = {name: kit.shapes(lists) for name, lists in beside.items()}
    floors = config.guardrail_floors.model_dump()
    for name, floor, is_higher_better in _SHAPES:
        if name not in in_a:
            continue
        effect = paired_effect(in_a[name], in_b[name], config.alpha)
        if not effect.n:  # of nobody: lists of one have no diversity, a column without values no categories
            continue
        rows.append(
            Guardrail(
                metric=name,
                beside={who: known_mean(values[name]) for who, values in others.items()},
                a=effect.a,
                b=effect.b,
                diff=effect.diff,
                relative=effect.relative,
                low=effect.low,
                high=effect.high,
                margin=max(config.guardrail_margin * abs(effect.a), floors[floor]),
                is_higher_better=is_higher_better,
            )
        )
    return (*rows, *_cost(arms, config))


_SHAPES = (
    ("Novelty (bits)", "novelty", True),
    ("Intra-list diversity", "diversity", True),
    ("Serendipity", "serendipity", True),
    ("Miscalibration (nats)", "calibration", False),
    ("Share of cold items", "cold", True),
    ("List fill", "fill", True),
)


def word_vectors(texts: list[str]) -> sp.csr_matrix:
    """TF-IDF of words of two letters and more, unit rows, (n_texts, n_words); an empty row for a text without any.

    A yardstick that neither arm learned: vectors of either tower would favour its own arm.

    >>> word_vectors(["green tea", "green"]).shape
    (2, 2)
    """
    rows, words = [], []
    for row, text in enumerate(texts):
        found = [word for word in text[:MAX_TEXT].lower().split() if len(word) > 1]
        rows += [row] * len(found)
        words += found
    names = {word: code for code, word in enumerate(dict.fromkeys(words))}
    cells = (np.ones(len(rows)), (rows, [names[word] for word in words]))
    often = sp.csr_matrix(cells, shape=(len(texts), len(names)))
    in_texts = np.bincount(often.indices, minlength=len(names))
    weighted = sp.csr_matrix(often @ sp.diags(np.log((1 + len(texts)) / (1 + in_texts)) + 1))
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.maximum(length, 1e-12)) @ weighted)


@dataclass(frozen=True)
class _Kit:
    """What properties of lists are measured with; None where the tables do not have it.

    surprise, is_cold: (n_items,); popular: item positions of the popularity baseline, (n_users, k);
    categories: one-hot, (n_items, n_categories); taste: shares of the user's history, (n_users, n_categories).
    """

    k: int
    n_relevant: IntArray
    words: sp.csr_matrix
    surprise: FloatArray | None
    is_cold: FloatArray | None
    popular: IntArray | None
    categories: sp.csr_matrix | None
    taste: sp.csr_matrix | None

    @classmethod
    def of(cls, world: World, popular: Lists | None, k: int) -> "_Kit":
        fields = ("title", "brand", "category", "tags", "description")
        surprise = is_cold = categories = taste = None
        if world.popularity is not None:
            # One event is added to each item, so that a cold item's surprise is finite.
            surprise = -np.log2((world.popularity + 1) / (world.popularity.sum() + len(world.items)))
            is_cold = (world.popularity == 0).astype(np.float64)
        if world.seen is not None and "category" in world.attributes:
            categories = _one_hot(world)
            taste = _shares(sp.csr_matrix(world.seen @ categories))
        words = word_vectors(item_texts(world.attributes, fields))
        shown = popular.ranked[:, :k] if popular else None
        return cls(k, world.n_relevant, words, surprise, is_cold, shown, categories, taste)

    def shapes(self, lists: Lists) -> dict[str, FloatArray]:
        """Properties of each user's list by name, (n_users,): nan where a list has none."""
        ranked = lists.ranked[:, : self.k]
        is_full = ranked >= 0
        length = is_full.sum(1)
        shapes = {"List fill": length / ranked.shape[1], "Intra-list diversity": self._diversity(ranked)}
        for name, value in (("Novelty (bits)", self.surprise), ("Share of cold items", self.is_cold)):
            if value is not None:
                total = np.where(is_full, value[ranked], 0.0).sum(1)
                shapes[name] = np.where(length > 0, total / np.maximum(length, 1), np.nan)
        if self.popular is not None:
            shapes["Serendipity"] = self._serendipity(ranked, lists.hits[:, : self.k], self.popular)
        if self.taste is not None and self.categories is not None:
            shapes["Miscalibration (nats)"] = self._miscalibration(ranked, self.taste, self.categories)
        return shapes

    def _diversity(self, ranked: IntArray) -> FloatArray:
        """1 - mean cosine of all pairs of a list: sum over i != j of v_i v_j = |sum v|^2 - sum |v|^2."""
        own = np.asarray(self.words.multiply(self.words).sum(1)).ravel()
        diversity = np.full(len(ranked), np.nan)
        for start in range(0, len(ranked), _CHUNK):
            some = ranked[start : start + _CHUNK]
            total = _as_matrix(some, self.words.shape[0]) @ self.words
            pairs = np.asarray(total.multiply(total).sum(1)).ravel() - np.where(some >= 0, own[some], 0).sum(1)
            m = (some >= 0).sum(1)
            diversity[start : start + _CHUNK] = np.where(m > 1, 1 - pairs / np.maximum(m * (m - 1), 1), np.nan)
        return diversity

    def _serendipity(self, ranked: IntArray, hits: np.ndarray, popular: IntArray) -> FloatArray:
        """Hits that the popularity baseline did not show, over the most possible."""
        user, slot = np.nonzero(hits)
        is_new = ~(popular[user] == ranked[user, slot][:, None]).any(1)
        found = np.bincount(user, is_new, minlength=len(ranked))
        return np.where(self.n_relevant > 0, found / np.maximum(np.minimum(self.n_relevant, self.k), 1), np.nan)

    def _miscalibration(self, ranked: IntArray, taste: sp.csr_matrix, categories: sp.csr_matrix) -> FloatArray:
        """KL divergence of the list's categories from the history's; nan where the history has none.

        Source: Steck 2018, "Calibrated recommendations".
        """
        shares = _shares(sp.csr_matrix(_as_matrix(ranked, self.words.shape[0]) @ categories))
        user = np.repeat(np.arange(taste.shape[0]), np.diff(taste.indptr))
        in_list = np.asarray(shares[user, taste.indices]).ravel()
        own = taste.data
        divergence = own * np.log(own / ((1 - SMOOTHING) * in_list + SMOOTHING * own))
        total = np.bincount(user, divergence, minlength=taste.shape[0])
        return np.where(np.diff(taste.indptr) > 0, total, np.nan)


def _exposures(
    world: World, a: Lists, b: Lists, beside: dict[str, Lists], k: int, config: ReportConfig
) -> Iterator[Guardrail]:
    in_a, in_b = (exposure(arm.ranked[:, :k], world.catalogue, len(world.items)) for arm in (a, b))
    others = {name: exposure(lists.ranked[:, :k], world.catalogue, len(world.items)) for name, lists in beside.items()}
    floors = config.guardrail_floors
    for metric, field, floor, is_higher_better in (
        ("Catalogue coverage", "coverage", floors.coverage, True),
        ("Exposure Gini", "gini", floors.gini, False),
    ):
        value_a, value_b = getattr(in_a, field), getattr(in_b, field)
        without = getattr(in_b, f"{field}s") - getattr(in_a, f"{field}s")
        low, high = jackknife_interval(value_b - value_a, without, config.alpha)
        yield Guardrail(
            metric=metric,
            beside={name: getattr(shown, field) for name, shown in others.items()},
            a=value_a,
            b=value_b,
            diff=value_b - value_a,
            relative=ratio(value_b - value_a, value_a),
            low=low,
            high=high,
            margin=max(config.guardrail_margin * value_a, floor),
            is_higher_better=is_higher_better,
        )


def _cost(arms: tuple[Arm, Arm], config: ReportConfig) -> Iterator[Guardrail]:
    """Time to score a user, where both arms know it: one number each, so the interval is the point."""
    a, b = (arm.cost.ms_per_user for arm in arms)
    if a is None or b is None:
        return
    margin = max(config.cost_margin * a, config.guardrail_floors.cost_ms)
    yield Guardrail("Scoring (ms a user)", {}, a, b, b - a, ratio(b - a, a), b - a, b - a, margin, False)


def _as_matrix(ranked: IntArray, n_items: int) -> sp.csr_matrix:
    """Lists as ones, (n_users, n_items)."""
    is_full = ranked >= 0
    indptr = np.concatenate([[0], np.cumsum(is_full.sum(1))])
    return sp.csr_matrix((np.ones(int(indptr[-1])), ranked[is_full], indptr), shape=(len(ranked), n_items))


def _one_hot(world: World) -> sp.csr_matrix:
    """Category of each item, (n_items, n_categories); an empty row where there is none."""
    code, found = world.coded("category")
    row = np.flatnonzero(code >= 0)
    return sp.csr_matrix((np.ones(len(row)), (row, code[row])), shape=(len(code), len(found)))


def _shares(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Rows that sum to 1, or to 0 where they are empty."""
    total = np.asarray(counts.sum(1)).ravel()
    shares = sp.csr_matrix(sp.diags(1 / np.maximum(total, 1e-12)) @ counts)
    shares.sort_indices()
    return shares

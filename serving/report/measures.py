"""The numbers of the report: relevance, guardrails and segments of two sets of lists."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys import metrics
from recsys.config import ReportConfig
from recsys.types import BoolArray, FloatArray, IntArray
from serving.report.decision import Judged
from serving.report.statistics import (
    Effect,
    benjamini_hochberg,
    bootstrap_interval,
    exposure,
    holm,
    paired_effect,
    ratio,
    sign_flip,
)
from serving.report.world import World

N_DRAWS = 200
MAX_VALUES = 12  # a users column with more distinct values is no segment
HISTORY = ("0", "1-4", "5-19", "20+")
ITEM_CLASSES = ("head", "torso", "tail", "cold")
PROTECTED = (("history", "0"), ("items", "tail"))


@dataclass(frozen=True)
class Lists:
    """The lists of one arm and what they hit.

    Args:
        ranked: item positions, best first, (n_users, n_slots); -1 is empty.
        hits: True where a slot holds a label, (n_users, n_slots).
        values: one value per user of each metric, (n_users,), by label; the primary metric first.
    """

    ranked: IntArray
    hits: BoolArray
    values: dict[str, FloatArray]

    @classmethod
    def of(cls, ranked: IntArray, world: World, k: int, recall_at: int) -> "Lists":
        """Scores lists against the labels; `recall_at` is the second, deeper cut of recall."""
        hits = metrics.hits_of(ranked, world.relevant)
        n = world.n_relevant
        values = {
            f"NDCG@{k}": metrics.ndcg(hits, n, k),
            f"Recall@{k}": metrics.recall(hits, n, k),
            f"Recall@{recall_at}": metrics.recall(hits, n, recall_at),
            f"MAP@{k}": metrics.average_precision(hits, n, k),
            f"MRR@{k}": metrics.reciprocal_rank(hits, k),
            f"Hit rate@{k}": metrics.hit_rate(hits, k),
        }
        return cls(ranked, hits, values)


@dataclass(frozen=True)
class Relevance:
    """One metric of both arms; `popularity` is its mean for the most popular items, nan without a history."""

    metric: str
    popularity: float
    effect: Effect
    p_holm: float
    p_sign_flip: float
    margin: float


@dataclass(frozen=True)
class Guardrail:
    """A property of the lists that B may not worsen by more than `margin`; see `Judged` for the interval."""

    metric: str
    popularity: float
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


@dataclass(frozen=True)
class Segment:
    """The primary metric inside a group of users, or on a class of items; `effect` is None under the minimum."""

    kind: str
    name: str
    n: int
    is_protected: bool
    effect: Effect | None
    p_adjusted: float


def relevance(
    a: Lists, b: Lists, popular: Lists | None, config: ReportConfig, rng: np.random.Generator
) -> tuple[Relevance, ...]:
    """Every metric with its interval and p-values; Holm's family is these metrics."""
    names = list(a.values)
    effects = [paired_effect(a.values[name], b.values[name], config.alpha) for name in names]
    adjusted = holm(np.array([effect.p for effect in effects]))
    flips = sign_flip(np.column_stack([b.values[name] - a.values[name] for name in names]), rng)
    return tuple(
        Relevance(
            metric=name,
            popularity=_mean(popular.values[name]) if popular else np.nan,
            effect=effect,
            p_holm=float(adjusted[i]),
            p_sign_flip=float(flips[i]),
            margin=config.guardrail_margin * effect.a,
        )
        for i, (name, effect) in enumerate(zip(names, effects, strict=True))
    )


def guardrails(
    world: World, a: Lists, b: Lists, popular: Lists | None, k: int, config: ReportConfig, rng: np.random.Generator
) -> tuple[Guardrail, ...]:
    """Coverage, exposure Gini, novelty, share of cold items, list fill; the middle two need a history."""
    rows = list(_exposures(world, a, b, popular, k, config, rng))
    beside = _shapes(world, popular.ranked[:, :k]) if popular else {}
    shapes_a, shapes_b = _shapes(world, a.ranked[:, :k]), _shapes(world, b.ranked[:, :k])
    for name in shapes_a:
        effect = paired_effect(shapes_a[name], shapes_b[name], config.alpha)
        rows.append(
            Guardrail(
                metric=name,
                popularity=_mean(beside[name]) if name in beside else np.nan,
                a=effect.a,
                b=effect.b,
                diff=effect.diff,
                relative=effect.relative,
                low=effect.low,
                high=effect.high,
                margin=config.guardrail_margin * effect.a,
                is_higher_better=True,
            )
        )
    return tuple(rows)


def segments(
    world: World, a: Lists, b: Lists, k: int, config: ReportConfig, users: pd.DataFrame | None
) -> tuple[Segment, ...]:
    """The primary metric by length of history, by columns of the users table, and by class of items."""
    primary = next(iter(a.values))
    groups = [
        (kind, name, a.values[primary][rows], b.values[primary][rows]) for kind, name, rows in _groups(world, users)
    ]
    if world.popularity is not None:
        codes = item_classes(world.popularity)
        for code, name in enumerate(ITEM_CLASSES):
            n_relevant = np.asarray(world.relevant.astype(bool).astype(np.int64) @ (codes == code).astype(np.int64))
            of_class = [metrics.ndcg(arm.hits & (codes[arm.ranked] == code), n_relevant, k) for arm in (a, b)]
            rows = n_relevant > 0
            groups.append(("items", name, of_class[0][rows], of_class[1][rows]))
    effects = [
        paired_effect(in_a, in_b, config.alpha) if len(in_a) >= config.min_segment_users else None
        for _, _, in_a, in_b in groups
    ]
    adjusted = benjamini_hochberg(np.array([effect.p if effect else np.nan for effect in effects]))
    return tuple(
        Segment(kind, name, len(in_a), (kind, name) in PROTECTED, effects[i], float(adjusted[i]))
        for i, (kind, name, in_a, _) in enumerate(groups)
    )


def item_classes(popularity: IntArray) -> IntArray:
    """Class of each item, (n_items,): 0 head, 1 torso, 2 tail, 3 cold.

    Sorted by events before the window, the head is the items before which less than 50% of the events
    lie, the torso those before 80%, the tail the rest; cold items have no event.

    >>> item_classes(np.array([6, 3, 1, 0])).tolist()
    [0, 1, 2, 3]
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    share = before / max(1, popularity.sum())
    codes = np.empty(len(popularity), dtype=np.int64)
    codes[order] = np.digitize(share, [0.5, 0.8])
    codes[popularity == 0] = 3
    return codes


def recall_curve(lists: Lists, world: World) -> tuple[float, ...]:
    """Mean recall at 1, 2, ... slots."""
    found = np.cumsum(lists.hits, axis=1) / np.maximum(world.n_relevant, 1)[:, None]
    return tuple(float(x) for x in found.mean(0)) if len(found) else ()


def overlap(a: Lists, b: Lists, k: int) -> float:
    """Mean Jaccard overlap of the first k items of both arms; two empty lists overlap fully."""
    first, second = a.ranked[:, :k], b.ranked[:, :k]
    n_users = len(first)
    width = 1 + max(int(first.max(initial=0)), int(second.max(initial=0)))
    row = np.arange(n_users)[:, None] * width
    common = (np.isin(row + first, (row + second)[second >= 0]) & (first >= 0)).sum(1)
    union = (first >= 0).sum(1) + (second >= 0).sum(1) - common
    return _mean(np.where(union > 0, common / np.maximum(union, 1), 1.0))


def _exposures(
    world: World, a: Lists, b: Lists, popular: Lists | None, k: int, config: ReportConfig, rng: np.random.Generator
) -> Iterator[Guardrail]:
    n_users, n_items = len(world.users), len(world.items)
    share = np.full(n_users, 1 / max(1, n_users))
    draws = rng.multinomial(n_users, share, size=N_DRAWS) if n_users else np.zeros((0, 0), dtype=np.int64)
    in_a, in_b = (exposure(arm.ranked[:, :k], world.catalogue, n_items, draws) for arm in (a, b))
    beside = exposure(popular.ranked[:, :k], world.catalogue, n_items, draws[:0]) if popular else None
    for name, field, is_higher_better in (("Catalogue coverage", "coverage", True), ("Exposure Gini", "gini", False)):
        many = "coverages" if field == "coverage" else "ginis"
        value_a, value_b = getattr(in_a, field), getattr(in_b, field)
        low, high = bootstrap_interval(value_b - value_a, getattr(in_b, many) - getattr(in_a, many), config.alpha)
        yield Guardrail(
            metric=name,
            popularity=getattr(beside, field) if beside else np.nan,
            a=value_a,
            b=value_b,
            diff=value_b - value_a,
            relative=ratio(value_b - value_a, value_a),
            low=low,
            high=high,
            margin=config.guardrail_margin * value_a,
            is_higher_better=is_higher_better,
        )


def _shapes(world: World, ranked: IntArray) -> dict[str, FloatArray]:
    """Properties of each user's list, (n_users,): nan where an empty list has none."""
    is_full = ranked >= 0
    length = is_full.sum(1)
    shapes = {}
    if world.popularity is not None:
        # One event is added to each item, so that a cold item's surprise is finite.
        surprise = -np.log2((world.popularity + 1) / (world.popularity.sum() + len(world.items)))
        is_cold = world.popularity == 0
        for name, value in (("Novelty (bits)", surprise), ("Share of cold items", is_cold.astype(np.float64))):
            total = np.where(is_full, value[ranked], 0.0).sum(1)
            shapes[name] = np.where(length > 0, total / np.maximum(length, 1), np.nan)
    shapes["List fill"] = length / ranked.shape[1]
    return shapes


def _groups(world: World, users: pd.DataFrame | None) -> Iterator[tuple[str, str, IntArray]]:
    """(kind, name, positions of users) of every user segment."""
    if world.n_history is not None:
        code = np.digitize(world.n_history, [1, 5, 20])
        for i, name in enumerate(HISTORY):
            yield "history", name, np.flatnonzero(code == i)
    if users is None or "user_id" not in users:
        return
    attributes = users.drop_duplicates("user_id").set_index("user_id").reindex(world.users.ids)
    for column in sorted(map(str, attributes.columns)):
        values = attributes[column]
        if 2 <= values.nunique() <= MAX_VALUES:
            for value, rows in sorted(values.groupby(values.to_numpy()).indices.items(), key=lambda pair: str(pair[0])):
                yield column, str(value), np.asarray(rows)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")

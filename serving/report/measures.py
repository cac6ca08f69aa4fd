"""Relevance: what the lists of an arm hit, one value per user, and what B changes in it."""

from dataclasses import dataclass

import numpy as np

from recsys import metrics
from recsys.config import ReportConfig
from recsys.types import BoolArray, FloatArray, IntArray
from serving.report.statistics import Effect, holm, paired_effect, sign_flip
from serving.report.world import Arm, World


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
    def of(cls, ranked: IntArray, world: World, k: int, recall_at: tuple[int, ...]) -> "Lists":
        """Scores lists against the labels; `recall_at` are the deeper cuts of recall."""
        hits = metrics.hits_of(ranked, world.relevant)
        n = world.n_relevant
        values = {f"NDCG@{k}": metrics.ndcg(hits, n, k)}
        values |= {f"Recall@{cut}": metrics.recall(hits, n, cut) for cut in (k, *recall_at)}
        values |= {
            f"MAP@{k}": metrics.average_precision(hits, n, k),
            f"MRR@{k}": metrics.reciprocal_rank(hits, k),
            f"Hit rate@{k}": metrics.hit_rate(hits, k),
        }
        return cls(ranked, hits, values)

    @property
    def primary(self) -> str:
        """Name of the metric that decides."""
        return next(iter(self.values))


@dataclass(frozen=True)
class Relevance:
    """One metric of both arms; `beside` holds its mean for the baselines, by their name."""

    metric: str
    beside: dict[str, float]
    effect: Effect
    p_holm: float
    p_sign_flip: float
    margin: float


def relevance(
    a: Lists, b: Lists, beside: dict[str, Lists], config: ReportConfig, rng: np.random.Generator
) -> tuple[Relevance, ...]:
    """Every metric with its interval and p-values; Holm's family is these metrics."""
    names = list(a.values)
    effects = [paired_effect(a.values[name], b.values[name], config.alpha) for name in names]
    adjusted = holm(np.array([effect.p for effect in effects]))
    flips = sign_flip(np.column_stack([b.values[name] - a.values[name] for name in names]), rng)
    return tuple(
        Relevance(
            metric=name,
            beside={baseline: known_mean(lists.values[name]) for baseline, lists in beside.items()},
            effect=effect,
            p_holm=float(adjusted[i]),
            p_sign_flip=float(flips[i]),
            margin=config.guardrail_margin * effect.a,
        )
        for i, (name, effect) in enumerate(zip(names, effects, strict=True))
    )


def candidate_recall(world: World, arms: tuple[Arm, Arm], alpha: float) -> Effect | None:
    """The ceilings of both rankings; None where an arm does not know its own."""
    known = [arm.candidate_recall for arm in arms]
    if known[0] is None or known[1] is None:
        return None
    a, b = (one.reindex(world.users.ids).to_numpy(dtype=np.float64) for one in (known[0], known[1]))
    return paired_effect(a, b, alpha)


def recall_curve(lists: Lists, world: World) -> tuple[float, ...]:
    """Mean recall at 1, 2, ... slots."""
    found = (lists.hits / np.maximum(world.n_relevant, 1)[:, None]).mean(0) if len(lists.hits) else np.empty(0)
    return tuple(float(x) for x in np.cumsum(found))


def known_mean(values: FloatArray) -> float:
    """Mean of the values that exist; nan where none does."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")

"""Statistics of two arms on the same users: paired t first, sign flips as the check, families corrected.

Never Wilcoxon or sign tests: per-user differences are skewed, and with a mean of zero those reject far
above alpha, while the t-test and sign flips hold it.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recsys import metrics
from recsys.types import FloatArray, IntArray

POWER = 0.8
_FLIP_CELLS = 4_000_000  # signs held at once: 32 MB


@dataclass(frozen=True)
class Effect:
    """B against A on the users that have a value in both.

    Args:
        n: users.
        a, b: means of the arms.
        diff: mean of b - a, with its t-interval `low`..`high`.
        relative: diff / a; nan where a is 0.
        p: of the paired t-test, two-sided; see `recsys.metrics.mean_interval` for differences that are all the same.
        size: Cohen's d of the paired differences; nan where they do not vary.
        won, tied, lost: users whose value in B is above, equal to, below that in A.
        detectable: smallest true difference that this many users would show with a power of 80%.
    """

    n: int
    a: float
    b: float
    diff: float
    relative: float
    low: float
    high: float
    p: float
    size: float
    won: int
    tied: int
    lost: int
    detectable: float


def paired_effect(a: FloatArray, b: FloatArray, alpha: float = 0.05) -> Effect:
    """Compares one value per user, (n_users,) each; users with nan in either arm are left out.

    Fewer than two users give nan for everything that needs a spread.
    """
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    d = b - a
    n = len(d)
    interval = metrics.mean_interval(d, alpha)
    spread = float(d.std(ddof=1)) if n > 1 else math.nan
    mean_a = float(a.mean()) if n else math.nan
    return Effect(
        n=n,
        a=mean_a,
        b=float(b.mean()) if n else math.nan,
        diff=interval.mean,
        relative=ratio(interval.mean, mean_a),
        low=interval.low,
        high=interval.high,
        p=interval.p,
        size=ratio(interval.mean, spread),
        won=int((d > 0).sum()),
        tied=int((d == 0).sum()),
        lost=int((d < 0).sum()),
        detectable=_quantiles(alpha, n - 1) * spread / math.sqrt(n) if n > 1 else math.nan,
    )


def users_needed(effect: Effect, difference: float, alpha: float = 0.05) -> float:
    """Users with which a true `difference` would show with a power of 80%; nan where that is unknown.

    Args:
        alpha: that of the effect, whose spread is read off what it could detect.
    """
    if not (effect.detectable > 0 and difference > 0):
        return math.nan
    spread = effect.detectable * math.sqrt(effect.n) / _quantiles(alpha, effect.n - 1)
    return float(math.ceil((_quantiles(alpha) * spread / difference) ** 2))


def online_users(a: FloatArray, b: FloatArray, difference: float, alpha: float = 0.05) -> float:
    """Users in each of two separate groups that show a true `difference` with a power of 80%; nan where it is not
    above 0 or nothing varies.

    >>> online_users(np.array([0.0, 2.0]), np.array([0.0, 2.0]), 1.0)
    32.0
    """
    variance = float(a.var(ddof=1) + b.var(ddof=1)) if len(a) > 1 else 0.0
    if not (variance > 0 and difference > 0):
        return math.nan
    return float(math.ceil(_quantiles(alpha) ** 2 * variance / difference**2))


def lorenz(counts: IntArray, n_points: int = 51) -> tuple[float, ...]:
    """Share of all showings that the least shown part of the items has, at evenly spaced parts from 0 to 1.

    >>> lorenz(np.array([3, 1]), n_points=3)
    (0.0, 0.25, 1.0)
    """
    total = np.concatenate([[0], np.cumsum(np.sort(counts))])
    at = np.linspace(0, len(counts), n_points)
    return tuple((np.interp(at, np.arange(len(total)), total) / max(1, total[-1])).tolist())


def sign_flip(differences: FloatArray, rng: np.random.Generator, n_flips: int = 1_999) -> FloatArray:
    """p-values of the sign-flip permutation test, `(1 + count) / (n_flips + 1)`, two-sided.

    Args:
        differences: one column per metric, (n_users, n_metrics), nan counts as 0; all see the same flips.

    Returns:
        (n_metrics,) float64.
    """
    d = np.nan_to_num(differences)
    d = d[(d != 0).any(1)]
    n_users, n_metrics = d.shape
    if n_users == 0:
        return np.ones(n_metrics)
    total = d.sum(0)
    # Sums that are equal on paper differ in the last bits.
    bar = np.abs(total) - 1e-9 * np.abs(d).sum(0)
    count = np.zeros(n_metrics)
    step = max(1, _FLIP_CELLS // n_users)
    for start in range(0, n_flips, step):
        rows = min(step, n_flips - start)
        packed = rng.integers(0, 256, size=(rows, -(-n_users // 8)), dtype=np.uint8)
        is_kept = np.unpackbits(packed, axis=1, count=n_users)
        # A sign is 2 * kept - 1, so the flipped sum is 2 * kept @ d - total.
        count += (np.abs(2 * (is_kept.astype(np.float64) @ d) - total) >= bar).sum(0)
    return (1 + count) / (n_flips + 1)


def holm(p: FloatArray) -> FloatArray:
    """Holm's step-down adjusted p-values, (n,); nan stays nan and is not counted.

    >>> holm(np.array([0.01, 0.04])).tolist()
    [0.02, 0.04]
    """
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order))))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Benjamini-Hochberg adjusted p-values, (n,); nan stays nan and is not counted.

    >>> benjamini_hochberg(np.array([0.01, 0.04])).tolist()
    [0.02, 0.04]
    """
    adjusted = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known])
    return adjusted


@dataclass(frozen=True)
class Exposure:
    """Coverage and Gini of what the users are shown.

    Args:
        coverage, gini: of all lists.
        coverages, ginis: without each of the users in turn, (n_users,).
    """

    coverage: float
    gini: float
    coverages: FloatArray
    ginis: FloatArray


def exposure(ranked: IntArray, catalogue: IntArray, n_items: int) -> Exposure:
    """Exposure of the catalogue in some lists without repeats, and without each of their users.

    With counts x in ascending order, the Gini coefficient is sum_r (2r - n - 1) x_r / (n sum x). One showing less of an
    item leaves the order as it is, where the item counts as the first of those with as many.

    Args:
        ranked: item positions, (n_users, k); -1 is empty.
        catalogue: positions of the items that count, (n_catalogue,).
        n_items: length of the axis of item positions.
    """
    n, n_users = max(1, len(catalogue)), len(ranked)
    place = np.full(n_items + 1, -1, dtype=np.int64)  # the last is that of an empty slot
    place[catalogue] = np.arange(len(catalogue))
    user, slot = np.nonzero(place[ranked] >= 0)
    item = place[ranked[user, slot]]
    counts = np.bincount(item, minlength=len(catalogue))
    ordered = np.sort(counts)
    weighted = float(((2 * np.arange(1, len(ordered) + 1) - n - 1) * ordered).sum())
    lost = 2.0 * (np.searchsorted(ordered, counts[item]) + 1) - n - 1
    base = int(counts.max(initial=0)) + 1
    key, alike = np.unique(user * base + counts[item], return_counts=True)
    lost_by = np.bincount(user, lost, minlength=n_users)
    lost_by += np.bincount(key // base, alike * (alike - 1), minlength=n_users)  # the second of them is next
    left = len(item) - np.bincount(user, minlength=n_users)
    alone = np.bincount(user[counts[item] == 1], minlength=n_users)
    coverage = float((counts > 0).sum() / n)
    return Exposure(
        coverage, metrics.gini(counts), coverage - alone / n, (weighted - lost_by) / (n * np.maximum(left, 1))
    )


def jackknife_interval(diff: float, without: FloatArray, alpha: float = 0.05) -> tuple[float, float]:
    """Ends of an interval around a difference of two arms, from what it is without each user, (n_users,).

    Not a bootstrap: no resample shows an item that no list has, so its spread of coverage and Gini is a third too small
    where the catalogue's tail is long.

    Source: Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
    """
    n = len(without)
    if n < 2:
        return math.nan, math.nan
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(1 - alpha / 2, n - 1)) * error
    return diff - half, diff + half


def ratio(part: float, whole: float) -> float:
    """Part / whole; nan where whole is 0 or unknown."""
    return part / whole if whole and not math.isnan(whole) else math.nan


def _quantiles(alpha: float, freedom: float = math.inf) -> float:
    if math.isinf(freedom):
        return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER))
    return float(stats.t.ppf(1 - alpha / 2, freedom) + stats.t.ppf(POWER, freedom))

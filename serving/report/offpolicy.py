"""Off-policy estimates: what a policy would have earned, from what another one logged.

Only the logged item's terms and the model's value of the target policy are needed, so a sparse top-k policy
never becomes a dense array. Users are the unit: rows of one user share their luck, so errors are summed
within users before they are squared.

Source: Dudik, Langford, Li 2011, https://arxiv.org/abs/1103.4601 (DR); Swaminathan, Joachims 2015 (SNIPS);
Wang, Agarwal, Dudik 2017, https://arxiv.org/abs/1612.01205 (Switch-DR); Su et al. 2020,
https://arxiv.org/abs/1907.09623 (DRos). Differs: intervals are over users, by the estimators' influence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from recsys.types import FloatArray, IntArray


@dataclass(frozen=True)
class Logged:
    """What was logged, seen from a target policy; all (n_rows,).

    Args:
        weight: target over logging probability of the logged item.
        reward: what came of it.
        model: a reward model's value of the logged item.
        direct: the same model's value of the target policy, sum over items of target(a) * model(a).
        user: code of the user of each row; rows of one user belong together.
    """

    weight: FloatArray
    reward: FloatArray
    model: FloatArray
    direct: FloatArray
    user: IntArray

    def clipped(self, largest: float) -> "Logged":
        """The same with no weight above `largest`."""
        return replace(self, weight=np.minimum(self.weight, largest))

    @property
    def effective_sample(self) -> float:
        """`(sum w)^2 / sum w^2`; 0 where all weights are 0."""
        square = float((self.weight**2).sum())
        return float(self.weight.sum()) ** 2 / square if square > 0 else 0.0


@dataclass(frozen=True)
class Terms:
    """An estimate as a mean over rows, with the influence of each row on it.

    Args:
        value: the estimate; nan where it does not exist.
        influence: (n_rows,), with mean 0.
    """

    value: float
    influence: FloatArray


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


def ips(logged: Logged) -> Terms:
    """`mean(w r)`: inverse propensity scoring."""
    return _mean(logged.weight * logged.reward)


def snips(logged: Logged) -> Terms:
    """`sum(w r) / sum(w)`: self-normalised."""
    return _weighted(logged.weight, logged.reward)


def direct(logged: Logged) -> Terms:
    """`mean(dm)`: the model alone; its interval knows nothing of the model's bias."""
    return _mean(logged.direct)


def doubly_robust(logged: Logged) -> Terms:
    """`mean(dm + w (r - q))`."""
    return _mean(logged.direct + logged.weight * (logged.reward - logged.model))


def self_normalised_dr(logged: Logged) -> Terms:
    """`mean(dm + (w / mean w)(r - q))`."""
    model, rest = _mean(logged.direct), _weighted(logged.weight, logged.reward - logged.model)
    return Terms(model.value + rest.value, model.influence + rest.influence)


def switch_dr(logged: Logged, threshold: float) -> Terms:
    """`mean(dm + w [w <= L] (r - q))`: the model alone where weights are large."""
    return doubly_robust(replace(logged, weight=np.where(logged.weight <= threshold, logged.weight, 0.0)))


def optimistic_dr(logged: Logged, shrinkage: float) -> Terms:
    """`mean(dm + L w / (w^2 + L) (r - q))`: DRos, weights shrunk smoothly."""
    return doubly_robust(replace(logged, weight=shrinkage * logged.weight / (logged.weight**2 + shrinkage)))


def mean_weight(logged: Logged) -> Terms:
    """`mean(w)`: 1 but for chance, where the log could have held whatever the target shows."""
    return _mean(logged.weight)


Estimator = Callable[[Logged], Terms]


def estimators(largest: float) -> dict[str, Estimator]:
    """All estimators by the name on the page; `largest` is where weights are clipped, switched and shrunk."""
    return {
        "IPS": ips,
        f"IPS, weights to {largest:g}": lambda logged: ips(logged.clipped(largest)),
        "SNIPS": snips,
        "DM": direct,
        "DR": doubly_robust,
        "SNDR": self_normalised_dr,
        f"Switch-DR, {largest:g}": lambda logged: switch_dr(logged, largest),
        f"DRos, {largest**2:g}": lambda logged: optimistic_dr(logged, largest**2),
    }


def estimate(terms: Terms, user: IntArray, alpha: float = 0.05) -> Estimate:
    """A value with its t-interval over users; nan ends where fewer than two users are there.

    >>> estimate(_mean(np.array([0.0, 1.0, 0.0, 1.0])), np.array([0, 0, 1, 1])).high
    0.5
    """
    n_users = len(np.unique(user))
    if n_users < 2:
        return Estimate(terms.value, math.nan, math.nan)
    of_user = np.bincount(np.unique(user, return_inverse=True)[1], terms.influence)
    error = math.sqrt(n_users / (n_users - 1) * float((of_user**2).sum())) / len(user)
    half = float(stats.t.ppf(1 - alpha / 2, n_users - 1)) * error
    return Estimate(terms.value, terms.value - half, terms.value + half)


def minus(b: Terms, a: Terms) -> Terms:
    """B less A on the same rows."""
    return Terms(b.value - a.value, b.influence - a.influence)


def _mean(values: FloatArray) -> Terms:
    value = float(values.mean()) if len(values) else math.nan
    return Terms(value, values - value)


def _weighted(weight: FloatArray, values: FloatArray) -> Terms:
    total = float(weight.sum())
    if not total > 0:
        return Terms(math.nan, np.full(len(values), math.nan))
    value = float((weight * values).sum()) / total
    return Terms(value, weight * (values - value) * len(values) / total)

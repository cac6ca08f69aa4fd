"""From the ranker's scores to probabilities, and how far those can be relied on.

    p(user takes item) = p(user takes something new)  x  p(takes this item, given that they take something)
                         from the user's activity        from the score among the user's candidates

The window is as long as the one whose labels it was fitted on. Most users of a shop take nothing in a given window;
the ranker never meets them, since they teach it no order, so the first factor is what keeps `p` honest for them.

Counts of events are brought to as long a past as it was fitted on: those of a shop that goes on as it was grow with every
night, and who comes does not.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, xlogy

from recsys.errors import ModelError, shown
from recsys.types import BoolArray, FloatArray, IntArray

FILE = "calibration.json"
RIDGE = 1.0  # on standardised weights; next to thousands of pairs nothing, with a few dozen it keeps them finite
N_BINS = 10


@dataclass(frozen=True)
class Logistic:
    """Log-odds as a weighted sum.

    Args:
        intercept: log-odds where all inputs are 0.
        weights: one per input.
    """

    intercept: float
    weights: tuple[float, ...]

    @classmethod
    def fit(cls, inputs: FloatArray, is_true: BoolArray, n_rising: int = 0) -> "Logistic":
        """Weights of the smallest log-loss plus a small ridge; convex, so the start does not matter.

        Args:
            inputs: (n, n_inputs), finite.
            is_true: (n,).
            n_rising: the first so many inputs get weights from 0 up.
        """
        means, scales = inputs.mean(axis=0), inputs.std(axis=0)
        differs = scales > 1e-9 * np.maximum(1.0, np.abs(means))  # a constant's deviation is rounding, not always 0
        x = (inputs - means) / np.where(differs, scales, np.inf)
        # half a case of either kind: where all are alike the odds stay finite
        total, positive = len(is_true) + 1.0, is_true.sum() + 0.5

        def loss(w: FloatArray) -> tuple[float, FloatArray]:
            odds = w[0] + x @ w[1:]
            value = np.logaddexp(0, odds).sum() - odds[is_true].sum() + np.logaddexp(0, w[0]) - 0.5 * w[0]
            slope = expit(odds) - is_true
            gradient = np.concatenate([[slope.sum() + expit(w[0]) - 0.5], x.T @ slope + RIDGE * w[1:]])
            return float(value + 0.5 * RIDGE * (w[1:] @ w[1:])), gradient

        start = np.zeros(1 + x.shape[1])
        start[0] = np.log(positive / (total - positive))
        bounds = [(None, None)] + [(0.0 if column < n_rising else None, None) for column in range(x.shape[1])]
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        weights = found[1:] / np.where(differs, scales, np.inf)
        return cls(float(found[0] - weights @ means), tuple(map(float, weights)))

    def odds(self, inputs: FloatArray) -> FloatArray:
        """Log-odds, (n,) float64; nan where an input is."""
        return np.asarray(self.intercept + inputs @ np.array(self.weights))


@dataclass(frozen=True)
class Calibration:
    """The map from scores to probabilities; rises with the score within a user.

    Args:
        pair: over (log of the softmax of the score among the user's candidates, log(1 + events)): whether a user who
            takes something takes this item.
        user: over `features.activity.activity`: whether a user takes something.
        days: how long ago the first event of all was; None where an earlier revision did not say.

    Source: Platt, Probabilistic outputs for support vector machines, 1999; out-of-fold scores as in
        sklearn.calibration.CalibratedClassifierCV(ensemble=False).
        Differs: the score counts relative to the user's other candidates, since LambdaMART leaves their level open,
        and users who come back are told from those who do not.
    """

    pair: Logistic
    user: Logistic
    days: float | None = None

    @classmethod
    def fit(
        cls,
        scores: FloatArray,
        is_taken: BoolArray,
        indptr: IntArray,
        takers: FloatArray,
        known: FloatArray,
        is_active: BoolArray,
        days: float | None = None,
    ) -> "Calibration":
        """Both maps, each on what it is about.

        Args:
            scores: of users who took something, each from a model that learned from other users, (n_pairs,).
            is_taken: (n_pairs,).
            indptr: where each of these users' pairs start, (n_some + 1,).
            takers: activity of these users before the window, (n_some, n_inputs).
            known: activity of all users known when the window began, (n_known, n_inputs), finite.
            is_active: whether they took something that could have been recommended, (n_known,).
            days: how long ago the first event of all was.
        """
        pair = Logistic.fit(_pair_inputs(scores, indptr, takers), is_taken, n_rising=1)
        return cls(pair, Logistic.fit(known, is_active), days)

    def pace(self, days: float) -> float:
        """What counts of events are multiplied by, so many days after the first of all."""
        return 1.0 if self.days is None else self.days / days

    def probabilities(self, scores: FloatArray, indptr: IntArray, activity: FloatArray) -> FloatArray:
        """P of pairs, (n_pairs,) float64 in [0, 1]; nan for a user whose activity is, since nobody knows who they are.

        Args:
            scores: of all candidates of each user, (n_pairs,).
            indptr: (n_users + 1,).
            activity: at the `pace`, (n_users, n_inputs).
        """
        takes = expit(self.user.odds(activity))
        item = expit(self.pair.odds(_pair_inputs(scores, indptr, activity)))
        return np.asarray(item * np.repeat(takes, np.diff(indptr)))

    def save(self, folder: Path) -> None:
        """Writes calibration.json."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """One saved by `save`; None where there is none.

        Raises:
            ModelError: naming the value that is no finite number, or the slope that would turn lists round.
        """
        path = folder / FILE
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        pair, user = (_logistic(path, content, name) for name in ("pair", "user"))
        if pair.weights[0] < 0:
            raise ModelError(
                f"{path}: pair.weights[0] is {pair.weights[0]}, so p would fall with the score; train again"
            )
        days = content.get("days")
        if days is not None:
            _refuse_broken(path, "days", days)
        return cls(pair, user, days)


def _logistic(path: Path, content: Any, name: str) -> Logistic:
    try:
        values = {"intercept": content[name]["intercept"]}
        values |= {f"weights[{n}]": value for n, value in enumerate(content[name]["weights"])}
    except (KeyError, TypeError):
        raise ModelError(f"{path}: {name} is not there whole; train again") from None
    for key, value in values.items():
        _refuse_broken(path, f"{name}.{key}", value)
    if len(values) != 3:
        raise ModelError(f"{path}: {name}.weights holds {len(values) - 1} numbers, expected 2; train again")
    intercept, *weights = values.values()
    return Logistic(float(intercept), tuple(map(float, weights)))


def _refuse_broken(path: Path, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ModelError(f"{path}: {name} is {shown(value)}, not a finite number; train again")


def _pair_inputs(scores: FloatArray, indptr: IntArray, activity: FloatArray) -> FloatArray:
    """(n_pairs, 2): log of the softmax of the scores of one user's candidates, and log(1 + events of the user).

    Args:
        activity: of the users, the log of events first, (n_users, n_inputs).
    """
    sizes = np.diff(indptr)
    has_pairs = sizes > 0
    starts, counts = indptr[:-1][has_pairs], sizes[has_pairs]
    if not len(starts):
        return np.zeros((0, 2))
    shifted = scores - np.repeat(np.maximum.reduceat(scores, starts), counts)
    level = np.log(np.add.reduceat(np.exp(shifted), starts))
    return np.stack([shifted - np.repeat(level, counts), np.repeat(activity[:, 0], sizes)], axis=1)


@dataclass(frozen=True)
class Reliability:
    """How often what was said to happen with p did happen.

    Args:
        n: pairs.
        base_rate: share that was taken.
        mean_p: what `p` says it is.
        error: expected calibration error: mean distance of rate and p over bins of equal size.
        brier: mean squared distance of p and what happened.
        log_loss: mean of -log of the probability given to what happened.
        bins: rows of (pairs, mean p, rate), rising in p.
    """

    n: int
    base_rate: float
    mean_p: float
    error: float
    brier: float
    log_loss: float
    bins: tuple[tuple[int, float, float], ...]

    @classmethod
    def measure(cls, p: FloatArray, is_taken: BoolArray, n_bins: int = N_BINS) -> "Reliability":
        """From probabilities and what happened, (n,) each, at least one.

        Source: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
            Differs: bins hold equally many pairs, since nearly all p are near 0.

        >>> Reliability.measure(np.array([0.0, 0.5, 0.5, 1.0]), np.array([False, True, True, True]), n_bins=2).error
        0.25
        """
        order = np.argsort(p, kind="stable")
        parts = [part for part in np.array_split(order, n_bins) if len(part)]
        bins = tuple((len(part), float(p[part].mean()), float(is_taken[part].mean())) for part in parts)
        error = sum(n * abs(rate - mean) for n, mean, rate in bins) / len(p)
        loss = -(xlogy(is_taken, np.maximum(p, 1e-12)) + xlogy(~is_taken, np.maximum(1 - p, 1e-12)))
        brier = float(np.mean((p - is_taken) ** 2))
        return cls(len(p), float(is_taken.mean()), float(p.mean()), float(error), brier, float(loss.mean()), bins)

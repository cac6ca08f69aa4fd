"""The counterfactual section: clicks that each arm would have had, where propensities were logged.

An arm is a policy that shows, to a user at a position, the item its list holds there. A row of the log speaks
for it with weight 1/propensity where the log showed that very item there, and not at all where it did not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.config import ReportConfig
from recsys.errors import shown
from recsys.ids import IdMap
from recsys.types import BoolArray, FloatArray, IntArray
from serving.report import offpolicy
from serving.report.offpolicy import Estimate, Logged, estimate, minus
from serving.report.world import Arm, slots

SWEEP = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
WEIGHT_ALPHA = 0.001  # as with sample ratios: it is looked at every time, and 5% of sound logs would be refused
VETO = "DR"  # unbiased where propensities are true, and the least noisy of those
_PRIOR = 10.0  # expected clicks that an item's own rate must outweigh


@dataclass(frozen=True)
class Support:
    """How well a log can speak for an arm.

    Args:
        mean_weight: its interval, at 99.9%, must cover 1.
        effective_sample: rows that the weighted ones are worth.
        overlap: share of the arm's slots in the logged lists whose item the log shows at that position, to anyone.
        largest_weight: of one row.
    """

    mean_weight: Estimate
    effective_sample: float
    overlap: float
    largest_weight: float


@dataclass(frozen=True)
class Compared:
    """One estimator: clicks a slot under A, under B, and B less A."""

    name: str
    a: Estimate
    b: Estimate
    diff: Estimate


@dataclass(frozen=True)
class Clip:
    """Clipped IPS at one bound, and the share of rows that it cuts in A and B."""

    largest: float
    a: float
    b: float
    cut_a: float
    cut_b: float


@dataclass(frozen=True)
class Counterfactual:
    """Estimates, or why there are none.

    Args:
        refused: reasons; empty where estimates are allowed.
        rows, users: of the log inside the window and the first k positions.
        click_rate: of what was shown.
        a, b: support; None where propensities cannot be used at all.
    """

    refused: tuple[str, ...]
    rows: int = 0
    users: int = 0
    click_rate: float = float("nan")
    a: Support | None = None
    b: Support | None = None
    estimates: tuple[Compared, ...] = ()
    sweep: tuple[Clip, ...] = ()

    @property
    def is_veto(self) -> bool:
        """B is significantly worse; an estimate may veto, never promote."""
        return any(row.diff.high < 0 for row in self.estimates if row.name == VETO)


def counterfactual(
    impressions: pd.DataFrame | None,
    arms: tuple[Arm, Arm],
    window: tuple[pd.Timestamp, pd.Timestamp],
    k: int,
    config: ReportConfig,
) -> Counterfactual:
    """Estimates from the impressions of a window; refused with the reasons where they could mislead.

    Args:
        impressions: as `features.impressions` reads them; None where there are none.
        window: start and end, end excluded.
        k: positions that count.
    """
    if impressions is None:
        return Counterfactual(("no table of impressions is given",))
    start, end = window
    inside = (impressions["timestamp"] >= start) & (impressions["timestamp"] < end)
    rows = impressions[inside & (impressions["position"] <= k)]
    unusable = list(_unusable(rows, start, end))
    if unusable:
        return Counterfactual(tuple(unusable), len(rows), rows["user_id"].nunique())
    log = _Log.of(rows, arms)
    logged = [log.seen_by(arm, k) for arm in arms]
    supports = [_support(one, log.overlap(arm, k)) for one, arm in zip(logged, arms, strict=True)]
    told = log.rows, log.n_users, float(log.reward.mean()), supports[0], supports[1]
    refused = list(_too_few_lists(log, arms, start, config)) or [
        reason for arm, support in zip(arms, supports, strict=True) for reason in _too_little(arm, support, config)
    ]
    if refused:
        return Counterfactual(tuple(refused), *told)
    estimates = tuple(
        _compared(name, how, logged, config.alpha) for name, how in offpolicy.estimators(config.clip_weight).items()
    )
    return Counterfactual((), *told, estimates, tuple(_clip(largest, logged) for largest in SWEEP))


def _unusable(rows: pd.DataFrame, start: pd.Timestamp, end: pd.Timestamp) -> Iterator[str]:
    """What keeps a log from being used for any arm."""
    if rows.empty:
        yield f"no impression lies in the window, {start} to {end}"
    elif "propensity" not in rows:
        yield "the log has no column propensity"
    else:
        propensity = rows["propensity"].to_numpy(dtype=float)
        n_missing = int(np.isnan(propensity).sum())
        n_outside = int(((propensity <= 0) | (propensity > 1)).sum())
        if n_missing:
            yield f"{n_missing:,} of {len(rows):,} rows have no propensity"
        if n_outside:
            yield f"{n_outside:,} of {len(rows):,} propensities are outside (0, 1]"
        if not n_missing + n_outside and (propensity == 1).all():
            yield "logging was deterministic (every propensity is 1): what it did not show it never would have"


def _too_few_lists(log: "_Log", arms: tuple[Arm, Arm], start: pd.Timestamp, config: ReportConfig) -> Iterator[str]:
    """Users of the log without a list weigh 0 whatever was shown to them: no fault of the log or its propensities."""
    without = [(shown(arm.name), log.n_without(arm)) for arm in arms]
    lacking = [f"{n:,} in {name}" for name, n in without if n > config.max_missing_users * log.n_users]
    if lacking:
        yield (
            f"of the log's {log.n_users:,} users, {' and '.join(lacking)} have no list, over "
            f"{config.max_missing_users:.0%}; lists of an evaluation are of users who took something in the window: "
            f"make lists of everybody at its start, by versions trained before it (recsys score --model V --as-of "
            f"{start:%Y-%m-%dT%H:%M:%SZ}), and compare the two release folders"
        )


def _too_little(arm: Arm, support: Support, config: ReportConfig) -> Iterator[str]:
    """What keeps a log from speaking for an arm."""
    name = shown(arm.name)
    mean = support.mean_weight
    if not mean.low <= 1 <= mean.high:
        yield (
            f"{name}: the mean weight is {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}), not 1: the log lacks "
            "what this arm shows, or its propensities are wrong"
        )
    if support.effective_sample < config.min_effective_sample:
        yield f"{name}: {support.effective_sample:,.0f} effective rows, under {config.min_effective_sample:,.0f}"
    if support.overlap < config.min_policy_overlap:
        yield f"{name}: the log knows {support.overlap:.1%} of its slots, under {config.min_policy_overlap:.0%}"


@dataclass(frozen=True)
class _Log:
    """Logged rows as arrays, (n_rows,): positions of users and items, place in the list from 0."""

    users: IdMap
    items: IdMap
    user: IntArray
    item: IntArray
    place: IntArray
    reward: FloatArray
    propensity: FloatArray

    @classmethod
    def of(cls, rows: pd.DataFrame, arms: tuple[Arm, Arm]) -> "_Log":
        users = IdMap.from_values(rows["user_id"])
        ids = [pd.Series(ids.unique()) for ids in (rows["item_id"], *(arm.table["item_id"] for arm in arms))]
        items = IdMap.from_values(pd.concat(ids))
        return cls(
            users,
            items,
            users.positions(rows["user_id"]),
            items.positions(rows["item_id"]),
            rows["position"].to_numpy() - 1,
            rows["clicked"].to_numpy(dtype=np.float64),
            rows["propensity"].to_numpy(dtype=np.float64),
        )

    @property
    def rows(self) -> int:
        return len(self.user)

    @property
    def n_users(self) -> int:
        return len(self.users)

    def n_without(self, arm: Arm) -> int:
        """How many users of the log have no list in an arm."""
        position = self.users.positions(pd.Index(arm.table["user_id"].unique()))
        return self.n_users - int((position >= 0).sum())

    def shown_by(self, arm: Arm, k: int) -> IntArray:
        """The item that an arm would have shown in each row, (n_rows,); -1 where its list ends before."""
        return slots(arm.table, self.users, self.items, k)[self.user, self.place]

    def seen_by(self, arm: Arm, k: int) -> Logged:
        """The rows from the arm's side."""
        target = self.shown_by(arm, k)
        weight = np.where(target == self.item, 1 / self.propensity, 0.0)
        direct = np.where(target >= 0, self._clicks(np.maximum(target, 0)), 0.0)
        return Logged(weight, self.reward, self._clicks(self.item), direct, self.user)

    def overlap(self, arm: Arm, k: int) -> float:
        """Share of the arm's slots that the log holds at that position, for whomever."""
        target = self.shown_by(arm, k)
        known = np.isin(target * k + self.place, self.item * k + self.place)
        return float((known & (target >= 0)).mean())

    def _clicks(self, item: IntArray) -> FloatArray:
        """Expected clicks of items at the rows' places, (n_rows,), learned from the other half of the users.

        Rate of the place times how the item fares against it, drawn to 1 where it was shown rarely.
        """
        value = np.empty(self.rows)
        # by lot: every other id may mean something
        is_first = np.random.default_rng(0).random(self.n_users)[self.user] < 0.5
        for learn in (is_first, ~is_first):
            use = ~learn
            of_place = self._rate(learn, self.place, np.ones(self.rows))
            expected = of_place[self.place]
            of_item = self._rate(learn, self.item, expected, len(self.items), _PRIOR)
            value[use] = np.clip(expected[use] * of_item[item[use]], 0, 1)
        return value

    def _rate(
        self, learn: BoolArray, code: IntArray, expected: FloatArray, size: int = 0, prior: float = 0.0
    ) -> FloatArray:
        """Clicks over expected clicks by code, (n_codes,)."""
        size = size or int(code.max()) + 1
        clicks = np.bincount(code[learn], self.reward[learn], minlength=size)
        chances = np.bincount(code[learn], expected[learn], minlength=size)
        return (clicks + prior) / np.maximum(chances + prior, 1e-12)


def _support(logged: Logged, overlap: float) -> Support:
    return Support(
        estimate(offpolicy.mean_weight(logged), logged.user, WEIGHT_ALPHA),
        logged.effective_sample,
        overlap,
        float(logged.weight.max(initial=0.0)),
    )


def _compared(name: str, how: offpolicy.Estimator, logged: list[Logged], alpha: float) -> Compared:
    a, b = (how(one) for one in logged)
    user = logged[0].user
    return Compared(name, estimate(a, user, alpha), estimate(b, user, alpha), estimate(minus(b, a), user, alpha))


def _clip(largest: float, logged: list[Logged]) -> Clip:
    values = [offpolicy.ips(one.clipped(largest)).value for one in logged]
    cut = [float((one.weight > largest).mean()) for one in logged]
    return Clip(largest, values[0], values[1], cut[0], cut[1])

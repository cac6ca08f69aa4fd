from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recsys.config import ReportConfig
from serving.report.compare import compare
from serving.report.counterfactual import VETO, Counterfactual, counterfactual
from serving.report.world import Arm

START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-08", tz="UTC")
N_ITEMS, K = 5, 2
CLICK = np.array([[0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]])  # by kind of user and item
PLACE = np.array([1.0, 0.6])
BEST = np.array([[0, 1], [4, 3]])
WORST = BEST[::-1]


def arm(name: str, n_users: int, lists: np.ndarray) -> Arm:
    users = np.arange(n_users)
    table = pd.DataFrame({"user_id": users.repeat(K), "item_id": lists[users % 2].ravel()})
    return Arm(name, table.assign(rank=np.tile(np.arange(1, K + 1), n_users)))


def log(n_users: int, lists_per_user: int, seed: int) -> pd.DataFrame:
    """Lists drawn evenly without repeats: every item has a chance of 1/5 at every position."""
    rng = np.random.default_rng(seed)
    user = np.arange(n_users).repeat(lists_per_user)
    shown = np.argsort(rng.random((len(user), N_ITEMS)), axis=1)[:, :K]
    clicked = rng.random(shown.shape) < CLICK[user[:, None] % 2, shown] * PLACE
    return pd.DataFrame(
        {
            "impression_id": np.arange(len(user)).repeat(K),
            "user_id": user.repeat(K),
            "item_id": shown.ravel(),
            "position": np.tile([1, 2], len(user)),
            "clicked": clicked.ravel(),
            "timestamp": START + pd.Timedelta(hours=1),
            "propensity": 1 / N_ITEMS,
        }
    )


def known(lists: np.ndarray) -> float:
    return float((CLICK[np.arange(2)[:, None], lists] * PLACE).mean())


def found(
    impressions: pd.DataFrame | None, n_users: int = 1_000, b: np.ndarray = BEST, **config: Any
) -> Counterfactual:
    arms = arm("A", n_users, WORST), arm("B", n_users, b)
    return counterfactual(impressions, arms, (START, END), K, ReportConfig(**config))


def test_every_unbiased_estimate_covers_what_the_lists_would_have_earned() -> None:
    truth = {"a": known(WORST), "b": known(BEST), "diff": known(BEST) - known(WORST)}
    names = ("IPS", "SNIPS", "DR", "SNDR")
    covered = {(name, side): 0 for name in names for side in truth}
    n_allowed = 0
    for seed in range(150):
        done = found(log(400, 8, seed), 400)
        n_allowed += not done.refused
        for row in done.estimates:
            for side in truth if row.name in names else ():
                one = getattr(row, side)
                covered[row.name, side] += one.low <= truth[side] <= one.high
    # two looks at 99.9% refuse sound logs now and then
    assert n_allowed >= 147
    assert min(covered.values()) >= stats.binom.ppf(1e-4, n_allowed, 0.95), covered


def test_support_is_what_even_logging_gives() -> None:
    done = found(log(1_000, 8, 0))
    assert done.a is not None
    assert done.a.mean_weight.low <= 1 <= done.a.mean_weight.high
    assert done.a.effective_sample == pytest.approx(16_000 / N_ITEMS, rel=0.1)
    assert done.a.overlap == 1
    assert done.a.largest_weight == N_ITEMS


def test_the_clip_sweep_ends_at_ips() -> None:
    done = found(log(1_000, 8, 0))
    ips = next(row for row in done.estimates if row.name == "IPS")
    assert done.sweep[-1].a == ips.a.value
    assert done.sweep[-1].cut_a == 0
    assert done.sweep[0].b < ips.b.value
    assert done.sweep[0].cut_b > 0
    of_bound = {clip.largest: clip for clip in done.sweep}
    assert (of_bound[N_ITEMS].a, of_bound[N_ITEMS].cut_a) == (ips.a.value, 0)  # a weight at the bound is not cut


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda rows: None, "no table of impressions"),
        (lambda rows: rows.assign(timestamp=END), "no impression lies in the window"),
        (lambda rows: rows.drop(columns="propensity"), "no column propensity"),
        (lambda rows: rows.assign(propensity=rows["propensity"].where(rows.index != 3)), "1 of 16,000 rows have no"),
        (lambda rows: rows.assign(propensity=rows["propensity"].where(rows.index != 3, 0.0)), "outside (0, 1]"),
        (lambda rows: rows.assign(propensity=rows["propensity"].where(rows.index != 3, 1.5)), "outside (0, 1]"),
        (lambda rows: rows.assign(propensity=1.0), "deterministic"),
        (lambda rows: rows.iloc[:4_000], "effective rows, under 1,000"),
        (lambda rows: rows.assign(propensity=0.5), "the mean weight is 0.39"),
        (lambda rows: rows[rows["item_id"] != 0], "the log knows 75.0% of its slots"),
    ],
)
def test_estimates_are_refused_with_the_reason(change: Any, reason: str) -> None:
    done = found(change(log(1_000, 8, 0)))
    assert any(reason in told for told in done.refused), done.refused
    assert done.estimates == ()
    assert not done.is_veto


def test_users_of_the_log_without_a_list_are_the_reason_and_not_its_propensities() -> None:
    """Evaluations list only users with a label: here 400 of 1,000; whom the log does not know does not count."""
    rows = log(1_000, 8, 0)
    some, all_ = arm("some", 400, BEST), arm("all", 1_200, BEST)
    for arms, told in (((some, all_), "600 in 'some' have"), ((all_, some), "600 in 'some' have")):
        (reason,) = counterfactual(rows, arms, (START, END), K, ReportConfig()).refused
        assert reason.startswith(f"of the log's 1,000 users, {told} no list, over 1%")
        assert "recsys score --model V --as-of 2024-03-01T00:00:00Z" in reason
    both = counterfactual(rows, (some, some), (START, END), K, ReportConfig()).refused
    assert "600 in 'some' and 600 in 'some' have no list" in both[0]
    assert not counterfactual(rows, (all_, arm("B", 990, BEST)), (START, END), K, ReportConfig()).refused
    # who allows more of them still hears of weights that do not add up
    allowed = counterfactual(rows, (some, all_), (START, END), K, ReportConfig(max_missing_users=0.7)).refused
    assert "the mean weight is 0.4" in allowed[0]


def test_a_worse_arm_is_vetoed_and_a_better_one_is_not() -> None:
    rows = log(1_000, 8, 0)
    better = found(rows)
    assert not better.is_veto
    worse = counterfactual(rows, (arm("A", 1_000, BEST), arm("B", 1_000, WORST)), (START, END), K, ReportConfig())
    assert worse.is_veto
    assert next(row for row in worse.estimates if row.name == VETO).diff.high < 0


def test_a_veto_holds_what_else_would_be_promoted() -> None:
    """By the labels B is better; by the clicks of a log that showed things evenly it is worse."""
    n = 1_000
    a, b = arm("A", n, BEST), arm("B", n, WORST)
    users = np.arange(n)
    events = pd.DataFrame({"user_id": users, "item_id": WORST[users % 2, 0], "timestamp": START})
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": "x"})
    arguments = {"test_start": START, "test_end": END, "now": END, "k": K}
    config = ReportConfig()
    assert compare(a, b, events, items, config, **arguments).verdict == "PROMOTE"  # type: ignore[arg-type]
    report = compare(a, b, events, items, config, impressions=log(n, 8, 0), **arguments)  # type: ignore[arg-type]
    assert report.verdict == "HOLD"
    assert "counterfactual" in report.reason


def test_an_arm_against_itself_earns_exactly_the_same() -> None:
    done = found(log(1_000, 8, 0), b=WORST)
    assert {(row.diff.value, row.diff.low, row.diff.high) for row in done.estimates} == {(0, 0, 0)}
    assert not done.is_veto


def test_the_reward_model_learns_how_an_item_fares_from_the_other_half_of_the_users() -> None:
    """Two items are shown evenly; the first is always clicked, the other never: half of all that is shown."""
    user = np.arange(4_000)
    rows = pd.DataFrame(
        {"user_id": user, "item_id": user % 2, "position": 1, "clicked": user % 2 == 0, "timestamp": START}
    ).assign(propensity=0.5)
    never, always = (
        Arm(name, pd.DataFrame({"user_id": user, "item_id": item, "rank": 1})) for name, item in (("A", 1), ("B", 0))
    )
    done = counterfactual(rows, (never, always), (START, END), 1, ReportConfig())
    (model,) = [row for row in done.estimates if row.name == "DM"]
    # of 1,000 showings an item would have had 500 clicks: .5 (0 + 10) / (500 + 10) and .5 (1,000 + 10) / (500 + 10)
    assert (model.a.value, model.b.value) == pytest.approx((0.0098, 0.9902), abs=0.02)

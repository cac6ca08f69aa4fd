import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import ReportConfig
from serving.report.decision import Check, Decision, Judged, decide
from serving.report.segments import item_classes
from serving.report.statistics import (
    Effect,
    benjamini_hochberg,
    exposure,
    jackknife_interval,
    paired_effect,
    users_needed,
)

GOOD = Effect(
    n=100,
    a=0.1,
    b=0.12,
    diff=0.02,
    relative=0.2,
    low=0.01,
    high=0.03,
    p=0.001,
    size=0.4,
    won=60,
    tied=20,
    lost=20,
    detectable=0.01,
)
HOLDS = Judged("coverage", low=-0.01, high=0.02, margin=0.02)
SOUND = (Check("sound", "pass", ""), Check("not known", "unknown", ""))


def decided(
    effect: Effect = GOOD,
    p: float = 0.01,
    checks: tuple[Check, ...] = SOUND,
    success: Judged = HOLDS,
    guardrail: Judged = HOLDS,
    protected: Judged = HOLDS,
    objections: tuple[str, ...] = (),
) -> Decision:
    return decide(checks, effect, p, (success,), (guardrail,), (protected,), ReportConfig(), objections)


def test_all_conditions_met_promote() -> None:
    assert (decided().verdict, decided().rule) == ("PROMOTE", 3)


@pytest.mark.parametrize(
    "found, told",
    [
        (decided(p=0.05), "Holm"),
        (decided(p=math.nan), "Holm"),
        (decided(replace(GOOD, low=0.0)), "interval"),
        (decided(replace(GOOD, relative=0.0099)), "lift is under 1.0%"),
        (decided(guardrail=replace(HOLDS, low=-0.03)), "coverage is not shown"),
        (decided(objections=("the seeds disagree",)), "the seeds disagree"),
        (decided(guardrail=replace(HOLDS, low=math.nan, high=math.nan)), "coverage is not shown"),
    ],
)
def test_each_missing_condition_holds_and_is_named(found: Decision, told: str) -> None:
    assert (found.verdict, found.rule) == ("HOLD", 4)
    assert told in found.reason


@pytest.mark.parametrize(
    "found",
    [
        decided(replace(GOOD, relative=0.01)),
        decided(guardrail=replace(HOLDS, low=-0.02)),
        decided(guardrail=Judged("unchanged", low=0.0, high=0.0, margin=0.0)),
    ],
)
def test_what_is_just_at_its_limit_promotes(found: Decision) -> None:
    assert found.verdict == "PROMOTE"


@pytest.mark.parametrize("role", ["success", "guardrail", "protected"])
def test_an_interval_wholly_below_the_margin_rejects_whatever_its_role(role: str) -> None:
    harmed = Judged("tail", low=-0.05, high=-0.021, margin=0.02)
    found = decided(**{role: harmed})  # type: ignore[arg-type]
    assert (found.verdict, found.rule) == ("REJECT", 2)
    assert "tail" in found.reason
    assert decided(**{role: replace(harmed, high=-0.02)}).verdict != "REJECT"  # type: ignore[arg-type]


def test_a_failed_check_comes_before_a_rejection_and_an_unknown_one_does_not_count() -> None:
    found = decided(checks=(*SOUND, Check("users", "fail", "none")), protected=Judged("tail", -1, -1, 0))
    assert (found.verdict, found.rule, found.reason) == ("INVALID", 1, "failed: users (none)")
    assert [number.value for number in found.numbers] == [1, 1, 1]


def test_a_share_at_its_floor_cannot_fall() -> None:
    assert decided(guardrail=Judged("cold", low=-0.01, high=0.03, margin=0.0, can_fall=False)).verdict == "PROMOTE"


def test_something_from_nothing_is_lift_enough() -> None:
    assert decided(replace(GOOD, a=0.0, relative=math.nan)).verdict == "PROMOTE"


def test_users_needed_by_the_textbook() -> None:
    # sd = .05; (1.959964 + .841621)^2 * .05^2 / .01^2 = 196.2
    level = paired_effect(np.zeros(10_000), np.tile([0.05, -0.05], 5_000))
    assert level.diff == 0  # what was not found needs users, too
    assert users_needed(level, 0.01) == 197
    assert math.isnan(users_needed(paired_effect(np.zeros(9), np.zeros(9)), 0.01))


def test_benjamini_hochberg_by_hand_leaves_nan_out() -> None:
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, np.nan, 0.03, 0.02])), [0.03, np.nan, 0.03, 0.03])


def test_exposure_counts_items_of_the_catalogue_and_leaves_each_user_out_once() -> None:
    ranked = np.array([[0, 1], [0, -1]])
    found = exposure(ranked, np.arange(3), 4)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.coverages == pytest.approx([1 / 3, 2 / 3])
    assert found.gini == pytest.approx(4 / 9)  # counts 0, 1, 2
    assert found.ginis == pytest.approx([2 / 3, 1 / 3])  # 0, 0, 1 and 0, 1, 1
    low, high = jackknife_interval(0.5, np.array([0.4, 0.6]))  # error sqrt(1/2 * 0.02) = 0.1
    assert (low, high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-4)
    assert np.isnan(jackknife_interval(0.5, np.array([0.4]))).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n_users=st.integers(1, 8), n_items=st.integers(1, 12))
def test_exposure_without_a_user_is_that_of_the_others(seed: int, n_users: int, n_items: int) -> None:
    rng = np.random.default_rng(seed)
    ranked = np.array([rng.permutation(n_items + 4)[:5] for _ in range(n_users)])
    ranked[ranked >= n_items] = -1
    catalogue = np.sort(rng.permutation(n_items)[: rng.integers(1, n_items + 1)])
    found = exposure(ranked, catalogue, n_items)
    for user in range(n_users):
        others = exposure(np.delete(ranked, user, axis=0), catalogue, n_items)
        assert (found.coverages[user], found.ginis[user]) == pytest.approx((others.coverage, others.gini))


def test_head_torso_tail_split_the_events_and_cold_has_none() -> None:
    assert item_classes(np.array([0, 1, 5, 2, 2])).tolist() == [3, 2, 0, 1, 1]

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.types import FloatArray
from serving.report import offpolicy
from serving.report.offpolicy import Logged, estimate

GOLDEN = Path(__file__).parents[4] / "shared" / "oracles"
N_ACTIONS = 5


@pytest.fixture(scope="module")
def stored() -> tuple[Logged, dict[str, float]]:
    if not (GOLDEN / "obp_golden.npz").exists():
        pytest.skip("the stored values of obp are not beside this checkout")
    arrays = np.load(GOLDEN / "obp_golden.npz")
    rows = np.arange(len(arrays["a"]))
    chosen = arrays["a"]
    logged = Logged(
        weight=arrays["pe"][rows, chosen] / arrays["pb"][rows, chosen],
        reward=arrays["r"].astype(np.float64),
        model=arrays["qhat"][rows, chosen],
        direct=(arrays["pe"] * arrays["qhat"]).sum(1),
        user=rows,
    )
    return logged, json.loads((GOLDEN / "obp_golden.json").read_text())["values"]


def test_every_estimator_gives_what_obp_gives(stored: tuple[Logged, dict[str, float]]) -> None:
    logged, values = stored
    ours = {
        "ips": offpolicy.ips(logged),
        "ips_clip2": offpolicy.ips(logged.clipped(2)),
        "snips": offpolicy.snips(logged),
        "dm": offpolicy.direct(logged),
        "dr": offpolicy.doubly_robust(logged),
        "dr_clip2": offpolicy.doubly_robust(logged.clipped(2)),
        "sndr": offpolicy.self_normalised_dr(logged),
        "switchdr2": offpolicy.switch_dr(logged, 2),
        "dros5": offpolicy.optimistic_dr(logged, 5),
    }
    assert ours.keys() == values.keys()
    for name, terms in ours.items():
        assert terms.value == pytest.approx(values[name], abs=1e-9), name
        assert np.abs(terms.influence.mean()) < 1e-9, name


def policies(rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Chances of logging and target policy, and of a click, for three kinds of users, (3, n_actions) each."""
    logging, target = rng.dirichlet(np.full(N_ACTIONS, 2.0), size=3), rng.dirichlet(np.full(N_ACTIONS, 2.0), size=3)
    return logging, target, rng.uniform(0.1, 0.6, size=(3, N_ACTIONS))


def draw(
    n_users: int, rows_per_user: int, chances: tuple[FloatArray, FloatArray, FloatArray], rng: np.random.Generator
) -> Logged:
    """A log of users with a taste of their own, so that rows of a user resemble each other; a model that is wrong."""
    logging, target, click = chances
    user = np.repeat(np.arange(n_users), rows_per_user)
    kind = rng.integers(3, size=n_users)[user]
    mood = rng.uniform(0.5, 1.5, size=n_users)[user]
    action = (rng.random(len(user))[:, None] > logging[kind].cumsum(1)).sum(1).clip(max=N_ACTIONS - 1)
    reward = (rng.random(len(user)) < click[kind, action] * mood).astype(np.float64)
    wrong = np.full((3, N_ACTIONS), 0.3)
    weight = target[kind, action] / logging[kind, action]
    return Logged(weight, reward, wrong[kind, action], (target * wrong)[kind].sum(1), user)


def test_intervals_over_users_cover_the_known_value() -> None:
    rng = np.random.default_rng(0)
    chances = policies(rng)
    known = float((chances[1] * chances[2]).sum(1).mean())
    unbiased = {"IPS": offpolicy.ips, "SNIPS": offpolicy.snips, "DR": offpolicy.doubly_robust}
    unbiased |= {"SNDR": offpolicy.self_normalised_dr}
    n_runs, n_covered = 400, dict.fromkeys(unbiased, 0)
    for _ in range(n_runs):
        logged = draw(300, 4, chances, rng)
        for name, estimator in unbiased.items():
            found = estimate(estimator(logged), logged.user)
            n_covered[name] += found.low <= known <= found.high
    # at 95% fewer than 363 of 400 come once in 10,000 times
    assert min(n_covered.values()) >= 363, n_covered


def test_the_mean_weight_covers_one() -> None:
    rng = np.random.default_rng(1)
    logged = draw(3_000, 2, policies(rng), rng)
    found = estimate(offpolicy.mean_weight(logged), logged.user)
    assert found.low <= 1 <= found.high


def test_the_difference_of_a_policy_and_itself_is_exactly_nothing() -> None:
    rng = np.random.default_rng(2)
    logged = draw(100, 2, policies(rng), rng)
    terms = offpolicy.doubly_robust(logged)
    found = estimate(offpolicy.minus(terms, terms), logged.user)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_estimates_by_hand() -> None:
    weight, reward, model, value = (np.array(x) for x in ([2, 0.5], [1.0, 0.0], [0.5, 0.5], [0.4, 0.6]))
    logged = Logged(weight, reward, model, value, user=np.arange(2))
    assert offpolicy.ips(logged).value == 1
    assert offpolicy.snips(logged).value == pytest.approx(2 / 2.5)
    assert offpolicy.doubly_robust(logged).value == pytest.approx(0.5 + (2 * 0.5 - 0.5 * 0.5) / 2)
    assert logged.effective_sample == pytest.approx(2.5**2 / 4.25)
    assert offpolicy.switch_dr(logged, 1).value == pytest.approx(0.5 - 0.5 * 0.5 / 2)
    assert offpolicy.switch_dr(logged, 2).value == offpolicy.doubly_robust(logged).value
    # weights 4 w / (w^2 + 4): 1 and 2 / 4.25
    shrunk = pytest.approx(0.5 + (1 * 0.5 - 2 / 4.25 * 0.5) / 2)
    assert offpolicy.optimistic_dr(logged, 4).value == offpolicy.estimators(2)["DRos, 4"](logged).value == shrunk
    rare = Logged(np.array([0.5, 0.0]), np.array([1.0, 0.0]), model, value, user=np.arange(2))
    assert (offpolicy.snips(rare).value, rare.effective_sample) == (1, 1)


def test_an_interval_over_two_users_by_hand() -> None:
    found = estimate(offpolicy.Terms(0.5, np.array([-0.5, 0.5])), np.arange(2))
    half = 12.7062 * 0.5  # t(0.975, 1 degree) times sqrt(1/2) / sqrt(2)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_a_target_that_the_log_never_shows_has_no_normalised_value() -> None:
    logged = Logged(np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3), np.arange(3))
    assert np.isnan(offpolicy.snips(logged).value)
    assert logged.effective_sample == 0

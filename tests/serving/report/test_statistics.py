import numpy as np
import pytest
from scipy import stats

from serving.report import statistics


def test_the_paired_effect_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=80)
    b = a + rng.normal(0.1, 0.5, size=80)
    effect, theirs = statistics.paired_effect(a, b), stats.ttest_rel(b, a)
    assert effect.p == pytest.approx(theirs.pvalue)
    assert (effect.low, effect.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert effect.won + effect.tied + effect.lost == effect.n == 80


def test_numbers_of_two_users_are_those_worked_out_by_hand() -> None:
    effect = statistics.paired_effect(np.array([1, 3, np.nan, 5]), np.array([2, 5, 9, np.nan]))  # differences 1 and 2
    assert (effect.n, effect.a, effect.b, effect.diff, effect.relative) == (2, 2, 3.5, 1.5, 0.75)
    assert (effect.won, effect.tied, effect.lost) == (2, 0, 0)
    assert effect.size == pytest.approx(1.5 / 0.5**0.5)
    # of one degree of freedom the 97.5% point is 12.7062 and the 80% point 1.37638; the error is sqrt(1/2) / sqrt(2)
    assert (effect.low, effect.high) == pytest.approx((1.5 - 6.3531, 1.5 + 6.3531), abs=1e-4)
    assert effect.detectable == pytest.approx((12.7062 + 1.37638) / 2, abs=1e-4)
    assert statistics.users_needed(effect, 1.0) == 4  # (1.959964 + .841621)^2 / 2 = 3.92
    assert np.isnan(statistics.users_needed(effect, 0.0))  # a lift on nothing
    assert statistics.online_users(np.array([0.0, 2.0]), np.array([0.0, 2.0]), 2.0) == 8  # a fourth of 31.4
    assert np.isnan(statistics.online_users(np.array([0.0, 2.0]), np.array([0.0, 2.0]), 0.0))
    assert np.isnan(statistics.online_users(np.ones(2), np.ones(2), 1.0))
    nobody = statistics.paired_effect(np.array([np.nan]), np.array([1.0]))
    assert nobody.n == 0
    assert np.isnan([nobody.a, nobody.b, nobody.diff, nobody.p, nobody.detectable]).all()


def test_an_arm_against_itself_differs_by_exactly_nothing() -> None:
    a = np.random.default_rng(0).random(50)
    effect = statistics.paired_effect(a, a)
    assert (effect.diff, effect.p, effect.tied) == (0, 1, 50)
    assert statistics.sign_flip((a - a)[:, None], np.random.default_rng(0)).tolist() == [1]


def test_sign_flips_of_eight_equal_differences_give_the_exact_p() -> None:
    # all signs equal in 2 of 2**8 flips
    p = statistics.sign_flip(np.ones((8, 1)), np.random.default_rng(0), n_flips=20_000)
    assert p[0] == pytest.approx(2 / 256, abs=0.002)
    assert statistics.sign_flip(np.ones((1, 1)), np.random.default_rng(0), n_flips=9).tolist() == [1]


def test_skewed_differences_of_mean_zero_are_rejected_at_the_level_and_not_beyond() -> None:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(200, 400)) - 1
    rejected = int((statistics.sign_flip(draws, rng, 499) < 0.05).sum())
    assert stats.binom.ppf(1e-4, 400, 0.05) <= rejected <= stats.binom.ppf(1 - 1e-4, 400, 0.055)


def test_holm_steps_down_and_leaves_nan_out() -> None:
    np.testing.assert_allclose(statistics.holm(np.array([0.03, np.nan, 0.01, 0.04])), [0.06, np.nan, 0.03, 0.06])


def test_an_arm_against_its_equal_rejects_at_the_level_and_intervals_cover() -> None:
    """Both arms have the same distribution, as sparse and skewed as NDCG is; their true difference is 0."""
    rng = np.random.default_rng(0)
    n_runs, n_users = 2_000, 400
    n_rejected = n_covered = 0
    for _ in range(n_runs):
        a, b = (np.where(rng.random(n_users) < 0.15, rng.random(n_users), 0.0) for _ in range(2))
        effect = statistics.paired_effect(a, b)
        n_rejected += effect.p < 0.05
        n_covered += effect.low <= 0 <= effect.high
    low, high = (stats.binom.ppf(q, n_runs, 0.05) for q in (1e-4, 1 - 1e-4))
    assert low <= n_rejected <= high
    assert n_covered == n_runs - n_rejected


def test_a_planted_lift_is_found_with_the_power_announced() -> None:
    """`detectable` says which true difference 80% of such comparisons find, `users_needed` how many users it takes."""
    rng = np.random.default_rng(1)
    n_runs, n_users, lift = 1_000, 500, 0.02
    found = 0
    announced: list[tuple[float, float]] = []
    for _ in range(n_runs):
        a = np.where(rng.random(n_users) < 0.3, rng.random(n_users), 0.0)
        effect = statistics.paired_effect(a, a + rng.normal(lift, 0.2, n_users))
        announced.append((effect.detectable, statistics.users_needed(effect, lift)))
        found += effect.p < 0.05
    detectable, needed = np.mean(announced, axis=0)
    power = stats.norm.cdf(2.8016 * lift / detectable - 1.96)
    assert stats.binom.ppf(1e-4, n_runs, power) <= found <= stats.binom.ppf(1 - 1e-4, n_runs, power)
    again = sum(
        statistics.paired_effect(np.zeros(int(needed)), rng.normal(lift, 0.2, int(needed))).p < 0.05
        for _ in range(n_runs)
    )
    assert stats.binom.ppf(1e-4, n_runs, 0.8) - 10 <= again <= stats.binom.ppf(1 - 1e-4, n_runs, 0.8) + 10


@pytest.mark.parametrize(("n_items", "n_users"), [(40, 60), (4_000, 300)])
@pytest.mark.parametrize(("name", "without"), [("coverage", "coverages"), ("gini", "ginis")])
def test_the_interval_of_exposure_covers_what_other_users_of_the_same_kind_give(
    n_items: int, n_users: int, name: str, without: str
) -> None:
    """Coverage and Gini of some drawn users against those of as many others; of the larger catalogue most is never seen."""
    rng = np.random.default_rng(2)
    n_runs = 300
    covered = 0
    catalogue = np.arange(n_items)

    def lists() -> np.ndarray:
        drawn = np.sort((n_items * rng.random((n_users, 3)) ** 3).astype(np.int64), axis=1)
        drawn[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = -1  # no list holds an item twice
        return drawn

    def seen() -> statistics.Exposure:
        return statistics.exposure(lists(), catalogue, n_items)

    expected = np.mean([getattr(seen(), name) for _ in range(400)])
    for _ in range(n_runs):
        found = seen()
        low, high = statistics.jackknife_interval(getattr(found, name), getattr(found, without))
        covered += int(low <= expected <= high)
    assert covered >= stats.binom.ppf(1e-4, n_runs, 0.93)

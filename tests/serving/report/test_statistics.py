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


def test_an_arm_against_itself_differs_by_exactly_nothing() -> None:
    a = np.random.default_rng(0).random(50)
    effect = statistics.paired_effect(a, a)
    assert (effect.diff, effect.p, effect.tied) == (0, 1, 50)
    assert statistics.sign_flip((a - a)[:, None], np.random.default_rng(0)).tolist() == [1]


def test_sign_flips_of_eight_equal_differences_give_the_exact_p() -> None:
    # all signs equal in 2 of 2**8 flips
    p = statistics.sign_flip(np.ones((8, 1)), np.random.default_rng(0), n_flips=20_000)
    assert p[0] == pytest.approx(2 / 256, abs=0.002)


def test_skewed_differences_of_mean_zero_are_rejected_at_the_level_and_not_beyond() -> None:
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(200, 400)) - 1
    rejected = int((statistics.sign_flip(draws, rng, 499) < 0.05).sum())
    assert stats.binom.ppf(1e-4, 400, 0.05) <= rejected <= stats.binom.ppf(1 - 1e-4, 400, 0.055)


def test_holm_steps_down_and_leaves_nan_out() -> None:
    np.testing.assert_allclose(statistics.holm(np.array([0.03, np.nan, 0.01, 0.04])), [0.06, np.nan, 0.03, 0.06])

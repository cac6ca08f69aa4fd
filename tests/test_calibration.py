import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import expit

from features.activity import activity
from features.histories import Histories
from features.snapshot import Snapshot
from recsys.calibration import FILE, RIDGE, Calibration, Logistic, Reliability
from recsys.errors import ModelError
from recsys.metrics import places
from recsys.split import DAY_US
from training.calibration import TOP, fit_calibration

N_USERS, N_PER_USER = 400, 25
INDPTR = np.arange(0, N_USERS * N_PER_USER + 1, N_PER_USER)


def planted(seed: int) -> tuple[np.ndarray, ...]:
    """Scores, labels of users who take something, their activity, that of all and who is active; chances are planted.

    A score is the log of the chance of its item, plus a level of the user that means nothing.
    """
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet(np.full(N_PER_USER, 0.3), N_USERS)
    scores = np.log(np.maximum(chance, 1e-9)) + rng.normal(size=(N_USERS, 1))
    taken = rng.random(chance.shape) < chance
    takers, known = (
        np.log1p(np.stack([rng.integers(1, 40, n), rng.integers(0, 90, n)], axis=1)) for n in (N_USERS, 5000)
    )
    active = rng.random(5000) < expit(known[:, 0] - known[:, 1])
    return scores.ravel(), taken.ravel(), takers, known, active


def fitted(seed: int = 0) -> Calibration:
    scores, taken, takers, known, active = planted(seed)
    return Calibration.fit(scores, taken, INDPTR, takers, known, active, days=90.0)


def test_p_is_the_share_of_the_softmax_times_the_chance_that_the_user_comes() -> None:
    # log-odds of the pair are the log of the softmax; the user's are 0 whatever the activity
    made = Calibration(Logistic(0.0, (1.0, 0.0)), Logistic(0.0, (0.0, 0.0)))
    p = made.probabilities(np.log([1.0, 3.0, 5.0]), np.array([0, 2, 3]), np.zeros((2, 2)))
    # softmax: 1/4, 3/4 and 1; odds of 1/4 are a chance of 1/5; each halved
    np.testing.assert_allclose(p, [0.1, 3 / 14, 0.25])


def test_planted_chances_come_back() -> None:
    made = fitted()
    scores, taken, takers, known, active = planted(1)
    comes_surely = replace(made, user=Logistic(50.0, (0.0, 0.0)))
    given = comes_surely.probabilities(scores, INDPTR, takers)
    assert Reliability.measure(given, taken).error < 0.01 < 0.02 < taken.mean()
    comes = expit(made.user.odds(known))
    assert Reliability.measure(comes, active).error < 0.03  # 500 users a bin: .016 by chance
    np.testing.assert_allclose(made.user.weights, [1, -1], atol=0.15)


def test_p_rises_with_the_score_within_a_user_and_is_a_probability() -> None:
    made = fitted()
    scores, _, takers, _, _ = planted(2)
    p = made.probabilities(scores, INDPTR, takers)
    assert ((p >= 0) & (p <= 1)).all()
    for user in range(N_USERS):
        mine = slice(INDPTR[user], INDPTR[user + 1])
        assert (np.diff(p[mine][np.argsort(scores[mine])]) >= 0).all()
    far = made.probabilities(1e6 * scores, INDPTR, takers)
    assert ((far >= 0) & (far <= 1)).all()


def test_scores_that_say_the_opposite_give_a_flat_p_and_never_a_falling_one() -> None:
    scores, taken, takers, known, active = planted(0)
    made = Calibration.fit(-scores, taken, INDPTR, takers, known, active)
    assert made.pair.weights[0] == 0


def test_permuting_users_permutes_p_and_a_level_per_user_changes_nothing() -> None:
    made = fitted()
    scores, _, takers, _, _ = planted(2)
    p = made.probabilities(scores, INDPTR, takers).reshape(N_USERS, -1)
    order = np.random.default_rng(0).permutation(N_USERS)
    moved = scores.reshape(N_USERS, -1)[order] + np.linspace(0, 9, N_USERS)[:, None]
    again = made.probabilities(moved.ravel(), INDPTR, takers[order])
    np.testing.assert_allclose(again.reshape(N_USERS, -1), p[order], rtol=1e-9)


def test_a_stranger_has_no_p_and_a_user_without_candidates_no_pair() -> None:
    made = fitted()
    p = made.probabilities(np.zeros(3), np.array([0, 0, 1, 3]), np.array([[1, 1], [np.nan, np.nan], [1, 1]]))
    assert np.isnan(p).tolist() == [True, False, False]
    assert made.probabilities(np.zeros(0), np.zeros(2, int), np.ones((1, 2))).shape == (0,)


def test_weights_are_where_the_slope_of_the_loss_is_zero_and_only_the_first_must_rise() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal([5, -2], [3, 0.5], (60, 2))
    is_true = rng.random(60) < expit(inputs[:, 0] - 5 - 4 * (inputs[:, 1] + 2))
    found = Logistic.fit(inputs, is_true, n_rising=1)
    assert found.weights[1] < 0 < found.weights[0]
    odds, scales = found.odds(inputs), inputs.std(axis=0)
    wrong = expit(odds) - is_true
    middle = odds.mean()  # the intercept of standardised inputs, drawn to even odds by half a case of either kind
    assert wrong.sum() + expit(middle) - 0.5 == pytest.approx(0, abs=1e-3)
    slopes = (inputs - inputs.mean(axis=0)).T @ wrong / scales
    np.testing.assert_allclose(slopes + RIDGE * np.array(found.weights) * scales, 0, atol=1e-3)


def test_where_everybody_comes_the_chance_stays_below_one() -> None:
    odds = Logistic.fit(np.ones((50, 2)), np.ones(50, dtype=bool)).odds(np.ones((1, 2)))
    np.testing.assert_allclose(expit(odds), 50.5 / 51, rtol=1e-3)


def test_activity_counts_events_and_days_since_the_last_and_knows_no_stranger() -> None:
    day = np.array([1, 4, 9]) * DAY_US
    histories = Histories.build(
        np.array([0, 0, 2]), np.array([0, 1, 0]), day, np.ones(3, np.float32), n_users=3, n_items=2, as_of=10 * DAY_US
    )
    expected = np.log1p(np.array([[2, 6], [np.nan, np.nan], [1, 1]]))
    np.testing.assert_allclose(activity(histories), expected)
    expected[[0, 2], 0] = np.log1p([1, 0.5])
    np.testing.assert_allclose(activity(histories, 0.5), expected)


def test_in_a_shop_that_goes_on_as_it_was_as_many_come_as_p_says() -> None:
    rng = np.random.default_rng(0)
    n_users, fitted_at, tonight, window = 20_000, 160, 200, 20
    n_events = rng.poisson(rng.lognormal(-4, 1, n_users) * (tonight + window))
    user = np.repeat(np.arange(n_users), n_events)
    day = rng.uniform(0, tonight + window, len(user))

    def seen(at: int, pace: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        known = Histories.build(
            user, np.zeros_like(user), (day * DAY_US).astype(np.int64), np.ones(len(user), np.float32),
            n_users=n_users, n_items=1, as_of=at * DAY_US,
        )  # fmt: skip
        found, comes = (
            activity(known, pace),
            np.bincount(user[(day >= at) & (day < at + window)], minlength=n_users) > 0,
        )
        return found[known.n_events > 0], comes[known.n_events > 0]

    made = Logistic.fit(*seen(fitted_at))
    said, came = seen(tonight, fitted_at / tonight)
    assert expit(made.odds(said)).sum() == pytest.approx(came.sum(), rel=0.03)
    by_all, _ = seen(tonight)
    assert expit(made.odds(by_all)).sum() > 1.08 * came.sum()  # as `p` once said it


def test_a_fitted_map_knows_how_long_the_past_was() -> None:
    histories = Histories.build(
        np.array([0, 1]),
        np.array([0, 0]),
        np.array([1, 4]) * DAY_US,
        np.ones(2, np.float32),
        n_users=2,
        n_items=1,
        as_of=10 * DAY_US,
    )
    made = fit_calibration(
        Mock(histories=histories, days=9.0),
        np.array([0]),
        sp.csr_matrix([[1.0], [0.0]]),
        np.array([0, 1]),
        np.ones(1),
        np.zeros(1),
    )
    assert (made.days, made.pace(18.0), replace(made, days=None).pace(18.0)) == (9, 0.5, 1)


def test_reliability_is_that_worked_out_by_hand() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.8])
    found = Reliability.measure(p, np.array([False, False, True, True]), n_bins=2)
    # bins: (.1, .2) said .15, taken 0; (.3, .8) said .55, taken 1
    np.testing.assert_allclose(found.bins, [(2, 0.15, 0.0), (2, 0.55, 1.0)])
    assert found.error == pytest.approx((0.15 + 0.45) / 2)
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.49 + 0.04) / 4)
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.8, 0.3, 0.8]).mean())
    np.testing.assert_allclose([found.base_rate, found.mean_p], [0.5, 0.35])


def test_save_then_load_says_the_same(tmp_path: Path) -> None:
    assert Calibration.load(tmp_path) is None
    made = fitted()
    made.save(tmp_path)
    assert Calibration.load(tmp_path) == made
    content = json.loads((tmp_path / FILE).read_text())
    del content["days"]  # by an earlier revision, which counted all events
    (tmp_path / FILE).write_text(json.dumps(content))
    assert Calibration.load(tmp_path) == replace(made, days=None)


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("pair", "intercept", float("nan"), r"calibration.json: pair.intercept is 'nan', not a finite number"),
        ("user", "weights", [0.5, float("inf")], r"user.weights\[1\] is 'inf'"),
        ("pair", "weights", [-0.5, 0.1], r"pair.weights\[0\] is -0.5, so p would fall"),
        ("pair", "weights", [0.5], "pair.weights holds 1 numbers, expected 2"),
        ("user", "intercept", "a lot", "user.intercept is 'a lot'"),
        ("user", "weights", None, "user is not there whole"),
    ],
)
def test_broken_values_are_refused_by_name(tmp_path: Path, part: str, key: str, value: object, words: str) -> None:
    fitted().save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content[part][key] = value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("n", [3, 100, 20_000])
def test_what_is_the_same_for_all_says_nothing_of_others(n: int) -> None:
    inputs = np.stack([np.random.default_rng(0).normal(size=n), np.full(n, np.log1p(1))], axis=1)
    assert Logistic.fit(inputs, inputs[:, 0] > 0).weights[1] == 0


def test_the_first_ten_of_a_user_are_the_top_and_ties_go_to_the_earlier() -> None:
    scores = np.array([*[2.0] * 9, 1, 1, 3, 0, 5])
    # user 0 has twelve: 3, nine times 2, and one 1 of two; user 2 has the rest
    expected = [True] * 9 + [False, False, True] + [True, True]
    assert (places(scores, np.array([0, 12, 12, 14])) < TOP).tolist() == expected
    assert (places(scores[:11], np.array([0, 11])) < TOP).tolist() == [True] * 10 + [False]


def test_users_without_a_history_do_not_teach_who_comes() -> None:
    histories = Histories.build(
        np.array([0, 0, 2]), np.array([0, 1, 0]), np.array([1, 4, 9]) * DAY_US, np.ones(3, np.float32),
        n_users=3, n_items=2, as_of=10 * DAY_US,
    )  # fmt: skip
    targets = sp.csr_matrix(np.array([[0, 0], [0, 1], [0, 1]]))  # user 1, who was not there, and user 2 take item 1
    snapshot = cast(Snapshot, SimpleNamespace(histories=histories, days=9.0))
    scores, indptr = np.array([0.5, -0.5]), np.array([0, 2])
    made = fit_calibration(snapshot, np.array([2]), targets, indptr, np.array([0.0, 6.0]), scores)
    assert made.user == Logistic.fit(activity(histories)[[0, 2]], np.array([False, True]))
    logs = np.log(expit([1.0, -1.0]))  # softmax of two scores that differ by 1
    pair = Logistic.fit(np.stack([logs, np.full(2, np.log1p(1))], axis=1), np.array([False, True]), n_rising=1)
    np.testing.assert_allclose([made.pair.intercept, *made.pair.weights], [pair.intercept, *pair.weights], atol=1e-6)

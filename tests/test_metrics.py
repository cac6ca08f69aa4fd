import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from recsys import metrics


def relevant(rows: list[list[int]]) -> sp.csr_matrix:
    return sp.csr_matrix(np.array(rows))


def test_second_slot_relevant_gives_half_reciprocal_rank() -> None:
    hits = metrics.hits_of(np.array([[0, 1]]), relevant([[0, 1]]))
    assert metrics.reciprocal_rank(hits, 2).tolist() == [0.5]


def test_an_item_listed_twice_hits_once() -> None:
    assert metrics.hits_of(np.array([[1, 1, -1]]), relevant([[0, 1]])).tolist() == [[True, False, False]]


def test_all_relevant_first_gives_full_ndcg_and_nothing_relevant_gives_nan() -> None:
    hits = metrics.hits_of(np.array([[0, 1], [0, 1]]), relevant([[1, 1], [0, 0]]))
    values = metrics.ndcg(hits, np.array([2, 0]), 2)
    assert values[0] == pytest.approx(1)
    assert np.isnan(values[1])


def test_values_follow_users_when_users_are_permuted() -> None:
    rng = np.random.default_rng(0)
    ranked, truth = rng.permuted(np.tile(np.arange(9), (20, 1)), axis=1)[:, :5], rng.random((20, 9)) < 0.3
    order = rng.permutation(20)
    for f in (metrics.ndcg, metrics.recall, metrics.average_precision):
        straight = f(metrics.hits_of(ranked, relevant(truth.tolist())), truth.sum(1), 5)
        permuted = f(metrics.hits_of(ranked[order], relevant(truth[order].tolist())), truth[order].sum(1), 5)
        np.testing.assert_array_equal(permuted, straight[order])


def test_average_precision_agrees_with_a_slow_loop() -> None:
    hits = np.array([[True, False, True, False]])
    assert metrics.average_precision(hits, np.array([3]), 4)[0] == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_paired_interval_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(0.3, size=50)
    ours, theirs = metrics.paired_interval(a, b), stats.ttest_rel(b, a)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.low == pytest.approx(theirs.confidence_interval().low)


def test_one_item_taking_all_exposure_has_gini_near_one() -> None:
    assert metrics.gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)

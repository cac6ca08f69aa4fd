import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from recsys import metrics
from recsys.types import BoolArray, IntArray

K = 5


def relevant(rows: list[list[int]]) -> sp.csr_matrix:
    return sp.csr_matrix(np.array(rows))


def drawn(n_users: int = 40, n_items: int = 9, n_slots: int = 6) -> tuple[IntArray, BoolArray]:
    """Lists with repeats and empty slots, and relevance with users who have none."""
    rng = np.random.default_rng(0)
    truth = rng.random((n_users, n_items)) < 0.3
    truth[::7] = False
    return rng.integers(-1, n_items, size=(n_users, n_slots)), truth


def slow_hits(items: list[int], wanted: set[int]) -> list[bool]:
    return [item in wanted and item not in items[:slot] for slot, item in enumerate(items)]


def slow_values(items: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """Every metric of one user, written as its definition reads."""
    hits = slow_hits(items, wanted)[:k]
    slots = [slot for slot, hit in enumerate(hits, start=1) if hit]
    best = min(len(wanted), k)
    values = {
        "ndcg": sum(1 / np.log2(s + 1) for s in slots) / (sum(1 / np.log2(s + 1) for s in range(1, best + 1)) or 1),
        "recall": len(slots) / max(1, len(wanted)),
        "average_precision": sum((i + 1) / s for i, s in enumerate(slots)) / max(1, best),
    }
    return {name: value if wanted else np.nan for name, value in values.items()} | {
        "reciprocal_rank": 1 / slots[0] if slots else 0.0,
        "hit_rate": float(bool(slots)),
    }


def test_second_slot_relevant_gives_half_reciprocal_rank() -> None:
    hits = metrics.hits_of(np.array([[0, 1]]), relevant([[0, 1]]))
    assert metrics.reciprocal_rank(hits, 2).tolist() == [0.5]


def test_an_item_listed_twice_hits_once() -> None:
    assert metrics.hits_of(np.array([[1, 1, -1]]), relevant([[0, 1]])).tolist() == [[True, False, False]]


def test_a_stored_zero_is_not_relevant() -> None:
    stored = sp.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert metrics.hits_of(np.array([[0, 1]]), stored).tolist() == [[False, True]]


def test_a_position_outside_the_catalogue_is_refused_rather_than_given_to_the_next_user() -> None:
    with pytest.raises(ValueError, match="position 2, relevant only 2 items"):
        metrics.hits_of(np.array([[2], [1]]), relevant([[0, 0], [1, 0]]))


def test_lists_of_other_users_than_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 users, relevant 2"):
        metrics.hits_of(np.array([[0], [1], [1]]), relevant([[0, 0], [1, 0]]))


def test_all_relevant_first_gives_full_ndcg_and_nothing_relevant_gives_nan() -> None:
    hits = metrics.hits_of(np.array([[0, 1], [0, 1]]), relevant([[1, 1], [0, 0]]))
    values = metrics.ndcg(hits, np.array([2, 0]), 2)
    assert values[0] == pytest.approx(1)
    assert np.isnan(values[1])


def test_hits_at_one_and_three_of_three_relevant() -> None:
    hits, n_relevant = np.array([[True, False, True, False]]), np.array([3])
    assert metrics.average_precision(hits, n_relevant, 4)[0] == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert metrics.ndcg(hits, n_relevant, 4)[0] == pytest.approx((1 + 0.5) / (1 + 0.5 + 1 / np.log2(3)))
    assert metrics.recall(hits, n_relevant, 4)[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [1, K, 8])
def test_all_metrics_agree_with_a_slow_loop_even_where_k_exceeds_the_slots(k: int) -> None:
    ranked, truth = drawn()
    hits, n_relevant = metrics.hits_of(ranked, sp.csr_matrix(truth)), truth.sum(1)
    slow = [slow_values(items.tolist(), set(np.flatnonzero(t)), k) for items, t in zip(ranked, truth, strict=True)]
    for f in (metrics.ndcg, metrics.recall, metrics.average_precision):
        np.testing.assert_allclose(f(hits, n_relevant, k), [user[f.__name__] for user in slow])
    for g in (metrics.reciprocal_rank, metrics.hit_rate):
        np.testing.assert_allclose(g(hits, k), [user[g.__name__] for user in slow])


def test_values_follow_users_when_users_are_permuted() -> None:
    ranked, truth = drawn()
    order = np.random.default_rng(1).permutation(len(ranked))
    for f in (metrics.ndcg, metrics.recall, metrics.average_precision):
        straight = f(metrics.hits_of(ranked, sp.csr_matrix(truth)), truth.sum(1), K)
        permuted = f(metrics.hits_of(ranked[order], sp.csr_matrix(truth[order])), truth[order].sum(1), K)
        np.testing.assert_array_equal(permuted, straight[order])


def test_repeating_a_listed_item_in_an_empty_slot_gains_nothing() -> None:
    ranked, truth = drawn()
    ranked[:, -1] = -1
    repeated = ranked.copy()
    repeated[:, -1] = ranked[:, 0]
    before, after = (metrics.hits_of(r, sp.csr_matrix(truth)) for r in (ranked, repeated))
    np.testing.assert_array_equal(after, before)


def test_inputs_are_not_mutated() -> None:
    ranked, truth = drawn()
    kept, table = ranked.copy(), sp.csr_matrix(truth)
    metrics.hits_of(ranked, table)
    np.testing.assert_array_equal(ranked, kept)
    np.testing.assert_array_equal(table.toarray(), truth)


def test_lists_without_slots_score_zero() -> None:
    none = np.zeros((2, 0), dtype=bool)
    assert metrics.reciprocal_rank(none, K).tolist() == metrics.hit_rate(none, K).tolist() == [0, 0]
    np.testing.assert_array_equal(metrics.ndcg(none, np.array([1, 0]), K), [0, np.nan])


def test_two_of_four_items_shown_cover_half() -> None:
    assert metrics.coverage(np.array([[0, 3], [3, -1]]), 4) == 0.5
    assert metrics.coverage(np.array([[0, -1]]), 1) == 1


def test_one_item_taking_all_exposure_has_gini_near_one() -> None:
    assert metrics.gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)
    assert metrics.gini(np.array([0, 1])) == 0.5
    assert metrics.gini(np.array([0, 0])) == metrics.gini(np.array([])) == 0  # nothing is shown, so nothing unequally


def test_gini_is_the_mean_absolute_difference_over_twice_the_mean() -> None:
    counts = np.random.default_rng(0).integers(0, 30, size=25)
    differences = [abs(int(a) - int(b)) for a in counts for b in counts]
    assert metrics.gini(counts) == pytest.approx(np.mean(differences) / (2 * counts.mean()))


def test_mean_interval_of_one_two_three_leaves_nan_out() -> None:
    interval = metrics.mean_interval(np.array([1, np.nan, 2, 3]))
    assert (interval.mean, interval.n) == (2, 3)
    assert interval.high - 2 == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)  # t(0.975, 2 degrees) times 1 / sqrt(3)
    assert 2 - interval.low == pytest.approx(interval.high - 2)


def test_two_values_are_enough_for_an_interval_and_none_have_not_even_a_mean() -> None:
    interval = metrics.mean_interval(np.array([1.0, 3.0]))
    assert interval.high - 2 == pytest.approx(12.7062, rel=1e-5)  # t(0.975, 1 degree) times sqrt(2) / sqrt(2)
    nobody = metrics.mean_interval(np.array([np.nan]))
    assert nobody.n == 0
    assert np.isnan([nobody.mean, nobody.low, nobody.high, nobody.p]).all()


def test_one_value_has_a_mean_but_no_interval() -> None:
    interval = metrics.mean_interval(np.array([4.0]))
    assert (interval.mean, interval.n) == (4, 1)
    assert np.isnan([interval.low, interval.high, interval.p]).all()


def test_paired_interval_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(0.3, size=50)
    ours, theirs = metrics.paired_interval(a, b), stats.ttest_rel(b, a)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.low == pytest.approx(theirs.confidence_interval().low)


def test_a_user_known_in_one_arm_only_is_left_out_of_the_pair() -> None:
    interval = metrics.paired_interval(np.array([np.nan, 1, 2]), np.array([9, 2, np.nan]))
    assert (interval.mean, interval.n) == (1, 1)


def test_equal_arms_give_p_one_and_a_constant_shift_is_judged_by_its_signs() -> None:
    same = np.ones(6)
    assert metrics.paired_interval(same, same) == metrics.Interval(0, 0, 0, 6, 1)
    assert metrics.paired_interval(same, same + 1) == metrics.Interval(1, 1, 1, 6, 2 / 64)
    few = metrics.paired_interval(same[:5], same[:5] + 1)  # of 32 flips two are as far from 0
    assert few.p == 2 / 32
    assert np.isnan([few.low, few.high]).all()
    assert metrics.paired_interval(0.1 * np.arange(5), 0.1 * np.arange(5) + 0.2).p == 2 / 32  # equal but for rounding

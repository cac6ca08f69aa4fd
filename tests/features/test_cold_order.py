import numpy as np

from features.cold_order import CF_WEIGHT, in_cold_order
from features.pairs import NAMES
from recsys.types import FloatArray, IntArray


def table(user: list[int], count: list[float], ease: list[float], cf: list[float]) -> tuple[FloatArray, IntArray]:
    features = np.zeros((len(user), len(NAMES)), dtype=np.float32)
    for name, values in (("count_all", count), ("ease_z", ease), ("cf_z", cf)):
        features[:, NAMES.index(name)] = values
    return features, np.searchsorted(user, np.arange(max(user) + 2))


def test_a_users_cold_items_share_their_scores_out_anew_by_what_they_borrowed() -> None:
    pairs = table([0, 0, 0, 0], [1, 0, 0, 0], [9, 1, 2, 1], [0, 0, 0, 1 / CF_WEIGHT])
    scores = in_cold_order(np.array([0.4, 0.9, 0.1, 0.5]), *pairs)
    # borrowed: 1, 2, 2 for the cold ones; of the two with 2 the one that scored higher stays ahead
    np.testing.assert_array_equal(scores, [0.4, 0.1, 0.5, 0.9])


def test_users_do_not_mix_and_warm_items_keep_their_scores() -> None:
    pairs = table([0, 0, 2, 2], [0, 2, 0, 0], [5, 0, 1, 2], [0, 0, 0, 0])  # user 1 has no candidate
    np.testing.assert_array_equal(in_cold_order(np.array([0.1, 0.8, 0.7, 0.2]), *pairs), [0.1, 0.8, 0.2, 0.7])


def test_without_cold_items_nothing_changes_and_ties_keep_their_order() -> None:
    scores = np.array([0.3, 0.2, 0.1])
    np.testing.assert_array_equal(in_cold_order(scores, *table([0, 0, 0], [1, 1, 1], [0, 1, 2], [0, 0, 0])), scores)
    np.testing.assert_array_equal(in_cold_order(scores, *table([0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0])), scores)
    assert scores.tolist() == [0.3, 0.2, 0.1]

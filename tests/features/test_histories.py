from dataclasses import replace

import numpy as np
import pytest

from features.histories import Histories
from recsys.split import DAY_US

# user, item, day; user 0 has two events in one moment, user 2 none
EVENTS = np.array([(0, 3, 1), (0, 1, 5), (0, 2, 5), (1, 0, 2), (0, 3, 9)])


def build(events: np.ndarray = EVENTS, as_of: int = 10) -> Histories:
    user, item, day = events.T
    weight = np.ones(len(events), dtype=np.float32)
    return Histories.build(user, item, day * DAY_US, weight, n_users=3, n_items=4, as_of=as_of * DAY_US)


def test_steps_count_distinct_moments_back() -> None:
    h = build()
    assert list(zip(h.user_pos.tolist(), h.item_pos.tolist(), h.step.tolist(), strict=True)) == [
        (0, 3, 2), (0, 1, 1), (0, 2, 1), (0, 3, 0), (1, 0, 0),
    ]  # fmt: skip


def test_decay_multiplies_per_step_and_repeats_add_up() -> None:
    assert build().decayed(0.5).toarray().tolist() == [[0, 0.5, 0.5, 1.25], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_what_has_decayed_to_the_share_named_or_less_is_left_out() -> None:
    h = build()
    assert h.decayed(0.5, faint=0.3).toarray().tolist() == [[0, 0.5, 0.5, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert h.decayed(0.5, faint=0.5).toarray().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert h.decayed(5e-4)[0, 3] == 1  # two steps back less than a millionth is left


def test_an_event_at_the_moment_itself_is_not_known_yet() -> None:
    assert build(as_of=9).timestamp.max() == 5 * DAY_US
    assert len(build().before(5 * DAY_US).item_pos) == 2


def test_no_bulk_order_drowns_the_rest_of_a_history() -> None:
    h = build()
    bulk = replace(h, weight=np.where(h.item_pos == 1, 1023, h.weight).astype(np.float32))
    assert bulk.decayed(0.5).toarray().tolist() == [[0, 5, 0.5, 1.25], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_weights_that_are_shares_of_a_whole_count_like_others() -> None:
    h, small = build(), replace(build(), weight=np.full(len(EVENTS), 1e-9, dtype=np.float32))
    np.testing.assert_allclose(small.decayed(0.5).toarray(), 1e-9 / np.log(2) * h.decayed(0.5).toarray(), rtol=1e-5)
    np.testing.assert_allclose(small.confidence(2.0).toarray(), 1e-9 * h.confidence(2.0).toarray(), rtol=1e-5)
    assert h.confidence(0.01).toarray()[0, 3] > h.confidence(0.01).toarray()[1, 0] > 0  # however long ago


def test_confidence_halves_with_every_half_life_and_repeats_add_up() -> None:
    # ages of ten days less the day
    halved = np.array([[0, 2**-2.5, 2**-2.5, 2**-4.5 + 2**-0.5], [2**-4, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(build().confidence(2.0).toarray(), halved, rtol=1e-6)


def test_recent_lists_distinct_items_newest_first() -> None:
    assert build().recent(3).tolist() == [[3, 2, 1], [0, -1, -1], [-1, -1, -1]]


def test_popularity_counts_only_the_last_days() -> None:
    assert build().popularity(5.0).tolist() == [0, 1, 1, 1]


def test_later_events_change_nothing_earlier() -> None:
    early, late = build(as_of=6), build(EVENTS[EVENTS[:, 2] < 6], as_of=6)
    np.testing.assert_array_equal(early.decayed(0.5).toarray(), late.decayed(0.5).toarray())
    np.testing.assert_array_equal(build().before(6 * DAY_US).step, late.step)


@pytest.mark.parametrize("order", [[4, 2, 0, 3, 1], [0, 2, 1, 4, 3]])  # of the second, items of one moment alone
def test_shuffled_events_give_the_same_history(order: list[int]) -> None:
    shuffled = build(EVENTS[order])
    np.testing.assert_array_equal(shuffled.item_pos, build().item_pos)
    np.testing.assert_array_equal(shuffled.step, build().step)


def test_users_of_a_chunk_are_renumbered_in_their_order() -> None:
    some = build().of_users(np.array([2, 1, 0]))
    np.testing.assert_array_equal(some.decayed(0.5).toarray(), build().decayed(0.5).toarray()[[2, 1, 0]])
    assert build().of_users(np.array([3, 0])).n_events.tolist() == [0, 4]  # a stranger and user 0

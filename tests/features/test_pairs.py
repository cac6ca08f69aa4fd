"""What a pair's features say of the user's own past and of the item, by hand."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.candidates import Candidates
from features.histories import DAY_US, Histories
from features.pairs import HABIT_DECAY, _own_past, standardised
from features.snapshot import SHOPS_EVENTS, ItemFacts

AS_OF = 100 * DAY_US


def histories() -> Histories:
    """User 0 takes item 0 on days 10 (two lines of one basket), 20 and 40, item 1 on day 20; user 1 item 0 on day 90."""
    user, item, day = np.array([(0, 0, 10), (0, 0, 10), (0, 0, 20), (0, 1, 20), (0, 0, 40), (1, 0, 90)]).T
    weight = np.ones(len(user), np.float32)
    return Histories.build(user, item, day * DAY_US, weight, n_users=3, n_items=3, as_of=AS_OF)


def test_own_past_counts_moments_not_lines() -> None:
    past = _own_past(histories(), np.array([0, 0, 0, 1]), np.array([0, 1, 2, 1]))
    nan = np.nan
    np.testing.assert_allclose(past["times_taken"], [4, 1, nan, nan])
    np.testing.assert_allclose(past["days_since_taken"], [60, 80, nan, nan])
    np.testing.assert_allclose(past["taken_share"], [3 / 3, 1 / 3, nan, nan])
    np.testing.assert_allclose(past["steps_since_taken"], [0, 1, nan, nan])
    d = HABIT_DECAY
    np.testing.assert_allclose(past["habit"], [1 + d + d**2, d, nan, nan])


def test_moments_of_a_user_are_distinct_times() -> None:
    assert histories().n_moments.tolist() == [3, 1, 0]


def test_rebought_is_the_share_of_repeats_drawn_towards_the_shops() -> None:
    facts = ItemFacts.build(histories(), pd.DataFrame({"item_id": range(3), "title": "x"}))
    shop = 3 / 6  # of six events three repeat
    n = SHOPS_EVENTS
    np.testing.assert_allclose(facts.rebought, [(3 + n * shop) / (5 + n), n * shop / (1 + n), shop])


@dataclass(frozen=True)
class InParts(Histories):
    """Two events a block, so that user 0 is in three of them."""

    def blocks(self) -> Iterator[Histories]:
        for start in range(0, len(self.user_pos), 2):
            part = slice(start, start + 2)
            yield Histories(
                self.user_pos[part], self.item_pos[part], self.timestamp[part], self.weight[part],
                self.n_users, self.n_items, self.as_of,
            )  # fmt: skip


def test_rebought_does_not_depend_on_where_blocks_end() -> None:
    whole = histories()
    parts = InParts(**{name: getattr(whole, name) for name in whole.__dataclass_fields__})
    catalogue = pd.DataFrame({"item_id": range(3), "title": "x"})
    found, wanted = (ItemFacts.build(past, catalogue).rebought for past in (parts, whole))
    np.testing.assert_array_equal(found, wanted)


def test_scores_are_standardised_by_user_and_rounding_is_no_deviation() -> None:
    users = np.array([0, 0, 0, 2, 2, 3])
    pairs = Candidates(users, np.arange(6), {}, {}, np.zeros((4, 2), np.float32), 4)
    scores = np.array([1, 2, 3, 0.9999999, 1.0000001, 7], dtype=np.float32)
    expected = [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0]
    np.testing.assert_allclose(standardised(scores, pairs), expected, rtol=1e-6)
    np.testing.assert_allclose(standardised(1e-12 * scores, pairs), expected, rtol=1e-6)

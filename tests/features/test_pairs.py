"""What a pair's features say of the user's own past and of the item, by hand."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.candidates import LISTED, SCORED, Candidates, gather
from features.chunks import chunks
from features.histories import Histories
from features.pairs import HABIT_DECAY, _own_past, build, standardised
from features.snapshot import SHOPS_EVENTS, ItemFacts, Snapshot
from recsys.cf_tower import CFTower
from recsys.config import parse_config
from recsys.split import DAY_US
from recsys.vectors import unit_rows

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
    np.testing.assert_allclose(past["interval_share"], [60 / 15, nan, nan, nan])  # from day 10 over 20 to 40
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
            yield from self._part(slice(start, start))  # of events that do not count
            yield from self._part(slice(start, start + 2))

    def _part(self, part: slice) -> Iterator[Histories]:
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


def test_features_are_those_worked_out_by_hand() -> None:
    """User 0 takes item 1 on days 80 and 98, item 0 on day 90, two of item 3 on day 95; user 1 nothing."""
    item, day = np.array([(1, 80), (0, 90), (3, 95), (3, 95), (1, 98)]).T
    nobody, one = np.zeros(5, int), np.ones(5, np.float32)
    past = Histories.build(nobody, item, day * DAY_US, one, n_users=2, n_items=4, as_of=AS_OF)
    catalogue = pd.DataFrame(
        {"price": [2, 4, 6, None], "category": ["tea", "tea", "oil", None], "brand": ["x", None, "x", "y"]}
    )
    facts = ItemFacts.build(past, catalogue)
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [0, 0]], dtype=np.float32)  # item 3 has no text
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    cf = CFTower.fit(past.confidence(30.0), [vectors], config.cf, 0)
    snapshot = Snapshot(past, vectors, cf, facts, facts.exists, config)
    users, items = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 0, 3])
    scores = {name: np.arange(6, dtype=np.float32) for name in SCORED if name != "text"}
    ranks = {name: np.full(6, np.nan, dtype=np.float32) for name in (*SCORED, *LISTED)}
    ranks["cf"][1] = 7
    text_users = np.array([[1, 0], [0, 0]], dtype=np.float32)
    table = build(snapshot, past, Candidates(users, items, scores, ranks, text_users, 2))
    nan, taken = np.nan, np.log1p(np.array([1, 2, 0, 2, 1, 2]))
    z = np.array([0.6, 0.2, -0.4, -0.4]) / 0.18**0.5
    expected = {
        "text_score": [1, 0.6, 0, 0, 0, 0], "text_z": [*z, 0, 0], "cf_score": range(6), "cf_rank": [nan, 7, *[nan] * 4],
        # likeness with items 1, 3 and 0, from the newest: nothing is like itself, nor like what has no text
        "text_max": [0.6, 0.6, 0.8, nan, nan, nan], "text_mean": [0.6, 0.6, 0.4, nan, nan, nan],
        "text_last": [0.6, nan, 0.8, nan, nan, nan],
        "times_taken": [1, 2, nan, 2, nan, nan], "days_since_taken": [10, 2, nan, 5, nan, nan],
        "interval_share": [nan, 2 / 18, nan, nan, nan, nan],
        "count_1d": [0] * 6, "count_7d": np.log1p([0, 1, 0, 2, 0, 2]), "count_30d": taken, "count_all": taken,
        "trend": np.log1p([0, 1, 0, 2, 0, 2]) - np.log1p(np.array([1, 2, 0, 2, 1, 2]) * 7 / 30),
        "age_days": [10, 20, nan, 5, 10, 5], "price": [2, 4, 6, nan, 2, nan],
        "price_ratio": [0.6, 1.2, 1.8, nan, nan, nan],  # of (4 + 2 + 4) / 3
        "category_share": [0.6, 0.6, 0, nan, 0, nan], "brand_share": [0.2, nan, 0.2, 0.4, 0, 0],
        "user_events": np.log1p([5, 5, 5, 5, 0, 0]), "user_items": np.log1p([3, 3, 3, 3, 0, 0]),
        "user_moments": [4, 4, 4, 4, 0, 0], "user_days_since_last": [2, 2, 2, 2, nan, nan],
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(table.column(name), np.array(values), rtol=1e-5, atol=1e-6, err_msg=name)
    assert table.recent[0, :4].tolist() == [1, 3, 0, -1]
    assert table.nearest(np.arange(6)).tolist() == [1, 0, 1, -1, -1, -1]


def test_features_of_a_user_do_not_depend_on_the_chunk() -> None:
    rng = np.random.default_rng(0)
    n_users, n_items, n_events = 300, 200, 4_000
    user, item = np.sort(rng.integers(0, n_users, n_events)), rng.integers(0, n_items, n_events)
    when, weight = rng.integers(0, AS_OF, n_events), rng.random(n_events).astype(np.float32)
    past = Histories.build(user, item, when, weight, n_users=n_users, n_items=n_items, as_of=AS_OF)
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    vectors = unit_rows(rng.normal(size=(n_items, 40)).astype(np.float32))
    cf = CFTower.fit(past.confidence(30.0), [vectors], config.cf, 0)
    catalogue = pd.DataFrame(
        {"item_id": range(n_items), "price": rng.random(n_items), "category": rng.choice(9, n_items)}
    )
    facts = ItemFacts.build(past, catalogue)
    snapshot = Snapshot(past, vectors, cf, facts, facts.exists, config)

    def features(size: int) -> np.ndarray:
        parts = [past.of_users(users) for users in chunks(np.arange(n_users), size)]
        return np.concatenate([build(snapshot, some, gather(snapshot, some)).features for some in parts])

    whole = features(n_users)
    assert len(whole) > 40_000
    for size in (1, 7, 256):
        np.testing.assert_array_equal(features(size), whole)

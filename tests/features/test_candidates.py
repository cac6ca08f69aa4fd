import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from features.candidates import Candidates, gather, top_k
from features.histories import Histories
from features.snapshot import ItemFacts, Snapshot
from recsys.cf_tower import CFTower
from recsys.config import parse_config
from recsys.split import DAY_US


def slow_top_k(scores: np.ndarray, k: int, above: float) -> np.ndarray:
    rows = []
    for row in scores:
        best = [i for i in np.argsort(-row, kind="stable") if row[i] > above][:k]
        rows.append(best + [-1] * (min(k, len(row)) - len(best)))
    return np.array(rows)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 400)),
    k=st.integers(1, 60),
    n_values=st.sampled_from([1, 3, 50, 10**6]),
    seed=st.integers(0, 999),
)
def test_lists_are_those_of_a_full_stable_sort(shape: tuple[int, int], k: int, n_values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-n_values, n_values, shape).astype(np.float32)
    scores[rng.random(shape) < 0.1] = -np.inf
    for above in (-np.inf, 0.0):
        np.testing.assert_array_equal(top_k(scores, k, above), slow_top_k(scores, k, above))
    bits = np.clip(scores, -(2**15), 2**15 - 1).astype(np.int16)  # as of bfloat16; the least never ranks
    for bound, above in ((None, -(2**15)), (0.0, 0.0)):
        np.testing.assert_array_equal(top_k(bits, k, bound), slow_top_k(bits.astype(float), k, above))


@pytest.mark.parametrize("value", [0.0, -np.inf, 7.0])
def test_a_row_of_ties_gives_its_first_positions_or_nothing(value: float) -> None:
    scores = np.full((2, 5000), value, dtype=np.float32)
    expected = np.arange(100) if np.isfinite(value) else np.full(100, -1)
    np.testing.assert_array_equal(top_k(scores, 100), [expected, expected])


def small_shop(exclude_seen: bool) -> Snapshot:
    """User 0 took item 0 yesterday, user 1 nothing, user 2 item 4, which has no text; item 5 is withdrawn."""
    past = Histories.build(
        np.array([0, 2]), np.array([0, 4]), np.full(2, 99 * DAY_US), np.ones(2, np.float32), n_users=3, n_items=6,
        as_of=100 * DAY_US,
    )  # fmt: skip
    vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0.28, 0.96], [0, 0], [0.96, 0.28]], dtype=np.float32)
    config = parse_config(
        {
            "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}},
            "rules": {"exclude_seen": exclude_seen},
            "candidates": {"per_source": 4, "new": 2, "popular": 3},
        }
    )
    cf = CFTower.fit(past.confidence(30.0), [vectors], config.cf, 0)
    facts = ItemFacts.build(past, pd.DataFrame({"title": ["x"] * 6}))
    return Snapshot(past, vectors, cf, facts, np.arange(6) != 5, config)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_lists_hold_what_is_near_and_may_be_recommended(exclude_seen: bool) -> None:
    snapshot = small_shop(exclude_seen)
    found = gather(snapshot, snapshot.histories.loaded())
    listed = {
        name: {
            (int(found.user_row[pair]), int(found.item_pos[pair])): int(places[pair])
            for pair in np.flatnonzero(~np.isnan(places))
        }
        for name, places in found.ranks.items()
    }
    own = {(0, 0), (2, 4)}
    popular = {
        (user, item): place
        for user in range(3)
        for place, item in enumerate((0, 4))
        if not (exclude_seen and (user, item) in own)
    }
    assert {name: listed[name] for name in ("text", "new", "cf", "repeat", "all_time", "popular", "recent")} == {
        "text": {(0, item): item - exclude_seen for item in range(int(exclude_seen), 4)},
        "new": {(0, 1): 0, (0, 2): 1} if exclude_seen else {(0, 0): 0, (0, 1): 1},
        "cf": {(0, 4): 0, (2, 0): 0} if exclude_seen else {(0, 0): 0, (0, 4): 1, (2, 4): 0, (2, 0): 1},
        "repeat": {} if exclude_seen else dict.fromkeys(own, 0),
        "all_time": popular,
        "popular": popular,
        "recent": popular,
    }
    pairs = list(zip(found.user_row.tolist(), found.item_pos.tolist(), strict=True))
    assert pairs == sorted({pair for places in listed.values() for pair in places})


def test_infinity_and_what_is_no_number_never_rank() -> None:
    assert top_k(np.array([[1.0, np.inf, np.nan, 2.0]]), 3).tolist() == [[3, 0, -1]]


def test_no_row_gives_no_list() -> None:
    assert top_k(np.zeros((0, 9), np.float32), 3).shape == (0, 3)


def test_values_at_pairs_where_there_are_some_and_where_there_are_none() -> None:
    matrix = sp.csr_matrix(np.array([[0, 2, 0], [3, 0, 1]], dtype=np.float32))
    for users, items, found in (([0, 1, 1], [1, 1, 2], [2, 0, 1]), ([], [], [])):
        pairs = np.array(users, dtype=np.int64), np.array(items, dtype=np.int64)
        assert Candidates(*pairs, {}, {}, np.zeros((2, 1)), 2).values_of(matrix).tolist() == found


def test_items_that_are_nowhere_take_no_place_from_those_that_are() -> None:
    """Of the items that the user did not take the second is far from them, and 0, the score of the others, is more."""
    past = Histories.build(
        np.array([0, 1, 1]),
        np.array([0, 1, 2]),
        np.array([1, 2, 2]),
        np.ones(3, np.float32),
        n_users=2,
        n_items=9,
        as_of=9,
    )
    settings = {"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}, "candidates": {"per_source": 1}}
    nothing, vectors = sp.csr_matrix(np.zeros((9, 9), np.float32)), np.zeros((9, 2), np.float32)
    factors = np.array([[1.0], [-1.0], *[[0.0]] * 7], dtype=np.float32)
    config, facts = parse_config(settings), ItemFacts.build(past, pd.DataFrame({"item_id": range(9)}))
    cf = CFTower(config.cf, factors, nothing, nothing, factors[:, 0] != 0)
    found = gather(Snapshot(past, vectors, cf, facts, facts.exists, config), past.of_users(np.array([0])))
    assert found.item_pos[found.ranks["cf"] == 0].tolist() == [1]
    assert found.scores["cf"][found.item_pos == 2].tolist() == [0.0]  # sold since ALS was fitted

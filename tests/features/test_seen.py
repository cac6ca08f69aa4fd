"""`rules.seen_by`: a click need not keep an item from being recommended again, as a purchase does."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from features.candidates import gather
from features.dataset import Dataset
from features.histories import Histories, StoredHistories
from features.snapshot import ItemFacts, Snapshot
from recsys.cf_tower import CFTower
from recsys.config import RulesConfig, parse_config

SEEN_BY = RulesConfig(seen_by=("buy",))


def dataset() -> Dataset:
    """User a clicks i0, buys i1, clicks i1 again and then i2; b buys i0 after a click on it."""
    rows = [
        ("a", "i0", "click", 1), ("a", "i1", "buy", 2), ("a", "i1", "click", 3), ("a", "i2", "click", 4),
        ("b", "i0", "click", 2), ("b", "i0", "buy", 3),
    ]  # fmt: skip
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event_type", "day"])
    events["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(events.pop("day"), "D")
    items = pd.DataFrame({"item_id": ["i0", "i1", "i2", "i3"], "title": ["Tea", "Oil", "Salt", "Rice"]})
    return Dataset.from_frames(events, items, event_weights={"click": 1, "buy": 6})


def pairs(histories: Histories) -> set[tuple[int, int]]:
    return set(zip(*(values.tolist() for values in histories.seen), strict=True))


def test_only_the_named_labels_mark_an_item_as_acted_on() -> None:
    every, bought = dataset(), dataset().under(SEEN_BY)
    assert pairs(Histories.of(every)) == {(0, 0), (0, 1), (0, 2), (1, 0)}
    for histories in (Histories.of(bought), StoredHistories(bought).loaded(), *StoredHistories(bought).blocks()):
        assert pairs(histories) == {(0, 1), (1, 0)}
        assert len(histories.user_pos) == 6  # clicks are part of the history all the same
    assert pairs(Histories.of(bought.before(pd.Timestamp("2024-01-03", tz="UTC")))) == set()
    day_4 = pd.Timestamp("2024-01-04", tz="UTC").value // 1000
    assert pairs(Histories.of(bought).before(day_4)) == {(0, 1)}
    for some in (Histories.of(bought), StoredHistories(bought)):
        assert pairs(some.of_users(np.array([1, 7, 0]))) == {(0, 0), (2, 1)}
    assert pairs(Histories.of(every.under(RulesConfig(seen_by=("rent",))))) == set()  # which nobody did


def test_events_in_any_order_mark_the_same() -> None:
    bought = dataset().under(SEEN_BY)
    marks = bought.marks_seen
    assert marks is not None
    order = np.random.default_rng(0).permutation(6)
    shuffled = Histories.build(
        bought.user_pos[order], bought.item_pos[order], bought.timestamp[order], bought.weight[order],
        n_users=2, n_items=4, as_of=2**60, marks_seen=marks[order],
    )  # fmt: skip
    assert shuffled.marks_seen is not None
    np.testing.assert_array_equal(shuffled.marks_seen, marks)


def test_what_was_only_clicked_still_counts_as_a_target() -> None:
    targets = sp.csr_matrix(np.ones((2, 4), dtype=np.float32))
    assert Histories.of(dataset()).new_only(targets).toarray().tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
    bought = Histories.of(dataset().under(SEEN_BY)).new_only(targets)
    assert bought.toarray().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("rules", "listed"),
    [
        ({}, [{3}, {1, 2, 3}]),
        ({"seen_by": ["buy"]}, [{0, 2, 3}, {1, 2, 3}]),
        ({"exclude_seen": False}, [{0, 1, 2, 3}, {0, 1, 2, 3}]),
    ],
)
def test_candidates_hold_what_was_only_clicked(rules: dict[str, object], listed: list[set[int]]) -> None:
    settings = {"data": {"events": "e", "items": "i", "event_weights": {"click": 1, "buy": 6}}, "rules": rules}
    config = parse_config(settings)
    data = dataset().under(config.rules)
    past, vectors = Histories.of(data), np.eye(4, dtype=np.float32)
    facts = ItemFacts.build(past, data.catalogue)
    cf = CFTower.fit(past.confidence(30.0), [vectors], config.cf.model_copy(update={"factors": 2}), 0)
    found = gather(Snapshot(past, vectors, cf, facts, facts.exists, config), past)
    assert [set(found.item_pos[found.user_row == user].tolist()) for user in (0, 1)] == listed
    again = ~np.isnan(found.ranks["repeat"])  # a source of its own, of what was clicked or where repeats count
    assert again.any() == (rules != {})

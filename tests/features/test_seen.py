"""`rules.seen_by`: a click need not keep an item from being recommended again, as a purchase does. `rules.hidden_by`: what
a user took out of their lists stays out, wherever the same may be bought again.
"""

from dataclasses import replace

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
from serving.lengths import _n_barred, n_all_barred, usual_length

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
    assert Histories.of(dataset()).listable(targets, exclude_seen=True).toarray().tolist() == [
        [0, 0, 0, 1],
        [0, 1, 1, 1],
    ]
    bought = Histories.of(dataset().under(SEEN_BY)).listable(targets, exclude_seen=True)
    assert bought.toarray().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("rules", "listed"),
    [
        ({}, [{3}, {1, 2, 3}]),
        ({"seen_by": ["buy"]}, [{0, 2, 3}, {1, 2, 3}]),
        ({"exclude_seen": False}, [{0, 1, 2, 3}, {0, 1, 2, 3}]),
        ({"exclude_seen": False, "hidden_by": ["hide"]}, [{1, 2}, {0, 1, 2, 3}]),
    ],
)
def test_candidates_hold_what_was_only_clicked(rules: dict[str, object], listed: list[set[int]]) -> None:
    settings = {"data": {"events": "e", "items": "i", "event_weights": {"click": 1, "buy": 6}}, "rules": rules}
    config = parse_config(settings)
    data = with_hides().under(config.rules) if config.rules.hidden_by else dataset().under(config.rules)
    past, vectors = Histories.of(data), np.eye(4, dtype=np.float32)
    facts = ItemFacts.build(past, data.catalogue)
    cf = CFTower.fit(past.confidence(30.0), [vectors], config.cf.model_copy(update={"factors": 2}), 0)
    found = gather(Snapshot(past, vectors, cf, facts, facts.exists, config), past)
    assert [set(found.item_pos[found.user_row == user].tolist()) for user in (0, 1)] == listed
    again = ~np.isnan(found.ranks["repeat"])  # a source of its own, of what was clicked or where repeats count
    assert again.any() == (rules != {})


def with_hides() -> Dataset:
    """As above; user a hides i3 on day 3 and i0 on day 5, c, who never took anything, i1."""
    taken = dataset()
    rows = [("a", "i3", 3), ("a", "i0", 5), ("c", "i1", 3)]
    hides = pd.DataFrame(rows, columns=["user_id", "item_id", "day"]).assign(event_type="hide")
    hides["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(hides.pop("day"), "D")
    events = pd.DataFrame(
        {
            "user_id": taken.users.values(taken.user_pos), "item_id": taken.items.values(taken.item_pos),
            "event_type": ["click", "buy", "click", "click", "click", "buy"],
            "timestamp": pd.to_datetime(taken.timestamp, unit="us", utc=True),
        }
    )  # fmt: skip
    events = pd.concat([events, hides], ignore_index=True)
    items = taken.catalogue[["item_id", "title"]]
    made = Dataset.from_frames(events, items, event_weights={"click": 1, "buy": 6}, as_of="2024-01-08")
    return made.under(RulesConfig(hidden_by=("hide",)))


@pytest.mark.parametrize(("exclude_seen", "seen"), [(False, set()), (True, {(0, 0), (0, 1), (0, 2), (1, 0)})])
def test_what_a_user_hid_is_barred_whether_or_not_what_was_seen_is(
    exclude_seen: bool, seen: set[tuple[int, int]]
) -> None:
    def barred(histories: Histories) -> set[tuple[int, int]]:
        return set(zip(*(values.tolist() for values in histories.barred(exclude_seen)), strict=True))

    data = with_hides()
    assert len(data.users) == 2  # a hide is no label
    for histories in (Histories.of(data), StoredHistories(data).loaded()):
        assert barred(histories) == seen | {(0, 3), (0, 0)}
        assert len(histories.user_pos) == 6
    for some in (Histories.of(data), StoredHistories(data)):
        assert barred(some.of_users(np.array([7, 0]))) == {(1, i) for u, i in seen if u == 0} | {(1, 3), (1, 0)}
        assert barred(some.of_users(np.array([1]))) == {(0, i) for u, i in seen if u == 1}
    day_5 = pd.Timestamp("2024-01-05", tz="UTC")
    for early in (Histories.of(data).before(day_5.value // 1000), Histories.of(data.before(day_5))):
        assert (0, 3) in barred(early)
        assert ((0, 0) in barred(early)) == exclude_seen  # hidden later
    everything = sp.csr_matrix(np.ones((2, 4), dtype=np.float32))
    left = Histories.of(data).listable(everything, exclude_seen)
    assert set(zip(*(a.tolist() for a in left.nonzero()), strict=True)) == {
        (u, i) for u in range(2) for i in range(4)
    } - seen - {(0, 3), (0, 0)}


def test_without_the_rule_a_hide_is_a_type_like_any_other() -> None:
    data = with_hides()
    free = data.under(RulesConfig(hidden_by=("never",)))
    assert Histories.of(free).barred(exclude_seen=False)[0].size == 0
    assert (with_hides().sha256, data.types) == (data.sha256, ("buy", "click", "hide"))


def test_a_list_may_be_as_short_as_what_a_user_hid_leaves() -> None:
    data, users = with_hides(), np.array([0, 1])
    assert _n_barred(data, np.ones(4, dtype=bool), exclude_seen=False).tolist() == [2, 0]
    assert _n_barred(data, np.ones(4, dtype=bool), exclude_seen=True).tolist() == [4, 1]
    assert _n_barred(data, data.items.ids != "i3", exclude_seen=True).tolist() == [3, 1]
    assert [n_all_barred(data, users, exclude_seen) for exclude_seen in (False, True)] == [0, 1]
    assert usual_length(data, users, 4, (), exclude_seen=False) == 2
    free = replace(data, hidden_by=())
    assert [n_all_barred(free, users, exclude_seen) for exclude_seen in (False, True)] == [0, 0]
    assert usual_length(free, users, 4, (), exclude_seen=False) == 4

"""What a batch tells of the tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.caps import Cap
from features.dataset import Dataset
from recsys.config import parse_config
from recsys.progress import Reporter
from serving.batch import Released, _count_late
from serving.lengths import n_listable, usual_length
from serving.runs import Run
from tests.faults.small import stage

ITEMS = pd.DataFrame({"item_id": [1, 2], "title": "x"})
EVENTS = pd.DataFrame(
    {
        "user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2], "event_type": ["buy", "buy", "buy", "view"],
        "timestamp": pd.Timestamp("2024-01-01", tz="UTC"),
    }
)  # fmt: skip


@pytest.mark.parametrize(("weights", "n_late"), [({"buy": 1.0}, 1), ({"buy": 1.0, "view": 0.1}, 0)])
def test_events_are_late_that_came_later_not_those_that_count_only_now(
    tmp_path: Path, weights: dict[str, Any], n_late: int
) -> None:
    """A night after event_weights gained a type called all of its events late."""
    data = {"events": "e", "items": "i", "event_weights": weights}
    config = parse_config({"data": data, "serving": {"output": str(tmp_path)}})
    run = Run(config, "nightly", pd.Timestamp("2024-01-03", tz="UTC"), Reporter())
    with run.store.lock():
        before = {"until": "2024-01-02T00:00:00+00:00", "events": 2, "labels": ["buy"]}
        facts = {"key": {}, "run_date": "2024-01-02", "model": {"version": "1"}, "data": before}
        run.store.publish(run.store.finish(stage(run.store, "2024-01-02", "a"), facts))
    assert _count_late(Dataset.from_frames(EVENTS, ITEMS, event_weights=weights, as_of="2024-01-03"), run) == n_late


@pytest.mark.parametrize(
    ("states", "advice"),
    [
        ({"is_pinned", "is_part", "move_current"}, "it is pinned: recsys rollback --unpin"),
        ({"is_pinned", "is_part"}, "these are lists of some users or items: --move-current"),
        ({"is_pinned"}, "it is pinned: recsys rollback --unpin"),
        ({"is_part"}, "these are lists of some users or items: --move-current"),
        ({"is_early"}, "these are lists of a later day: --move-current"),
        (set(), "it serves a later date: --move-current"),
    ],
)
def test_why_current_stayed_is_the_reason_that_can_be_acted_on(states: set[str], advice: str) -> None:
    """Where it is pinned, --move-current was advised to who had just given it."""
    flags: dict[str, Any] = {name: name in states for name in ("is_pinned", "is_part", "is_early", "move_current")}
    facts = Released(Path("out/r"), "1", "", 2, 1, 0, is_new=True, moved=False, stale_model=False, seconds=1.0, **flags)
    assert f"(current was not moved: {advice})" in facts.sentence()


def test_lists_need_not_be_longer_than_what_caps_and_what_was_taken_leave() -> None:
    """Of 40 items 30 sold; every other user has the one of a kind of its own, and nobody any of the kind that never sold."""
    rows = [(user, item) for user in range(20) for item in (*range(user, user + 10), *[30] * (user % 2))]
    events = pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(event_type="buy", timestamp="2024-01-01T00:00Z")
    data, users = Dataset.from_frames(events, pd.DataFrame({"item_id": range(40), "title": "x"})), np.arange(20)
    kind, name = np.array([0, 1, 2] * 10 + [3] + [4] * 9), np.arange(40) % 2
    one_each, few = (Cap("category", kind, 1),), (Cap("category", kind, 9),)

    def length(k: int, caps: tuple[Cap, ...], exclude_seen: bool) -> int:
        return usual_length(data, users, k, caps, exclude_seen)

    assert [length(k, (), exclude_seen) for k in (5, 35) for exclude_seen in (True, False)] == [5, 5, 29, 35]
    assert length(5, one_each, exclude_seen=False) == 4
    assert length(5, one_each, exclude_seen=True) == 1  # which four items are left depends on the user
    assert length(5, few, exclude_seen=True) == 5
    assert length(5, (*one_each, Cap("brand", name, 1)), exclude_seen=False) == 1
    assert usual_length(data, users[:0], 5, one_each, exclude_seen=True) == 4
    assert (n_listable(data, one_each, 1000), n_listable(data, (), 1000)) == (4, 40)

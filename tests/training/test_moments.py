"""What was known when a window began and what counts as taken in it, by hand."""

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from recsys.config import Config, RulesConfig, parse_config
from recsys.split import DAY_US
from training.moments import Moment, cut
from training.workbench import without_report

START = pd.Timestamp("2024-01-01", tz="UTC")
# day, user, item, part; user 0 takes item 0 again on day 5
EVENTS = [
    (0, 0, 0, "train"), (1, 1, 1, "train"), (2, 0, 1, "valid"), (3, 1, 0, "test"),
    (4, 0, 2, "train"), (5, 0, 0, "valid"), (6, 1, 2, "test"), (7, 0, 3, "test"),
]  # fmt: skip
CREATED = [None, None, None, START + pd.Timedelta("6D")]


def dataset(split_column: str | None = None, **items: list[bool]) -> Dataset:
    events = pd.DataFrame(EVENTS, columns=["day", "user_id", "item_id", "part"])
    events = events.assign(event_type="buy", timestamp=START + pd.to_timedelta(events.pop("day"), unit="D"))
    catalogue = pd.DataFrame({"item_id": range(4), "title": "x", "created_at": CREATED}).assign(**items)
    return Dataset.from_frames(events, catalogue, as_of="2024-01-10", split_column=split_column)


def config(exclude_seen: bool = True) -> Config:
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}, "window_days": 2}
    return parse_config({"data": data, "rules": {"exclude_seen": exclude_seen}})


def day(moment: int) -> float:
    return float((moment - START.value // 1000) / DAY_US)


def test_what_was_known_and_what_was_taken_next_of_windows_of_two_days() -> None:
    data = dataset()
    windows = cut(data, config())
    first, second, tonight = (Moment.of(data, windows, window) for window in (1, 2, 3))
    assert [len(moment.histories.item_pos) for moment in (first, second, tonight)] == [4, 6, 8]
    assert [round(day(moment.histories.as_of), 6) for moment in (first, second, tonight)] == [3, 5, 9]
    assert first.targets.toarray().tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]
    assert second.targets.toarray().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert tonight.targets.nnz == 0
    assert [moment.exists.tolist()[3] for moment in (first, second, tonight)] == [False, False, True]


def test_what_was_taken_before_is_withdrawn_or_came_later_does_not_count() -> None:
    data = dataset(available=[True, True, False, True])
    first, second = (Moment.of(data, cut(data, config()), window) for window in (1, 2))
    assert first.is_eligible.tolist() == [True, True, False, False]
    assert first.countable(config(exclude_seen=False)).toarray().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert first.countable(config()).nnz == 0
    assert second.countable(config()).nnz == 0  # item 3 came on day 6, within the window


@pytest.mark.parametrize(("window", "n_known", "until"), [(1, 3, 4), (2, 5, 5), (3, 8, 7)])
def test_windows_of_a_column_begin_just_after_the_last_event_that_is_known(
    window: int, n_known: int, until: int
) -> None:
    data = dataset("part")
    moment = Moment.of(data, cut(data, config()), window)
    assert len(moment.histories.item_pos) == n_known
    assert moment.histories.as_of == START.value // 1000 + until * DAY_US + 1
    taken = {1: [[1, 1, 0, 0], [0, 0, 0, 0]], 2: [[0, 0, 0, 1], [1, 0, 1, 0]], 3: np.zeros((2, 4)).tolist()}
    assert moment.targets.toarray().tolist() == taken[window]


def test_what_users_hid_is_of_the_window_that_its_column_names() -> None:
    """User 0 hides item 3, a target of the report, on day 1 as of the test part, and item 1 on day 4 as of none."""
    rows = [(1, 0, 3, "test"), (4, 0, 1, ""), (5, 1, 3, "train"), (5, 1, 2, "valid")]
    events = pd.DataFrame(EVENTS + rows, columns=["day", "user_id", "item_id", "part"])
    events["event_type"] = ["buy"] * len(EVENTS) + ["hide"] * len(rows)
    events["timestamp"] = START + pd.to_timedelta(events.pop("day"), unit="D")
    items = pd.DataFrame({"item_id": range(4), "title": "x"})
    data = Dataset.from_frames(events, items, event_weights={"buy": 1}, as_of="2024-01-10", split_column="part")
    data = data.under(RulesConfig(hidden_by=("hide",)))

    def hidden(moment: Moment) -> list[tuple[int, int]]:
        found = moment.histories.hidden
        assert found is not None
        return list(zip(found.user_pos.tolist(), found.item_pos.tolist(), strict=True))

    windows = cut(data, config())
    assert hidden(Moment.of(data, windows, 1)) == [(0, 1)]  # that of day 5 is after day 4, the last that is known
    assert hidden(Moment.of(data, windows, 2)) == [(0, 1), (1, 2), (1, 3)]
    assert hidden(Moment.of(data, windows, 3)) == [(0, 3), (0, 1), (1, 2), (1, 3)]
    assert Moment.of(data, windows, 2).countable(config(exclude_seen=False)).toarray().tolist() == [
        [0, 0, 0, 1],
        [1, 0, 0, 0],
    ]
    known, left = without_report(data, windows)
    assert known.hidden["item"].tolist() == [1, 2, 3]
    assert hidden(Moment.of(known, left, 1)) == [(0, 1)]

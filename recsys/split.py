"""Cuts events into three windows of time: towers learn, the ranker learns, we report."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.errors import DataError
from recsys.types import IntArray

DAY_US = 86_400_000_000  # microseconds of a day
NAMES = ("towers learn", "ranker's labels", "report")


@dataclass(frozen=True)
class Windows:
    """Where each event falls.

    Args:
        window: 0 towers learn, 1 ranker's labels, 2 report, (n_events,) int8.
        starts: when windows 1 and 2 begin, int64 microseconds UTC.
        end: when window 2 ends.
    """

    window: IntArray
    starts: tuple[int, int]
    end: int

    @property
    def report(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        """When window 2 begins and ends."""
        start, end = (pd.Timestamp(moment, unit="us", tz="UTC") for moment in (self.starts[1], self.end))
        return start, end


def split_by_time(timestamp: IntArray, end: int, *, share: float = 0.1, days: float | None = None) -> Windows:
    """Windows by global cuts; events of one moment are never on both sides of a cut.

    Args:
        timestamp: (n_events,) int64 microseconds UTC, all before `end`, in any order.
        share: of the events in each of the two later windows.
        days: length of each of the two later windows, instead of a share; counted back from the last event
            where that is before `end`.

    Raises:
        DataError: a window is empty.
    """
    if not len(timestamp):
        raise DataError("events: none is a label before as_of; check data.event_weights and --as-of")
    if days is None:
        n = len(timestamp)
        at = [min(n - 1, int(np.ceil(n * (1 - part * share)))) for part in (2, 1)]
        t1, t2 = map(int, np.partition(timestamp, at)[at])
    else:
        last = min(end, int(timestamp.max()) + 1)
        t1, t2 = (last - int(part * days * DAY_US) for part in (2, 1))
    window = (timestamp >= t1).astype(np.int8) + (timestamp >= t2).astype(np.int8)
    return _checked(
        Windows(window, (t1, t2), end),
        "set another data.window_share (a larger one where many events bear one moment) or data.window_days",
    )


def split_by_column(split: IntArray, timestamp: IntArray) -> Windows:
    """Windows as a column names them (0 train, 1 valid, 2 test); `starts` are each label's first moment.

    Args:
        split: the label of each event, (n_events,) int8.
        timestamp: (n_events,) int64 microseconds UTC, in any order.

    Raises:
        DataError: a label has no event.
    """
    starts = [int(timestamp[split == label].min()) if (split == label).any() else 0 for label in (1, 2)]
    end = int(timestamp.max()) + 1 if len(timestamp) else 0
    windows = Windows(split.astype(np.int8), (starts[0], starts[1]), end)
    return _checked(windows, "label events of all three in data.split_column, or unset it to cut by time")


def _checked(windows: Windows, remedy: str) -> Windows:
    counts = np.bincount(windows.window, minlength=3)
    if (counts == 0).any():
        empty = NAMES[int(np.flatnonzero(counts == 0)[0])]
        raise DataError(
            f"events: the window '{empty}' holds none of {len(windows.window)} labelled events "
            f"(windows: {', '.join(f'{n} {c}' for n, c in zip(NAMES, counts, strict=True))}); "
            f"{remedy}, or bring more data"
        )
    return windows

"""Rows that cannot be trusted: which, why, and when there are too many of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recsys.errors import DataError, shown
from recsys.types import BoolArray

PLACES = ["_file", "_row"]
NO_NUMBER = "unreadable number"
READ_AS = {
    NO_NUMBER: "numbers are read like 14.95, without a currency",
    "unreadable time": "times are read as ISO 8601, like 2026-04-01T05:13:25Z",
    "neither true nor false": "flags are read as true, t, yes, y, 1 and false, f, no, n, 0",
}
"""What would have been read, by reason."""


class TooManyBadError(DataError):
    """More rows are bad than `data.max_bad_share` allows; `quarantine` holds them all, as `Refused.rows`."""

    def __init__(self, message: str, quarantine: pd.DataFrame) -> None:
        super().__init__(message)
        self.quarantine = quarantine


@dataclass(frozen=True)
class Checked:
    """A table after its checks: good rows, refused ones, and how many there were."""

    name: str
    kept: pd.DataFrame
    quarantine: pd.DataFrame
    n_rows: int
    n_duplicates: int = 0
    n_later: int = 0

    def refuse_too_many(self, max_bad_share: float, of_all: pd.DataFrame | None = None) -> None:
        """Stops the run where a larger share of rows is bad; `of_all` are refused rows of all tables, for the error.

        Raises:
            TooManyBadError: naming file, row, column, value, reason and remedy of the first.
        """
        n_bad = len(self.quarantine)
        if n_bad > max_bad_share * self.n_rows:
            first = self.quarantine.iloc[0]
            raise TooManyBadError(
                f"{first['file']}: {n_bad:,} of {self.n_rows:,} {self.name} rows are bad ({n_bad / self.n_rows:.2%}, "
                f"limit {max_bad_share:.2%}); first: row {first['row']}, column {first['column']}, "
                f"value {first['value']}: {first['reason']} (rows count from 0 in each file, without a header); "
                + "".join(f"{form}; " for reason, form in READ_AS.items() if reason == first["reason"])
                + "mend the export"
                + ", or raise data.max_bad_share if this is as it should be" * (n_bad < self.n_rows),
                self.quarantine if of_all is None else of_all,
            )


class Refused:
    """Collects refused rows of a table as read; the first reason of a row counts."""

    def __init__(self, table: str, frame: pd.DataFrame) -> None:
        self.table, self.frame = table, frame
        self.mask = np.zeros(len(frame), dtype=bool)
        self.reason = np.full(len(frame), "", dtype=object)
        self.column = np.full(len(frame), "", dtype=object)

    def add(self, column: str, is_bad: BoolArray, reason: str) -> None:
        """Refuses rows, (n_rows,), that were not refused before."""
        fresh = is_bad & ~self.mask
        self.reason[fresh], self.column[fresh] = reason, column
        self.mask |= fresh

    def rows(self) -> pd.DataFrame:
        """Refused rows as table, file, row (from 0 in its file), column, value, reason."""
        at = np.flatnonzero(self.mask)
        columns = {
            "table": self.table,
            "file": self.frame["_file"].iloc[at].astype("str").to_numpy(),
            "row": self.frame["_row"].to_numpy(dtype=np.int64)[at],
            "column": self.column[at].astype(str),
            "value": [_told(self.frame[c].iloc[i]) for c, i in zip(self.column[at], at, strict=True)],
            "reason": self.reason[at].astype(str),
        }
        return pd.DataFrame(columns)


def _told(value: Any) -> str:
    """A value as it may stand in a message; what is missing is no text 'nan'."""
    return "null" if pd.api.types.is_scalar(value) and pd.isna(value) else shown(value)


def with_places(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame that says where each row came from, as `read_table` writes it."""
    frame = frame.reset_index(drop=True)
    return frame if "_file" in frame else frame.assign(_file="frame", _row=np.arange(len(frame)))


def place_of(frame: pd.DataFrame, table: str) -> str:
    """The file of a table, for messages."""
    return f"{frame['_file'].iloc[0]}" if "_file" in frame and len(frame) else f"{table} frame"

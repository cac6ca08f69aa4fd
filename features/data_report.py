"""What came through the door and what did not, for people and for JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recsys.errors import shown
from recsys.types import IntArray


@dataclass(frozen=True)
class DataReport:
    """Counts and shares of one reading of the tables.

    Args:
        n_events_read, n_items_read: rows in the files.
        n_after_as_of: events at or after as-of.
        n_duplicates, n_duplicate_items: repeated rows, each counted once less.
        event_types: rows kept, by type that is a label.
        ignored_types: rows of types that are no labels.
        quarantined: refused rows of all tables, by reason.
        events_per_user, events_per_item: median, p90 and max.
        items_with: share of items where a text column, a price or a date of entry is there.
        text_lengths: median and p90 of the lengths of non-empty titles and descriptions, in characters.
        null_shares: share of nulls by column of the good event rows, repeated ones too, where there are any; of the columns
            that we know how to use.
        n_unavailable: items that may not be recommended.
        n_impressions: rows of that table, where it was read.
        absent_labels: types named in `data.event_weights` that no row kept has, each with the type that is no label and
            nearest to it by name, or None.
    """

    n_events_read: int
    n_events: int
    n_items_read: int
    n_items: int
    n_users: int
    n_after_as_of: int
    n_duplicates: int
    n_duplicate_items: int
    event_types: dict[str, int]
    ignored_types: dict[str, int]
    quarantined: dict[str, int]
    first_event: str
    last_event: str
    age_of_newest_hours: float
    events_per_user: dict[str, float]
    events_per_item: dict[str, float]
    items_with: dict[str, float]
    text_lengths: dict[str, dict[str, float]]
    null_shares: dict[str, float]
    n_unavailable: int
    n_impressions: int | None = None
    absent_labels: dict[str, str | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def render(self, console: Console) -> None:
        """The report as a table for people."""
        table = Table(title="data", title_justify="left", show_header=False)
        table.add_row("events", f"{self.n_events:,} of {self.n_events_read:,} rows read")
        table.add_row("event types", _counts(self.event_types))
        if self.ignored_types:
            table.add_row("types that are no labels", _counts(self.ignored_types))
        if self.absent_labels:
            table.add_row("labels that never occur", ", ".join(_absent(*pair) for pair in self.absent_labels.items()))
        withdrawn = f", {self.n_unavailable:,} not available" if self.n_unavailable else ""
        table.add_row("users, items", f"{self.n_users:,} users, {self.n_items:,} items{withdrawn}")
        table.add_row("time", f"{self.first_event} to {self.last_event}, newest {_age(self.age_of_newest_hours)} old")
        for name, values in (("events per user", self.events_per_user), ("events per item", self.events_per_item)):
            table.add_row(name, _numbers(values))
        table.add_row("items with", ", ".join(f"{k} {v:.1%}" for k, v in self.items_with.items()))
        for column, lengths in self.text_lengths.items():
            table.add_row(f"{column} length", f"{_numbers(lengths)} characters")
        if self.null_shares:
            table.add_row("nulls in events", ", ".join(f"{_name(k)} {v:.1%}" for k, v in self.null_shares.items()))
        repeated = f"{self.n_duplicates:,} duplicate events, {self.n_duplicate_items:,} duplicate items"
        if self.n_impressions is not None:
            table.add_row("impressions", f"{self.n_impressions:,} items shown")
        table.add_row("not read", f"{self.n_after_as_of:,} events after as-of, {repeated}")
        table.add_row("quarantined", _counts(self.quarantined) or "none")
        console.print(table)


def per_id(counts: IntArray) -> dict[str, float]:
    """Median, p90 and max of the rows per id, (n_ids,) counts."""
    return {"median": float(np.median(counts)), "p90": float(np.quantile(counts, 0.9)), "max": float(counts.max())}


def lengths_of(texts: pd.Series) -> dict[str, float]:
    """Median and p90 of the lengths of non-empty texts, in characters; 0 where all are empty."""
    lengths = texts.str.len()
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return {"median": 0.0, "p90": 0.0}
    return {"median": float(lengths.median()), "p90": float(lengths.quantile(0.9))}


def _age(hours: float) -> str:
    """Hours while they tell something, then days.

    >>> _age(26.25), _age(71651.8)
    ('26.2 h', '2,985 days')
    """
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{_name(k)} {v:,}" for k, v in counts.items())


def _absent(label: str, near: str | None) -> str:
    return f"'{_name(label)}'" + (f" (did you mean '{_name(near)}'?)" if near else "")


def _numbers(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in values.items())


def _name(text: str) -> str:
    """Names come out of the data: no markup, no control characters."""
    return escape(shown(text)[1:-1])

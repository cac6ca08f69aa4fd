"""A data set as arrays: what every later stage sees."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from features.ingest import Tables, clean_tables
from recsys.config import DataConfig
from recsys.errors import DataError, shown
from recsys.ids import IdMap
from recsys.schema import EVENTS, nearest, require_columns
from recsys.types import BoolArray, FloatArray, IntArray

SPLITS = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Dataset:
    """Positive events and the catalogue, as of a moment.

    Args:
        users, items: outside ids of the positions; items are all rows of the items table.
        catalogue: one row per item position, in the contract's columns.
        user_pos, item_pos: (n_events,) int32, ordered by time, then user, then item.
        timestamp: (n_events,) int64 microseconds UTC, all before `as_of`.
        weight: (n_events,) float32, label weight of the type times the row's own weight.
        split: (n_events,) int8 0 train, 1 valid, 2 test, where a column says so.
        price: (n_events,) float32 price of one as paid, nan where not given; None without such a column.
        available: True where the item may be recommended, (n_items,).
        as_of: the moment of knowledge.
        sha256: of the tables it came from.
    """

    users: IdMap
    items: IdMap
    catalogue: pd.DataFrame
    user_pos: IntArray
    item_pos: IntArray
    timestamp: IntArray
    weight: FloatArray
    split: IntArray | None
    price: FloatArray | None
    available: BoolArray
    as_of: pd.Timestamp
    sha256: str

    @classmethod
    def from_frames(
        cls,
        events: pd.DataFrame,
        items: pd.DataFrame,
        *,
        event_weights: dict[str, float] | None = None,
        as_of: pd.Timestamp | None = None,
        users: pd.DataFrame | None = None,
    ) -> "Dataset":
        """A data set from frames in the contract's columns, checked like files are.

        Args:
            event_weights: labels and their weights; every type counts 1 by default.
            as_of: events at or after it are left out; just after the last event by default. Times without
                a zone are UTC.
            users: checked along with the others.

        Raises:
            DataError: a column is missing, or too many rows are bad.
        """
        if as_of is not None:
            as_of = as_of.tz_localize("UTC") if as_of.tzinfo is None else as_of.tz_convert("UTC")
        require_columns(EVENTS, map(str, events.columns), "events frame")
        weights = event_weights or {str(t): 1.0 for t in events["event_type"].dropna().unique()}
        config = DataConfig(events="frame", items="frame", event_weights=weights, timezone="UTC")
        tables = clean_tables(events, items, config, as_of, users)
        return cls.from_tables(tables, config, as_of or tables.events["timestamp"].max() + pd.Timedelta("1us"))

    @classmethod
    def from_tables(cls, tables: Tables, config: DataConfig, as_of: pd.Timestamp) -> "Dataset":
        """A data set from checked tables; event types without a weight are left out.

        Raises:
            DataError: the split column is missing or holds something else than train, valid and test.
        """
        weight = tables.events["event_type"].map(config.event_weights).to_numpy(dtype=np.float32, na_value=0)
        if "weight" in tables.events:
            weight = weight * tables.events["weight"].to_numpy(dtype=np.float32)
        events, weight = tables.events[weight > 0], weight[weight > 0]
        users, items = IdMap.from_values(events["user_id"]), IdMap.from_values(tables.items["item_id"])
        user_pos, item_pos = users.positions(events["user_id"]), items.positions(events["item_id"])
        timestamp = events["timestamp"].astype("int64").to_numpy()
        order = np.lexsort((item_pos, user_pos, timestamp))
        split = _split_codes(events, config.split_column) if config.split_column else None
        price = events["price"].to_numpy(dtype=np.float32) if "price" in events else None
        n_items = len(items)
        available = (
            tables.items["available"].to_numpy(dtype=bool) if "available" in tables.items else np.ones(n_items, bool)
        )
        return cls(
            users, items, tables.items,
            user_pos[order].astype(np.int32), item_pos[order].astype(np.int32), timestamp[order], weight[order],
            None if split is None else split[order], None if price is None else price[order],
            available, as_of, tables.sha256,
        )  # fmt: skip

    def before(self, moment: pd.Timestamp) -> "Dataset":
        """The same with only the events before a moment; users, items and `sha256` stay as they are."""
        n = int(np.searchsorted(self.timestamp, -(-moment.value // 1000)))
        return replace(
            self,
            user_pos=self.user_pos[:n],
            item_pos=self.item_pos[:n],
            timestamp=self.timestamp[:n],
            weight=self.weight[:n],
            split=None if self.split is None else self.split[:n],
            price=None if self.price is None else self.price[:n],
            as_of=min(self.as_of, moment),
        )


def _split_codes(events: pd.DataFrame, column: str) -> IntArray:
    if column not in events:
        near = nearest(column, map(str, events.columns))
        raise DataError(
            f"events: no column {shown(column)}, which data.split_column names; "
            + (f"did you mean {near}?" if near else "take the setting out, or add the column")
        )
    codes = events[column].map(SPLITS)
    if codes.isna().any():
        wrong = events.loc[codes.isna(), column]
        raise DataError(
            f"events: {column} holds {shown(wrong.iloc[0])} in {len(wrong):,} rows; expected train, valid or test; "
            "mend the export, or take data.split_column out"
        )
    return codes.to_numpy(dtype=np.int8)

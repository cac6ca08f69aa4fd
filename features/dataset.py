"""A data set as arrays: what every later stage sees."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.ingest import Tables, clean_tables
from recsys.config import DataConfig
from recsys.errors import DataError, shown
from recsys.ids import IdMap
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
    ) -> "Dataset":
        """A data set from frames in the contract's columns, checked like files are.

        Args:
            event_weights: labels and their weights; every type counts 1 by default.
            as_of: events at or after it are left out; just after the last event by default.
        """
        weights = event_weights or {str(t): 1.0 for t in events["event_type"].unique()}
        config = DataConfig(events="frame", items="frame", event_weights=weights, timezone="UTC")
        tables = clean_tables(events, items, config, as_of)
        return cls.from_tables(tables, config, as_of or tables.events["timestamp"].max() + pd.Timedelta("1us"))

    @classmethod
    def from_tables(cls, tables: Tables, config: DataConfig, as_of: pd.Timestamp) -> "Dataset":
        """A data set from checked tables; event types without a weight are left out."""
        events = tables.events[tables.events["event_type"].isin(list(config.event_weights))]
        users, items = IdMap.from_values(events["user_id"]), IdMap.from_values(tables.items["item_id"])
        user_pos, item_pos = users.positions(events["user_id"]), items.positions(events["item_id"])
        weight = events["event_type"].map(config.event_weights).to_numpy(dtype=np.float32)
        if "weight" in events:
            weight = weight * events["weight"].to_numpy(dtype=np.float32)
        timestamp = events["timestamp"].astype("int64").to_numpy()
        keep = weight > 0
        order = np.lexsort((item_pos, user_pos, timestamp))
        order = order[keep[order]]
        split = _split_codes(events[config.split_column], config.split_column) if config.split_column else None
        catalogue = tables.items
        available = catalogue["available"].fillna(True).to_numpy(dtype=bool) if "available" in catalogue else None
        return cls(
            users, items, catalogue,
            user_pos[order].astype(np.int32), item_pos[order].astype(np.int32), timestamp[order], weight[order],
            None if split is None else split[order],
            np.ones(len(items), dtype=bool) if available is None else available,
            as_of, tables.sha256,
        )  # fmt: skip


def _split_codes(labels: pd.Series, column: str) -> IntArray:
    codes = labels.map(SPLITS)
    if codes.isna().any():
        wrong = labels[codes.isna()].iloc[0]
        raise DataError(f"events: {column} holds {shown(wrong)}; expected train, valid or test")
    return codes.to_numpy(dtype=np.int8)

"""What both arms of a comparison are judged by: events of a window, and what was known before it."""

from dataclasses import dataclass

import pandas as pd

from features.impressions import load_impressions
from features.ingest import load_tables
from recsys.config import Config
from recsys.errors import DataError


@dataclass(frozen=True)
class Window:
    """Labels count from `start`, before `end`; or those a split column names. `users` are the ones judged, or all."""

    start: pd.Timestamp
    end: pd.Timestamp
    by_column: bool = False
    users: pd.Index | None = None


@dataclass(frozen=True)
class Judges:
    """Tables of a comparison.

    Args:
        labels: positive events of the window that an arm could have recommended.
        history: positive events before it.
        items: the catalogue; users, impressions: None where the config names no such table.
    """

    labels: pd.DataFrame
    history: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame | None
    impressions: pd.DataFrame | None


def judges(config: Config, window: Window) -> Judges:
    """Reads the tables; nothing at or after the end of the window is kept.

    Raises:
        DataError: no label is there, or a table is not as it must be.
    """
    tables = load_tables(config.data, window.end)
    events = tables.events[tables.events["event_type"].isin(list(config.data.event_weights))]
    if window.by_column:
        is_label = events[config.data.split_column] == "test"
        # an order, not times: the checks of time do not apply, so they are shown as unknown
        labels, history = (part.drop(columns="timestamp") for part in (events[is_label], events[~is_label]))
    else:
        labels, history = events[events["timestamp"] >= window.start], events[events["timestamp"] < window.start]
    if window.users is not None:  # evaluations sample users where there are very many
        labels = labels[labels["user_id"].isin(window.users)]
    if config.rules.exclude_seen:
        keys = pd.MultiIndex.from_frame(history[["user_id", "item_id"]])
        labels = labels[~pd.MultiIndex.from_frame(labels[["user_id", "item_id"]]).isin(keys)]
    if labels.empty:
        raise DataError(
            f"events: no label from {window.start} to {window.end}; bring later events, or set --test-start and --as-of"
        )
    impressions = load_impressions(config.data, tables.events, window.end)
    return Judges(labels, history, tables.items, tables.users, impressions)

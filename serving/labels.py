"""What both arms of a comparison are judged by: events of a window, and what was known before it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.clean import ids_like
from features.impressions import load_impressions
from features.ingest import load_tables
from recsys.config import Config
from recsys.errors import DataError
from recsys.ids import IdMap
from recsys.types import BoolArray
from serving.report.world import positive, sold


@dataclass(frozen=True)
class Window:
    """Labels count from `start`, before `end`; or those a split column names. `users` are those of versions' evaluations, or all."""

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
        hidden: user_id and item_id of what users took out of their own lists before it.
        items: the catalogue; users, impressions: None where the config names no such table.
        filters: what counts as a label, in sentences for the page.
    """

    labels: pd.DataFrame
    history: pd.DataFrame
    hidden: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame | None
    impressions: pd.DataFrame | None
    filters: tuple[str, ...]


def judges(config: Config, window: Window) -> Judges:
    """Reads the tables; nothing at or after the end of the window is kept.

    Raises:
        DataError: no label is there, or a table is not as it must be.
    """
    tables = load_tables(config.data, window.end)
    events = positive(tables.events[tables.events["event_type"].isin(list(config.data.event_weights))])
    hides = tables.events[tables.events["event_type"].isin(config.rules.hidden_by)]
    if window.by_column:
        is_label = events[config.data.split_column] == "test"
        # an order, not times: the checks of time do not apply, so they are shown as unknown
        is_early = (hides["timestamp"] <= events["timestamp"][~is_label].max()) & (
            hides[config.data.split_column] != "test"
        )
        labels, history = (part.drop(columns="timestamp") for part in (events[is_label], events[~is_label]))
    else:
        labels, history = events[events["timestamp"] >= window.start], events[events["timestamp"] < window.start]
        is_early = hides["timestamp"] < window.start
    filters = [f"labels are events of type {', '.join(config.data.event_weights)}"]
    if window.users is not None:  # evaluations sample users where there are very many
        labels = labels[labels["user_id"].isin(window.users)]
        filters.append(f"users are the {len(window.users):,} that the versions' evaluations drew")
    if config.rules.exclude_seen:
        seen_by = config.rules.seen_by
        is_seen = among(labels, history[history["event_type"].isin(seen_by)] if seen_by else history)
        labels = labels[~is_seen]
        took = f"acted on before by {' or '.join(seen_by)}" if seen_by else "took before the window"
        filters.append(f"what a user {took} is no label ({is_seen.sum():,} events left out)")
    else:
        filters.append("what a user takes again is a label too")
    hidden = hides.loc[is_early, ["user_id", "item_id"]]
    if config.rules.hidden_by:
        is_hidden = among(labels, hidden)
        labels = labels[~is_hidden]
        filters.append(f"what a user hid before the window is no label ({is_hidden.sum():,} events left out)")
    if "created_at" in tables.items and not window.by_column:
        is_late = (tables.items["created_at"] >= window.start) & ~tables.items["item_id"].isin(sold(history))
        young = tables.items["item_id"][is_late]
        is_young = labels["item_id"].isin(young)
        labels = labels[~is_young]
        filters.append(f"an item made in the window is no label, as no arm may list it ({is_young.sum():,} left out)")
    if window.users is not None and "available" in tables.items:
        # as in evaluations, whose lists hold none; a table may have been made while it was there
        is_gone = labels["item_id"].isin(tables.items["item_id"][~tables.items["available"]])
        labels = labels[~is_gone]
        filters.append(f"an item that is withdrawn by now is no label ({is_gone.sum():,} left out)")
    if config.rules.blocked:
        is_out = is_blocked(labels["item_id"], config)
        labels = labels[~is_out]
        filters.append(f"an item that rules.blocked names is no label ({is_out.sum():,} left out)")
    if labels.empty:
        raise DataError(
            f"events: no label from {window.start} to {window.end}; bring later events, or set --test-start and --as-of"
        )
    users = tables.users
    if users is not None:
        users = users.assign(user_id=ids_like(users["user_id"], tables.events["user_id"]))
    impressions = load_impressions(config.data, tables.events["user_id"], tables.items["item_id"], window.end)
    return Judges(labels, history, hidden, tables.items, users, impressions, tuple(filters))


def among(rows: pd.DataFrame, others: pd.DataFrame) -> BoolArray:
    """Which rows are of a user and an item that are together in a row of another frame, (n_rows,)."""
    if others.empty:  # keys of millions of rows take seconds
        return np.zeros(len(rows), dtype=bool)
    keys = [pd.MultiIndex.from_frame(frame[["user_id", "item_id"]]) for frame in (rows, others)]
    return np.asarray(keys[0].isin(keys[1]))


def is_blocked(ids: pd.Series, config: Config) -> BoolArray:
    """Which of the items this run's rules block, (n,), whether ids are numbers or texts."""
    known = IdMap.from_values(ids)
    return np.isin(known.positions(ids), known.positions(config.rules.blocked))

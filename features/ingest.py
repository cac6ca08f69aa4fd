"""The door: reads the tables, checks every row, quarantines the bad ones, and says what it saw."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.clean import (
    EARLIEST,
    LATEST,
    clean_flags,
    clean_ids,
    clean_numbers,
    clean_texts,
    has_control,
    is_bad_id,
    settled_ids,
    utc_times,
)
from features.data_report import DataReport, lengths_of, per_id
from features.quarantine import PLACES, Checked, Refused, place_of, with_places
from features.read import read_table
from recsys.config import DataConfig
from recsys.errors import DataError, shown
from recsys.schema import EVENTS, ITEMS, USERS, require_columns
from recsys.types import IntArray

__all__ = ["DataReport", "Tables", "clean_tables", "load_tables"]

TEXTS = ("title", "description", "brand", "category", "tags", "language")
NUMBERS = ("quantity", "price", "rating")


@dataclass(frozen=True)
class Tables:
    """Clean tables in the contract's columns.

    Args:
        events: ordered by time, user, item, type; labels and other types alike.
        items, users: ordered by id; users is None where there is no such table.
        quarantine: refused rows as table, file, row (from 0 in its file), column, value, reason.
        report: what was seen.
        sha256: of events, items and users; the same rows in any order give the same.
    """

    events: pd.DataFrame
    items: pd.DataFrame
    quarantine: pd.DataFrame
    report: DataReport
    sha256: str
    users: pd.DataFrame | None = None


def load_tables(config: DataConfig, as_of: pd.Timestamp | None = None) -> Tables:
    """Reads and checks the tables; nothing at or after `as_of` is kept.

    Raises:
        DataError: a file is missing or broken, a column is missing, times carry no zone, or more than
            `max_bad_share` of a table's rows are bad.
    """
    events = read_table(config.events, EVENTS, config)
    items = read_table(config.items, ITEMS, config)
    users = read_table(config.users, USERS, config) if config.users else None
    return clean_tables(events, items, config, as_of, users)


def clean_tables(
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: DataConfig,
    as_of: pd.Timestamp | None = None,
    users: pd.DataFrame | None = None,
) -> Tables:
    """Checks frames in the contract's columns; see `load_tables`. The inputs are not changed."""
    now = LATEST if as_of is None else as_of
    for frame, schema in ((events, EVENTS), (items, ITEMS), *([] if users is None else [(users, USERS)])):
        require_columns(schema, map(str, frame.columns), place_of(frame, schema.name))
        if not len(frame):
            raise DataError(f"data.{schema.name}: the table has no rows; check the export that writes it")
    items_seen = _clean_items(items, config)
    users_seen = None if users is None else _clean_once(with_places(users), "users", "user_id")
    events_seen = _clean_events(events, items_seen.kept["item_id"], config, now)
    seen = [s for s in (items_seen, users_seen, events_seen) if s is not None]
    for checked in seen:
        checked.refuse_too_many(config.max_bad_share)
    catalogue = items_seen.kept
    if "created_at" in catalogue:
        catalogue = catalogue[~(catalogue["created_at"] >= now)].reset_index(drop=True)
    kept = events_seen.kept[events_seen.kept["item_id"].isin(catalogue["item_id"])]
    sorted_events = _once_in_order(kept)
    quarantine = pd.concat([s.quarantine for s in seen], ignore_index=True)
    report = _report(
        sorted_events, catalogue, config, now, quarantine,
        n_events_read=len(events), n_items_read=len(items), n_duplicate_items=items_seen.n_duplicates,
        n_after_as_of=events_seen.n_later + len(events_seen.kept) - len(kept),
        n_duplicates=len(kept) - len(sorted_events),
    )  # fmt: skip
    known_users = None if users_seen is None else users_seen.kept
    sha256 = _fingerprint(sorted_events, catalogue, *([] if known_users is None else [known_users]))
    return Tables(sorted_events, catalogue, quarantine, report, sha256, known_users)


def _clean_once(raw: pd.DataFrame, table: str, key: str, refused: Refused | None = None) -> Checked:
    """Rows with a good id, each id once; a row that repeats another in full is no error."""
    refused = refused or Refused(table, raw)
    ids = clean_ids(raw[key], place_of(raw, table))
    frame = raw.drop(columns=PLACES).assign(**{key: ids})
    refused.add(key, is_bad_id(ids), "null, blank or overlong id")
    refused.add(key, has_control(ids), "control character in the id")
    same = pd.DataFrame({"id": ids, "hash": _row_hashes(frame)}).duplicated().to_numpy() & ~refused.mask
    good = pd.Series(~refused.mask & ~same)
    refused.add(key, ids[good].duplicated().reindex(ids.index, fill_value=False).to_numpy(), "id is there already")
    kept = frame[~refused.mask & ~same]
    kept = kept.assign(**{key: settled_ids(kept[key])}).sort_values(key, kind="stable", ignore_index=True)
    return Checked(table, kept, refused.rows(), len(raw), int(same.sum()))


def _clean_items(items: pd.DataFrame, config: DataConfig) -> Checked:
    raw = with_places(items)
    refused = Refused("items", raw)
    clean = raw.copy()
    if "available" in raw:
        clean["available"], is_bad = clean_flags(raw["available"])
        refused.add("available", is_bad, "neither true nor false")
    if "created_at" in raw:
        clean["created_at"] = utc_times(raw["created_at"], config.timezone, place_of(raw, "items"))
    if "price" in raw:
        clean["price"] = clean_numbers(raw["price"])
    for column in (c for c in TEXTS if c in raw):
        clean[column] = clean_texts(raw[column])
    return _clean_once(clean, "items", "item_id", refused)


def _clean_events(events: pd.DataFrame, known: pd.Series, config: DataConfig, now: pd.Timestamp) -> Checked:
    """Good rows before `now`; rows of the future are counted and not even checked."""
    raw = with_places(events)
    place = place_of(raw, "events")
    times = utc_times(raw["timestamp"], config.timezone, place)
    is_later = ((times >= now) & (times < LATEST)).to_numpy(dtype=bool)
    n_rows = len(raw)
    raw, times = raw[~is_later].reset_index(drop=True), times[~is_later].reset_index(drop=True)
    clean = raw.assign(timestamp=times, user_id=clean_ids(raw["user_id"], place))
    ids = clean_ids(raw["item_id"], place)
    as_text = pd.api.types.is_integer_dtype(ids.dtype) != pd.api.types.is_integer_dtype(known.dtype)
    is_known = ids.astype("str").isin(known.astype("str")) if as_text else ids.isin(known)
    refused = Refused("events", raw)
    refused.add("user_id", is_bad_id(clean["user_id"]), "null, blank or overlong id")
    refused.add("item_id", is_bad_id(ids), "null, blank or overlong id")
    refused.add("user_id", has_control(clean["user_id"]), "control character in the id")
    refused.add("item_id", has_control(ids), "control character in the id")
    refused.add("timestamp", times.isna().to_numpy(), "unreadable time")
    refused.add("timestamp", ((times < EARLIEST) | (times >= LATEST)).to_numpy(), "time out of range")
    refused.add("item_id", ~is_known.to_numpy(dtype=bool), "item is not in the items table")
    if "weight" in raw:
        clean["weight"] = clean_numbers(raw["weight"])
        is_weight = np.isfinite(clean["weight"]) & (clean["weight"] >= 0)
        refused.add("weight", ~is_weight.to_numpy(), "weight is no number from 0 up")
    for column in (c for c in NUMBERS if c in raw):
        clean[column] = clean_numbers(raw[column])
    kept = clean[~refused.mask].drop(columns=PLACES)
    kept["user_id"] = settled_ids(kept["user_id"])
    kept["item_id"] = settled_ids(ids[~refused.mask]).astype(known.dtype)
    kept["event_type"] = kept["event_type"].astype("str").fillna("")
    return Checked("events", kept, refused.rows(), n_rows, n_later=int(is_later.sum()))


def _once_in_order(events: pd.DataFrame) -> pd.DataFrame:
    """Events by time, user, item and type, repeats left out; what stays does not depend on the order."""
    ranks = [pd.factorize(events[c], sort=True)[0] for c in ("event_type", "item_id", "user_id")]
    order = np.lexsort([_row_hashes(events), *ranks, events["timestamp"].astype("int64").to_numpy()])
    keys = ["user_id", "item_id", "event_type", "timestamp", "basket_id", "session_id"]
    return events.iloc[order].drop_duplicates([c for c in keys if c in events], ignore_index=True)


def _row_hashes(frame: pd.DataFrame) -> IntArray:
    """One hash a row, (n,) uint64; nested values count as their text."""
    nested = [c for c in frame.columns if pd.api.types.is_object_dtype(frame[c].dtype)]
    flat = frame.assign(**{c: frame[c].map(ascii) for c in nested})
    return pd.util.hash_pandas_object(flat, index=False).to_numpy()


def _fingerprint(*frames: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        frame = frame[sorted(frame.columns)]
        digest.update(repr(list(frame.columns)).encode())
        digest.update(np.sort(_row_hashes(frame)).tobytes())
    return digest.hexdigest()


def _report(
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: DataConfig,
    now: pd.Timestamp,
    quarantine: pd.DataFrame,
    **counts: int,
) -> DataReport:
    types = events["event_type"].value_counts().to_dict()
    labels = {str(k): int(v) for k, v in types.items() if k in config.event_weights}
    if not labels:
        raise DataError(
            f"events: none of {len(events):,} rows before {now:%Y-%m-%d %H:%M} has an event type that is a label "
            f"({', '.join(map(shown, config.event_weights))}); found {', '.join(map(shown, types)) or 'none'}; "
            "mend data.event_weights or --as-of"
        )
    newest = events["timestamp"].max()
    until = min(now, pd.Timestamp.now(tz="UTC"))
    nulls = events.isna().mean()
    return DataReport(
        **counts,
        n_events=len(events), n_items=len(items), n_users=int(events["user_id"].nunique()),
        event_types=labels,
        ignored_types={str(k): int(v) for k, v in types.items() if k not in config.event_weights},
        quarantined={str(k): int(v) for k, v in quarantine["reason"].value_counts().items()},
        first_event=f"{events['timestamp'].min():%Y-%m-%d %H:%M}", last_event=f"{newest:%Y-%m-%d %H:%M}",
        age_of_newest_hours=round((until - newest).total_seconds() / 3600, 1),
        events_per_user=per_id(events["user_id"]), events_per_item=per_id(events["item_id"]),
        items_with={c: float((items[c] != "").mean()) for c in TEXTS if c in items},
        text_lengths={c: lengths_of(items[c]) for c in ("title", "description") if c in items},
        null_shares={str(c): round(float(share), 4) for c, share in nulls.items() if share > 0},
    )  # fmt: skip

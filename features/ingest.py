"""The door: reads the tables, checks every row, quarantines the bad ones, and says what it saw."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

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
    is_blank,
    is_no_number,
    settled_ids,
    utc_times,
)
from features.data_report import DataReport, lengths_of, per_id
from features.events import EventLog, EventWriter
from features.quarantine import NO_NUMBER, PLACES, Checked, Refused, place_of, with_places
from features.read import read_chunks, read_table
from recsys.config import DataConfig
from recsys.errors import DataError, shown
from recsys.ids import IdMap
from recsys.schema import EVENTS, ITEMS, MOST_WEIGHT, USERS, TableSchema, columns_of, nearest, require_columns
from recsys.types import BoolArray, IntArray

TEXTS = ("title", "description", "brand", "category", "tags", "language")
NUMBERS = ("quantity", "price", "rating")


@dataclass(frozen=True)
class Tables:
    """Clean tables in the contract's columns.

    Args:
        log: the events, labels and other types alike.
        items, users: ordered by id; users is None where there is no such table.
        quarantine: refused rows as table, file, row (from 0 in its file), column, value, reason.
        report: what was seen.
        sha256: of events, items and users; the same rows in any order give the same.
        split_column: of the events, where one says which window they belong to.
    """

    log: EventLog
    items: pd.DataFrame
    quarantine: pd.DataFrame
    report: DataReport
    sha256: str
    users: pd.DataFrame | None = None
    split_column: str | None = None

    @cached_property
    def events(self) -> pd.DataFrame:
        """All events as a frame, by time, user, item and type; see `EventLog.frame`."""
        return self.log.frame(split_column=self.split_column)

    def history_of(self, user: object) -> pd.DataFrame:
        """A user's labels as a frame, by time; what they only hid or saw is none."""
        events = self.log.frame([user], self.split_column)
        return events[events["weight"] > 0]


def load_tables(config: DataConfig, as_of: pd.Timestamp | None = None) -> Tables:
    """Reads and checks the tables; nothing at or after `as_of` is kept. Events are read in chunks: they may outgrow memory.

    Raises:
        DataError: a file is missing or broken, a column is missing, times carry no zone, or more than
            `max_bad_share` of a table's rows are bad.
    """
    items = read_table(config.items, ITEMS, config)
    users = read_table(config.users, USERS, config) if config.users else None
    return _checked(read_chunks(config.events, EVENTS, config), items, config, as_of, users)


def clean_tables(
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: DataConfig,
    as_of: pd.Timestamp | None = None,
    users: pd.DataFrame | None = None,
) -> Tables:
    """Checks frames in the contract's columns; see `load_tables`. The inputs are not changed."""
    return _checked([events], items, config, as_of, users)


def _checked(
    chunks: Iterable[pd.DataFrame],
    items: pd.DataFrame,
    config: DataConfig,
    as_of: pd.Timestamp | None,
    users: pd.DataFrame | None,
) -> Tables:
    now = LATEST if as_of is None else as_of
    for frame, schema in ((items, ITEMS), *([] if users is None else [(users, USERS)])):
        require_columns(schema, map(str, frame.columns), place_of(frame, schema.name))
        _require_rows(len(frame), schema)
    items_seen = _clean_items(items, config)
    users_seen = None if users is None else _clean_once(with_places(users), "users", "user_id")
    events_seen = _Events.read(chunks, IdMap.from_values(items_seen.kept["item_id"]), config, now)
    seen = [items_seen, *([] if users_seen is None else [users_seen])]
    quarantine = pd.concat([s.quarantine for s in (*seen, events_seen.checked)], ignore_index=True)
    for checked in (*seen, events_seen.checked):
        checked.refuse_too_many(config.max_bad_share, quarantine)
    log = events_seen.writer.finish(_is_created(items_seen.kept, now))
    catalogue = items_seen.kept[log.items.positions(items_seen.kept["item_id"]) >= 0].reset_index(drop=True)
    report = _report(log, catalogue, config, now, quarantine, events_seen, items_seen)
    known_users = None if users_seen is None else users_seen.kept
    sha256 = _fingerprint(log.sha256, catalogue, *([] if known_users is None else [known_users]))
    return Tables(log, catalogue, quarantine, report, sha256, known_users, config.split_column)


def _require_rows(n_rows: int, schema: TableSchema) -> None:
    if not n_rows:
        raise DataError(f"data.{schema.name}: the table has no rows; check the export that writes it")


@dataclass
class _Events:
    """The events while they are read, chunk by chunk.

    n_nulls: of the good rows, by column; n_good: these rows.
    """

    writer: EventWriter
    checked: Checked
    n_nulls: Counter[str]
    n_good: int

    @classmethod
    def read(cls, chunks: Iterable[pd.DataFrame], items: IdMap, config: DataConfig, now: pd.Timestamp) -> "_Events":
        """All chunks, checked against the ids of all items, those of later too."""
        least = min(config.event_weights.values())  # only their ratios say something: ALS minds the unit of a weight
        weights = {name: weight / least for name, weight in config.event_weights.items()}
        writer = EventWriter(items, weights, config.split_column)
        refused, n_rows, n_later, n_good = [], 0, 0, 0
        n_nulls: Counter[str] = Counter()
        for chunk in chunks:
            require_columns(EVENTS, map(str, chunk.columns), place_of(chunk, "events"))
            seen = _clean_events(chunk, items, config, now)
            writer.add(seen.kept, _row_hashes(seen.kept[sorted(seen.kept.columns)]))
            refused.append(seen.quarantine)
            n_rows, n_good, n_later = n_rows + seen.n_rows, n_good + len(seen.kept), n_later + seen.n_later
            n_nulls.update({str(c): int(n) for c, n in seen.kept.isna().sum().items()})
        _require_rows(n_rows, EVENTS)
        checked = Checked("events", seen.kept[:0], pd.concat(refused, ignore_index=True), n_rows, n_later=n_later)
        return cls(writer, checked, n_nulls, n_good)


def _is_created(items: pd.DataFrame, now: pd.Timestamp) -> BoolArray | None:
    """Items that were there by their `created_at`, (n_items,); None where no column says so.

    Those with events before `now` were there too, whatever an import wrote later: windows are cut alike (`ItemFacts`).
    """
    return ~(items["created_at"] >= now).to_numpy(dtype=bool) if "created_at" in items else None


def _clean_once(raw: pd.DataFrame, table: str, key: str, refused: Refused | None = None) -> Checked:
    """Rows with a good id, each id once; a row that repeats another in full is no error.

    Of good rows with one id that of the least hash stays, in whatever order they come.
    """
    refused = refused or Refused(table, raw)
    ids = clean_ids(raw[key], place_of(raw, table))
    frame = raw.drop(columns=PLACES).assign(**{key: ids})
    refused.add(key, is_bad_id(ids), "null, blank or overlong id")
    refused.add(key, has_control(ids), "control character in the id")
    good = pd.DataFrame({"id": ids, "hash": _row_hashes(frame[sorted(frame.columns)])})[~refused.mask]
    same = good.duplicated()
    once = good[~same].sort_values("hash")
    again = once["id"].duplicated()
    refused.add(key, ids.index.isin(once.index[again]), "id is there already")
    kept = frame.loc[once.index[~again]]
    kept = kept.assign(**{key: settled_ids(kept[key])}).sort_values(key, kind="stable", ignore_index=True)
    return Checked(table, kept, refused.rows(), len(raw), int(same.sum()))


def _clean_items(items: pd.DataFrame, config: DataConfig) -> Checked:
    raw = with_places(items)
    if "available" in raw and raw["available"].isna().all():
        raw = raw.drop(
            columns="available"
        )  # as good as absent; empty means true, and nobody would see that it was lost
    refused = Refused("items", raw)
    clean = raw.copy()
    if "available" in raw:
        clean["available"], is_bad = clean_flags(raw["available"])
        refused.add("available", is_bad, "neither true nor false")
    if "created_at" in raw:
        times = clean["created_at"] = utc_times(raw["created_at"], config.timezone, place_of(raw, "items"))
        is_unreadable = times.isna() & raw["created_at"].notna() & (raw["created_at"].astype("str").str.strip() != "")
        refused.add("created_at", is_unreadable.to_numpy(dtype=bool), "unreadable time")
    if "price" in raw:
        clean["price"] = clean_numbers(raw["price"])
        refused.add("price", is_no_number(raw["price"], clean["price"]), NO_NUMBER)
    for column in (c for c in TEXTS if c in raw):
        clean[column] = clean_texts(raw[column])
    return _clean_once(clean, "items", "item_id", refused)


def _clean_events(events: pd.DataFrame, known: IdMap, config: DataConfig, now: pd.Timestamp) -> Checked:
    """Good rows before `now`; rows of the future are counted and not even checked."""
    raw = with_places(events)
    place = place_of(raw, "events")
    times = utc_times(raw["timestamp"], config.timezone, place)
    is_later = ((times >= now) & (times < LATEST)).to_numpy(dtype=bool)
    n_rows = len(raw)
    raw, times = raw[~is_later].reset_index(drop=True), times[~is_later].reset_index(drop=True)
    clean = raw.assign(timestamp=times, user_id=clean_ids(raw["user_id"], place))
    ids = clean_ids(raw["item_id"], place)
    is_known = known.positions(ids) >= 0
    refused = Refused("events", raw)
    refused.add("user_id", is_bad_id(clean["user_id"]), "null, blank or overlong id")
    refused.add("item_id", is_bad_id(ids), "null, blank or overlong id")
    refused.add("user_id", has_control(clean["user_id"]), "control character in the id")
    refused.add("item_id", has_control(ids), "control character in the id")
    clean["event_type"] = raw["event_type"].astype("str").where(raw["event_type"].notna())
    refused.add("event_type", is_blank(clean["event_type"]), "null or blank event type")
    refused.add("timestamp", times.isna().to_numpy(), "unreadable time")
    refused.add("timestamp", ((times < EARLIEST) | (times >= LATEST)).to_numpy(), "time out of range")
    refused.add("item_id", ~is_known, "item is not in the items table")
    if "weight" in raw:
        clean["weight"] = clean_numbers(raw["weight"])
        is_weight = clean["weight"].between(0, MOST_WEIGHT)
        refused.add("weight", ~is_weight.to_numpy(), f"weight is no number from 0 up to {MOST_WEIGHT:,}")
    for column in (c for c in NUMBERS if c in raw):
        clean[column] = clean_numbers(raw[column])
        refused.add(column, is_no_number(raw[column], clean[column]), NO_NUMBER)
    kept = clean[~refused.mask].drop(columns=PLACES)
    kept["user_id"] = settled_ids(kept["user_id"])
    kept["item_id"] = settled_ids(ids[~refused.mask]).astype(known.ids.dtype)
    return Checked("events", kept, refused.rows(), n_rows, n_later=int(is_later.sum()))


def _row_hashes(frame: pd.DataFrame) -> IntArray:
    """One hash a row, (n,) uint64; nested values count as their text."""
    nested = [c for c in frame.columns if pd.api.types.is_object_dtype(frame[c].dtype)]
    flat = frame.assign(**{c: frame[c].map(ascii) for c in nested})
    return pd.util.hash_pandas_object(flat, index=False).to_numpy()


def _fingerprint(events_sha256: str, *frames: pd.DataFrame) -> str:
    digest = hashlib.sha256(events_sha256.encode())
    for frame in frames:
        frame = frame[sorted(frame.columns)]
        digest.update(repr(list(frame.columns)).encode())
        digest.update(np.sort(_row_hashes(frame)).tobytes())
    return digest.hexdigest()


def _report(
    log: EventLog,
    items: pd.DataFrame,
    config: DataConfig,
    now: pd.Timestamp,
    quarantine: pd.DataFrame,
    events: _Events,
    items_seen: Checked,
) -> DataReport:
    by_count = np.argsort(-log.per_type, kind="stable")
    types = {log.types[code]: int(log.per_type[code]) for code in by_count if log.per_type[code]}
    labels = {k: v for k, v in types.items() if k in config.event_weights}
    if not labels:
        raise DataError(
            f"events: none of {len(log):,} rows before {now:%Y-%m-%d %H:%M} has an event type that is a label "
            f"({', '.join(map(shown, config.event_weights))}); found {', '.join(map(shown, list(types)[:20])) or 'none'}; "
            "mend data.event_weights or --as-of"
        )
    ignored = {k: v for k, v in types.items() if k not in labels}
    first, newest = (pd.Timestamp(moment, unit="us", tz="UTC") for moment in (log.first, log.newest))
    until = min(now, pd.Timestamp.now(tz="UTC"))
    read = {*columns_of("events"), config.split_column}  # an export may have forty more, which nothing reads
    return DataReport(
        n_events_read=events.checked.n_rows, n_items_read=items_seen.n_rows, n_duplicate_items=items_seen.n_duplicates,
        n_after_as_of=events.checked.n_later, n_duplicates=log.n_repeats,
        n_events=len(log), n_items=len(items), n_users=len(log.per_user),
        event_types=labels,
        ignored_types=ignored,
        absent_labels={name: nearest(name, ignored) for name in config.event_weights if name not in labels},
        quarantined={str(k): int(v) for k, v in quarantine["reason"].value_counts().items()},
        first_event=f"{first:%Y-%m-%d %H:%M}", last_event=f"{newest:%Y-%m-%d %H:%M}",
        age_of_newest_hours=round((until - newest).total_seconds() / 3600, 1),
        events_per_user=per_id(log.per_user), events_per_item=per_id(log.per_item[log.per_item > 0]),
        items_with={c: float((items[c] != "").mean()) for c in TEXTS if c in items}
        | {c: float(items[c].notna().mean()) for c in ("price", "created_at") if c in items},
        text_lengths={c: lengths_of(items[c]) for c in ("title", "description") if c in items},
        null_shares={c: round(n / events.n_good, 4) for c, n in events.n_nulls.items() if n and c in read},
        n_unavailable=int((~items["available"]).sum()) if "available" in items else 0,
    )  # fmt: skip

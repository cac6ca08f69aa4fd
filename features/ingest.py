"""The door: reads the tables, checks every row, quarantines the bad ones, and says what it saw."""

import hashlib
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from recsys.config import DataConfig
from recsys.errors import DataError, shown
from recsys.schema import EVENTS, ITEMS, TableSchema, require_columns

EARLIEST, LATEST = pd.Timestamp("1990-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC")
MAX_TEXT = 20_000
MAX_ID = 512
TEXTS = ("title", "description", "brand", "category", "tags", "language")


@dataclass(frozen=True)
class DataReport:
    """What came through the door, and what did not."""

    n_events_read: int
    n_events: int
    n_items_read: int
    n_items: int
    n_users: int
    n_after_as_of: int
    n_duplicates: int
    event_types: dict[str, int]
    ignored_types: dict[str, int]
    quarantined: dict[str, int]
    first_event: str
    last_event: str
    age_of_newest_hours: float
    events_per_user: dict[str, float]
    events_per_item: dict[str, float]
    items_with: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def render(self, console: Console) -> None:
        """The report as a table for people."""
        table = Table(title="data", title_justify="left", show_header=False)
        table.add_row("events", f"{self.n_events:,} of {self.n_events_read:,} rows read")
        table.add_row("event types", ", ".join(f"{k} {v:,}" for k, v in self.event_types.items()))
        if self.ignored_types:
            table.add_row("types that are no labels", ", ".join(f"{k} {v:,}" for k, v in self.ignored_types.items()))
        table.add_row("users, items", f"{self.n_users:,} users, {self.n_items:,} items")
        table.add_row("time", f"{self.first_event} to {self.last_event}, newest {self.age_of_newest_hours:.1f} h old")
        for name, values in (("events per user", self.events_per_user), ("events per item", self.events_per_item)):
            table.add_row(name, ", ".join(f"{k} {v:g}" for k, v in values.items()))
        table.add_row("items with", ", ".join(f"{k} {v:.1%}" for k, v in self.items_with.items()))
        table.add_row("not read", f"{self.n_after_as_of:,} events after as-of, {self.n_duplicates:,} duplicate rows")
        bad = ", ".join(f"{reason} {n:,}" for reason, n in self.quarantined.items())
        table.add_row("quarantined", bad or "none")
        console.print(table)


@dataclass(frozen=True)
class Tables:
    """Clean tables in the contract's columns: events by time, user, item; items by id; refused rows beside them."""

    events: pd.DataFrame
    items: pd.DataFrame
    quarantine: pd.DataFrame
    report: DataReport
    sha256: str


def load_tables(config: DataConfig, as_of: pd.Timestamp | None = None) -> Tables:
    """Reads and checks both tables; nothing at or after `as_of` is kept.

    Raises:
        DataError: a file is missing or broken, a column is missing, times carry no zone, or more than
            `max_bad_share` of the rows are bad.
    """
    events = read_table(config.events, EVENTS, config)
    items = read_table(config.items, ITEMS, config)
    return clean_tables(events, items, config, as_of)


def clean_tables(
    events: pd.DataFrame, items: pd.DataFrame, config: DataConfig, as_of: pd.Timestamp | None = None
) -> Tables:
    """Checks frames in the contract's columns; see `load_tables`. The inputs are not changed."""
    now = as_of if as_of is not None else LATEST
    n_read = len(events), len(items)
    items, bad_items = _check_items(items, config, now)
    events, bad_events = _check_events(events, items, config)
    quarantine = pd.concat([bad_items, bad_events], ignore_index=True)
    for name, bad, n in (("items", bad_items, n_read[1]), ("events", bad_events, n_read[0])):
        _refuse_too_many(name, bad, n, config.max_bad_share)
    later = events["timestamp"] >= now
    events = events[~later]
    keys = [c for c in ("user_id", "item_id", "event_type", "timestamp", "basket_id", "session_id") if c in events]
    repeated = events.duplicated(keys)
    events = events[~repeated].sort_values(["timestamp", "user_id", "item_id", "event_type"], kind="stable")
    events = events.reset_index(drop=True)
    report = _report(events, items, config, n_read, int(later.sum()), int(repeated.sum()), quarantine, now)
    return Tables(events, items, quarantine, report, _fingerprint(events, items))


def read_table(place: str, schema: TableSchema, config: DataConfig) -> pd.DataFrame:
    """A table from a file, folder, glob or URL, in the contract's column names.

    Two columns are added: `_file` and `_row`, where each row came from.
    """
    frames = [_read_file(file, schema, config) for file in _files(place, schema.name)]
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def _files(place: str, name: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(place)
    if any(c in path for c in "*?["):
        found = sorted(filesystem.glob(path))
    elif filesystem.isdir(path):
        found = sorted(f for f in filesystem.find(path) if f.endswith((".parquet", ".csv")))
    else:
        found = [path] if filesystem.exists(path) else []
    found = [f for f in found if not any(part.startswith(".") for part in Path(f).parts[-1:])]
    if not found:
        raise DataError(f"{place}: no {name} table there; check data.{name} in the config")
    return [filesystem.unstrip_protocol(f) if "://" in place else f for f in found]


def _read_file(file: str, schema: TableSchema, config: DataConfig) -> pd.DataFrame:
    try:
        with fsspec.open(file, "rb") as handle:
            if file.endswith(".csv"):
                table = _read_csv(handle, schema, config)
            else:
                table = pq.read_table(handle, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a table: {shown(error, 200)}; write the file again") from error
    table = table.rename_columns([_our_name(c, schema.name, config, table.column_names) for c in table.column_names])
    table = table.select([c for c in table.column_names if not c.startswith("__index_level_")])  # pandas left it there
    require_columns(schema, table.column_names, file)
    frame = table.to_pandas(types_mapper=_whole_numbers)
    frame["_file"] = pd.Categorical([Path(file).name] * len(frame))
    frame["_row"] = np.arange(len(frame))
    return frame


def _whole_numbers(kind: pa.DataType) -> Any:
    """Integers with gaps stay integers: through float they lose digits above 2**53."""
    return pd.Int64Dtype() if pa.types.is_int64(kind) else None


def _read_csv(handle: Any, schema: TableSchema, config: DataConfig) -> pa.Table:
    """Ids as text, so that 00123 stays itself."""
    names = {_their_name(c, schema.name, config) for c in ("user_id", "item_id", "basket_id", "session_id")}
    options = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
    return pacsv.read_csv(handle, convert_options=options)


def _mapping(table: str, config: DataConfig) -> dict[str, str]:
    """Our column = theirs, for one table; a table of its own wins over the common entries."""
    common = {ours: theirs for ours, theirs in config.columns.items() if isinstance(theirs, str)}
    own = config.columns.get(table, {})
    return common | (own if isinstance(own, dict) else {})


def _their_name(column: str, table: str, config: DataConfig) -> str:
    return _mapping(table, config).get(column, column)


def _our_name(column: str, table: str, config: DataConfig, present: list[str]) -> str:
    ours = {theirs: our for our, theirs in _mapping(table, config).items()}.get(column, column)
    taken = ours != column and ours in present
    return column if taken else ours


def _check_items(items: pd.DataFrame, config: DataConfig, now: pd.Timestamp) -> tuple[pd.DataFrame, pd.DataFrame]:
    items = _with_places(items)
    items["item_id"] = _ids(items["item_id"])
    bad = _Refused("items", items)
    bad.add("item_id", _bad_id(items["item_id"]), "null, blank or overlong id")
    bad.add("item_id", items["item_id"].duplicated() & ~_bad_id(items["item_id"]), "id is there already")
    if "created_at" in items:
        items["created_at"] = _times(items["created_at"], config, "items", "created_at")
        bad_later = items["created_at"] >= now
    else:
        bad_later = pd.Series(False, index=items.index)
    if "price" in items:
        items["price"] = pd.to_numeric(items["price"], errors="coerce").astype("float64")
    kept = items[~bad.mask & ~bad_later].drop(columns=["_file", "_row"])
    for column in TEXTS:
        if column in kept:
            kept[column] = clean_text(kept[column])
    kept["item_id"] = _settled(kept["item_id"])
    # a repeated row that says nothing new is no error
    exact = bad.mask & items.drop(columns=["_file", "_row"]).astype(str).duplicated()
    return kept.sort_values("item_id", kind="stable").reset_index(drop=True), bad.rows(exclude=exact)


def _check_events(events: pd.DataFrame, items: pd.DataFrame, config: DataConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    events = _with_places(events)
    events["timestamp"] = _times(events["timestamp"], config, "events", "timestamp")
    for column in ("user_id", "item_id"):
        events[column] = _ids(events[column])
    bad = _Refused("events", events)
    for column in ("user_id", "item_id"):
        bad.add(column, _bad_id(events[column]), "null, blank or overlong id")
    bad.add("timestamp", events["timestamp"].isna(), "unreadable time")
    bad.add("timestamp", (events["timestamp"] < EARLIEST) | (events["timestamp"] >= LATEST), "time out of range")
    known = items["item_id"]
    same_kind = pd.api.types.is_integer_dtype(known.dtype) == pd.api.types.is_integer_dtype(events["item_id"].dtype)
    asked, answer = (events["item_id"], known) if same_kind else (events["item_id"].astype("str"), known.astype("str"))
    bad.add("item_id", ~asked.isin(answer), "item is not in the items table")
    if "weight" in events:
        weight = pd.to_numeric(events["weight"], errors="coerce").astype("float64")
        bad.add("weight", ~(weight.abs() < np.inf) | (weight < 0), "weight is no number from 0 up")
        events["weight"] = weight
    kept = events[~bad.mask].drop(columns=["_file", "_row"])
    for column in ("user_id", "item_id"):
        kept[column] = _settled(kept[column])
    if not same_kind:
        kept["item_id"] = kept["item_id"].astype(known.dtype)
    kept["event_type"] = kept["event_type"].astype("str")
    return kept, bad.rows()


class _Refused:
    """Collects refused rows of a table; the first reason of a row counts."""

    def __init__(self, table: str, frame: pd.DataFrame) -> None:
        self.table, self.frame = table, frame
        self.mask = np.zeros(len(frame), dtype=bool)
        self.reason = np.full(len(frame), "", dtype=object)
        self.column = np.full(len(frame), "", dtype=object)

    def add(self, column: str, is_bad: "pd.Series[bool]", reason: str) -> None:
        fresh = is_bad.fillna(True).to_numpy(dtype=bool) & ~self.mask
        self.reason[fresh], self.column[fresh] = reason, column
        self.mask |= fresh

    def rows(self, exclude: pd.Series | None = None) -> pd.DataFrame:
        mask = self.mask if exclude is None else self.mask & ~exclude.to_numpy()
        at = np.flatnonzero(mask)
        values = [shown(self.frame[c].iloc[i]) for c, i in zip(self.column[at], at, strict=True)]
        columns = {
            "table": self.table,
            "file": self.frame["_file"].astype("str").to_numpy()[at],
            "row": self.frame["_row"].to_numpy()[at],
            "column": self.column[at],
            "value": values,
            "reason": self.reason[at],
        }
        return pd.DataFrame(columns)


def _refuse_too_many(name: str, bad: pd.DataFrame, n_rows: int, max_bad_share: float) -> None:
    if n_rows == 0:
        raise DataError(f"data.{name}: the table is empty; check the export that writes it")
    if len(bad) > max_bad_share * n_rows:
        first = bad.iloc[0]
        raise DataError(
            f"{first['file']}: {len(bad):,} of {n_rows:,} {name} rows are bad ({len(bad) / n_rows:.2%}, limit "
            f"{max_bad_share:.2%}); first: row {first['row']}, column {first['column']}, value {first['value']}: "
            f"{first['reason']}; mend the export, or raise data.max_bad_share if this is as it should be"
        )


def _with_places(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.reset_index(drop=True)
    if "_file" not in frame:
        frame["_file"], frame["_row"] = "frame", np.arange(len(frame))
    return frame


def _ids(values: pd.Series) -> pd.Series:
    """Integers stay integers, everything else becomes text; floats are refused as ids."""
    if pd.api.types.is_float_dtype(values.dtype):
        raise DataError(
            f"column {values.name}: ids are floating-point numbers, such as {shown(values.iloc[0])}, which lose digits; "
            "export them as integers or text"
        )
    if pd.api.types.is_integer_dtype(values.dtype):
        return values
    return values.astype("str")


def _settled(values: pd.Series) -> pd.Series:
    """Without gaps left, nullable integers become plain ones."""
    return values.astype("int64") if pd.api.types.is_integer_dtype(values.dtype) else values


def _bad_id(values: pd.Series) -> pd.Series:
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.isna()
    return values.isna() | (values.str.strip() == "") | (values.str.len() > MAX_ID)


def _times(values: pd.Series, config: DataConfig, table: str, column: str) -> pd.Series:
    """Times as UTC microseconds; unreadable ones are NaT."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        raise DataError(
            f"{table}: {column} holds numbers, such as {shown(values.iloc[0])}, and a number does not say its unit; "
            "export times as timestamps or ISO text"
        )
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = pd.to_datetime(values.astype("str"), errors="coerce", format="ISO8601", utc=config.timezone is None)
    if getattr(values.dtype, "tz", None) is None:
        if config.timezone is None:
            raise DataError(
                f"{table}: {column} carries no time zone, such as {shown(values.iloc[0])}; "
                'set data.timezone, for example "Europe/Madrid" or "UTC"'
            )
        values = values.dt.tz_localize(config.timezone, ambiguous=True, nonexistent="shift_forward")
    return values.dt.tz_convert("UTC").astype("datetime64[us, UTC]")


def clean_text(values: pd.Series) -> pd.Series:
    """Text in NFC without control characters or lone surrogates, cut at 20,000 characters; null becomes empty."""
    texts = values.fillna("").astype(object)
    return pd.Series([_clean(str(t)) for t in texts], index=values.index, dtype="str")


def _clean(text: str) -> str:
    text = text[:MAX_TEXT]
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8", "ignore"))
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def _report(
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: DataConfig,
    n_read: tuple[int, int],
    n_later: int,
    n_repeated: int,
    quarantine: pd.DataFrame,
    now: pd.Timestamp,
) -> DataReport:
    types = events["event_type"].value_counts().to_dict()
    labels = {str(k): int(v) for k, v in types.items() if k in config.event_weights}
    if not labels:
        raise DataError(
            f"events: none of {len(events):,} rows before {now:%Y-%m-%d %H:%M} has an event type that is a label "
            f"({', '.join(config.event_weights)}); found {', '.join(map(shown, types)) or 'none'}; mend data.event_weights or --as-of"
        )
    newest = events["timestamp"].max()
    until = min(now, pd.Timestamp.now(tz="UTC"))
    with_text = {c: float((items[c] != "").mean()) for c in TEXTS if c in items}
    return DataReport(
        n_read[0], len(events), n_read[1], len(items), int(events["user_id"].nunique()), n_later, n_repeated, labels,
        {str(k): int(v) for k, v in types.items() if k not in config.event_weights},
        {str(k): int(v) for k, v in quarantine["reason"].value_counts().items()},
        f"{events['timestamp'].min():%Y-%m-%d %H:%M}", f"{newest:%Y-%m-%d %H:%M}",
        round((until - newest).total_seconds() / 3600, 1),
        _quantiles(events["user_id"]), _quantiles(events["item_id"]), with_text,
    )  # fmt: skip


def _quantiles(ids: pd.Series) -> dict[str, float]:
    counts = ids.value_counts()
    return {"median": float(counts.median()), "p90": float(counts.quantile(0.9)), "max": float(counts.max())}


def _fingerprint(events: pd.DataFrame, items: pd.DataFrame) -> str:
    """sha256 over the kept rows; the same rows in any order give the same."""
    digest = hashlib.sha256()
    for frame in (events, items):
        digest.update(",".join(frame.columns).encode())
        digest.update(np.sort(pd.util.hash_pandas_object(frame, index=False).to_numpy()).tobytes())
    return digest.hexdigest()

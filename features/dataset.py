"""A data set as arrays: what every later stage sees."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from numbers import Real

import numpy as np
import pandas as pd
from pandas.api.types import is_object_dtype

from features.events import EVENT
from features.ingest import Tables, clean_tables
from features.spool import Records, Spool
from recsys.config import DataConfig, RulesConfig, parse_config
from recsys.errors import ConfigError, DataError, shown
from recsys.ids import IdMap, unwrapped
from recsys.moments import moment_of
from recsys.schema import EVENTS, ITEMS, USERS, TableSchema, nearest, require_columns
from recsys.types import BoolArray, FloatArray, IntArray

# kinds of arrow, as pandas writes them
_LISTS = ("list<", "large_list<", "fixed_size_list<", "dictionary<values=list")


@dataclass(frozen=True)
class Dataset:
    """Positive events and the catalogue, as of a moment.

    Scoring reads the events of some users at a time; training asks for the arrays of all, which are then kept.

    Args:
        users, items: outside ids of the positions; items are all rows of the items table.
        catalogue: one row per item position, in the contract's columns.
        records: events by user, time and item, of `features.events.EVENT`; those that are no labels or not before
            `as_of` do not count.
        bounds: where the records of each user start, (n_users + 1,).
        has_split, has_weight: whether the events had such a column.
        available: True where the item may be recommended, (n_items,); see `under`.
        as_of: the moment of knowledge.
        sha256: of the tables it came from.
        types: names of the codes of event types.
        seen_by: codes of the labels by which an item counts as acted on; None: all labels.
        hidden_by: codes of the types by which a user takes an item out of their own lists.
    """

    users: IdMap
    items: IdMap
    catalogue: pd.DataFrame
    records: Spool
    bounds: IntArray
    has_split: bool
    has_weight: bool
    available: BoolArray
    as_of: pd.Timestamp
    sha256: str
    types: tuple[str, ...] = ()
    seen_by: tuple[int, ...] | None = None
    hidden_by: tuple[int, ...] = ()

    @classmethod
    def from_frames(
        cls,
        events: pd.DataFrame,
        items: pd.DataFrame,
        *,
        event_weights: Mapping[str, float] | None = None,
        as_of: str | date | np.datetime64 | None = None,
        users: pd.DataFrame | None = None,
        timezone: str = "UTC",
        split_column: str | None = None,
        max_bad_share: float = DataConfig.model_fields["max_bad_share"].default,
    ) -> "Dataset":
        """A data set from frames in the contract's columns, checked like files are.

        Args:
            event_weights: labels and their weights; types left out are no labels. By default every type that occurs
                counts 1, a refund too: where several occur, a warning names them.
            as_of: events at or after it are left out; just after the last event by default. A date or a moment, or
                such as ISO 8601 text; UTC where it names no zone.
            users: checked along with the others.
            timezone: of times that name no zone, such as "Europe/Madrid".
            split_column: of events, holding train, valid or test, where windows are not to be cut by time.
            max_bad_share: up to this share of bad rows is left out; more are an error, whose `quarantine` holds them.

        Raises:
            ConfigError: a table is no frame, `as_of` is no moment, a weight is no number above 0, or a setting is none that
                a config could hold.
            DataError: a column is missing, there are no events, a type that weighs never occurs, or too many rows are bad.
        """
        moment = None if as_of is None else moment_of(as_of, "as_of")
        for given, schema in ((events, EVENTS), (items, ITEMS), *([] if users is None else [(users, USERS)])):
            _require_frame(given, schema)
        types = _types(events)
        if not event_weights and len(types) > 1:
            warnings.warn(_all_count_1(types), stacklevel=2)
        weights = _weights(event_weights, types) if event_weights else dict.fromkeys(types, 1.0)
        places = {"events": "frame", "items": "frame"}
        settings = {"event_weights": weights, "timezone": timezone, "split_column": split_column}
        config = parse_config({"data": places | settings | {"max_bad_share": max_bad_share}}, "from_frames").data
        events, items = _plain(events, with_objects=False), _plain(items)  # objects of millions of events take minutes
        tables = clean_tables(events, items, config, moment, None if users is None else _plain(users))
        newest = pd.Timestamp(tables.log.newest, unit="us", tz="UTC")
        return cls.from_tables(tables, moment or newest + pd.Timedelta("1us"))

    @classmethod
    def from_tables(cls, tables: Tables, as_of: pd.Timestamp) -> "Dataset":
        """A data set from checked tables; event types without a weight are left out.

        Raises:
            DataError: all that was done has weight 0, so that nobody is left.
        """
        log, items = tables.log, tables.items
        if not len(log.users):
            raise DataError(
                "events: every label has weight 0, so no event counts; mend the column weight of the export"
            )
        available = items["available"].to_numpy(dtype=bool) if "available" in items else np.ones(len(items), bool)
        return cls(
            log.users, log.items, items, log.records, log.bounds[: len(log.users) + 1],
            bool(tables.split_column), log.has_weight, available, as_of, tables.sha256, log.types,
        )  # fmt: skip

    def __repr__(self) -> str:
        n_events = len(self.records)
        return f"Dataset({len(self.users):,} users, {len(self.items):,} items, {n_events:,} events, as of {self.as_of})"

    def under(self, rules: RulesConfig) -> "Dataset":
        """The same under a shop's rules: without what they block, with the labels that count as having acted on an item, and the
        types by which users hide one.

        Ids that the items table lacks change nothing.
        """
        made = self
        if rules.blocked:  # to look up nothing would still make texts of all ids that are numbers
            available, positions = self.available.copy(), self.items.positions(list(rules.blocked))
            available[positions[positions >= 0]] = False
            made = replace(made, available=available)
        if rules.seen_by:
            made = replace(made, seen_by=self._codes(rules.seen_by))
        if rules.hidden_by:
            made = replace(made, hidden_by=self._codes(rules.hidden_by))
        return made

    def _codes(self, types: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.types.index(name) for name in types if name in self.types)

    @property
    def user_pos(self) -> IntArray:
        """(n_events,) int32, ascending."""
        return self._columns["user"]

    @property
    def item_pos(self) -> IntArray:
        """(n_events,) int32; a user's events are ordered by time, then item."""
        return self._columns["item"]

    @property
    def timestamp(self) -> IntArray:
        """(n_events,) int64 microseconds UTC, all before `as_of`."""
        return self._columns["timestamp"]

    @property
    def weight(self) -> FloatArray:
        """(n_events,) float32, label weight of the type times the row's own weight."""
        return self._columns["weight"]

    @property
    def marks_seen(self) -> BoolArray | None:
        """(n_events,) by which events an item counts as acted on; None: by all."""
        return None if self.seen_by is None else self._columns["marks_seen"]

    def seeing(self, records: Records) -> BoolArray | None:
        """The same of some records, (n_records,)."""
        return None if self.seen_by is None else np.isin(records["type"], self.seen_by)

    def hides(self, records: Records) -> BoolArray:
        """By which records before `as_of` a user takes an item out of their own lists, (n_records,)."""
        is_known = (records["user"] < len(self.users)) & (records["timestamp"] < _microseconds(self.as_of))
        return np.asarray(np.isin(records["type"], self.hidden_by) & is_known)

    def bars(self, records: Records, exclude_seen: bool) -> BoolArray:
        """Which records keep their item out of their user's lists, (n_records,); see `Histories.barred`."""
        marks = self.seeing(records)
        is_seen = self.counts(records) if marks is None else self.counts(records) & marks
        return is_seen & exclude_seen | self.hides(records)

    @cached_property
    def hidden(self) -> Records:
        """All of these, by user and time; a copy."""
        blocks = self.records.blocks() if self.hidden_by else ()
        return np.concatenate([np.empty(0, EVENT), *(block[self.hides(block)] for block in blocks)])

    @property
    def split(self) -> IntArray | None:
        """(n_events,) int8 0 train, 1 valid, 2 test; None where no column says so."""
        return self._columns["split"] if self.has_split else None

    def blocks(self) -> Iterator[Records]:
        """The events that count, some at a time."""
        for block in self.records.blocks():
            yield block[self.counts(block)]

    def counts(self, records: Records) -> BoolArray:
        """Which records are labels before `as_of`, (n_records,)."""
        return np.asarray((records["weight"] > 0) & (records["timestamp"] < _microseconds(self.as_of)))

    def n_before(self, moment: pd.Timestamp) -> int:
        """How many events lie before a moment."""
        return sum(int((block["timestamp"] < _microseconds(moment)).sum()) for block in self.blocks())

    @property
    def oldest(self) -> pd.Timestamp:
        """When the first event was."""
        return self._span[0]

    @property
    def newest(self) -> pd.Timestamp:
        """When the last event was."""
        return self._span[1]

    @cached_property
    def _span(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        times = (block["timestamp"] for block in self.blocks() if len(block))
        spans = [(int(some.min()), int(some.max())) for some in times]
        first, last = min((a for a, _ in spans), default=0), max((b for _, b in spans), default=0)
        return pd.Timestamp(first, unit="us", tz="UTC"), pd.Timestamp(last, unit="us", tz="UTC")

    def before(self, moment: pd.Timestamp) -> "Dataset":
        """The same with only the events before a moment; users, items and `sha256` stay as they are."""
        return replace(self, as_of=min(self.as_of, moment))

    def events(self) -> Records:
        """All events that count; a copy, without `hidden`."""
        return np.concatenate([np.empty(0, EVENT), *self.blocks()])

    def with_events(self, records: Records, users: IdMap | None = None) -> "Dataset":
        """The same with other events, of `features.events.EVENT` in any order; `users` where their positions changed."""
        users = users or self.users
        records = records[np.lexsort([records[name] for name in ("item", "timestamp", "user")])]
        kept = Spool(EVENT)
        kept.add(records)
        return replace(
            self, users=users, records=kept, bounds=np.searchsorted(records["user"], np.arange(len(users) + 1))
        )

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        names = ["user", "item", "timestamp", "weight", *["split"] * self.has_split]
        parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, EVENT[name])] for name in names}
        marks = [np.empty(0, dtype=bool)]
        for block in self.blocks():
            for name in names:
                parts[name].append(block[name].copy())  # a view would keep the whole block
            if (marked := self.seeing(block)) is not None:
                marks.append(marked)
        return {name: np.concatenate(parts.pop(name)) for name in names} | {"marks_seen": np.concatenate(marks)}


def _microseconds(moment: pd.Timestamp) -> int:
    """The first microsecond that is not before a moment."""
    return -(-moment.value // 1000)


def _require_frame(given: object, schema: TableSchema) -> None:
    """Refuses what is no frame, and a frame without its columns, with what mends it in a notebook."""
    name = schema.name
    if not isinstance(given, pd.DataFrame):
        raise ConfigError(
            f"{name}: a pandas frame is needed, not {type(given).__name__}; make one, as pd.read_parquet does of a file and "
            "to_pandas() of a table"
        )
    if at_side := [column for column in schema.required if column in given.index.names and column not in given]:
        raise DataError(f"{name} frame: {', '.join(at_side)} is in the index; give {name}.reset_index()")
    require_columns(schema, map(str, given.columns), f"{name} frame", is_frame=True)


def _types(events: pd.DataFrame) -> list[str]:
    """The event types that occur, sorted.

    Raises:
        DataError: there are none.
    """
    if not len(events):
        raise DataError("events frame: it has no rows; check what it was made of")
    types = {str(kind) for kind in events["event_type"].dropna().unique()} - {""}
    if not types:
        raise DataError(
            f"events frame: event_type is empty in all {len(events):,} rows; fill it with what was done, such as purchase"
        )
    return sorted(types)


def _weights(given: Mapping[str, float], types: list[str]) -> dict[str, float]:
    """Weights of labels, checked against the types that occur."""
    if not isinstance(given, Mapping):
        raise ConfigError(f'event_weights: {shown(given)} names no weights; write such as {{"{types[0]}": 1}}')
    given = {str(name): weight for name, weight in given.items()}  # types are text, though a frame may hold numbers
    for name, weight in given.items():
        if not (isinstance(weight, Real) and 0 < weight < math.inf):
            raise ConfigError(
                f"event_weights: {shown(name)} weighs {shown(weight)}; a weight is a number above 0: leave out what is no label"
            )
        if name not in types:
            near = nearest(str(name), types)
            raise DataError(
                f"events frame: event_type never holds {shown(name)}, which event_weights names; "
                + (f"did you mean {shown(near)}?" if near else f"found {', '.join(map(shown, types[:20]))}")
            )
    return {name: float(weight) for name, weight in given.items()}


def _all_count_1(types: list[str]) -> str:
    named = ", ".join(map(shown, types[:20])) + (", …" if len(types) > 20 else "")
    return (
        f"events frame: {len(types)} event types ({named}) are labels that all count 1, whatever they mean; choose with "
        f"event_weights, such as event_weights={{{shown(types[0])}: 1}}: types left out are no labels"
    )


def _plain(frame: pd.DataFrame, with_objects: bool = True) -> pd.DataFrame:
    """Names as text, whole numbers as whole ids, lists of words as one text each, as `features.read` joins them."""
    frame = frame.rename(columns=str)
    kinds = frame.dtypes.items()
    nested = [str(c) for c, kind in kinds if str(kind).startswith(_LISTS) or (with_objects and is_object_dtype(kind))]
    texts = {c: [_as_text(value) for value in frame[c]] for c in nested}
    # as objects still: text with a lone surrogate is mended later, and would not fit a column of text
    frame = frame.assign(**{c: pd.Series(values, frame.index, dtype=object) for c, values in texts.items()})
    return frame.assign(**{c: unwrapped(frame[c]) for c in ("user_id", "item_id") if c in frame})


def _as_text(value: object) -> object:
    """A list of words as one text, anything else as it is.

    >>> _as_text(["tea", None, "oil"]), _as_text([]), _as_text([1, 2])
    ('tea, oil', '', [1, 2])
    """
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    words = [word for word in value if word is not None]
    return ", ".join(words) if all(isinstance(word, str) for word in words) else value

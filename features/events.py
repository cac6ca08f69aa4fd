"""Checked events in little memory: fixed-width records, brought into one order a range of users at a time.

The order is user, time, item, type, whatever order they came in, so that the same rows always make the same data set.
Users without any label stand behind the others.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from features.spool import Records, Spool
from recsys.errors import DataError, shown
from recsys.ids import IdMap
from recsys.schema import nearest
from recsys.types import BoolArray, IntArray

SPLITS = ("train", "valid", "test")
MOST_AT_ONCE = 1_000_000  # records sorted at a time
MOST_FILES = 200  # open at a time; then more records are sorted at once

EVENT = np.dtype(
    [
        ("user", "i4"), ("item", "i4"), ("timestamp", "i8"), ("type", "i4"), ("split", "i1"), ("weight", "f4"),
    ]
)  # fmt: skip
_RAW = np.dtype([*EVENT.descr, ("place", "u8"), ("hash", "u8")])
"""`place` stands for basket and session, `hash` for the whole row."""


@dataclass(frozen=True)
class EventLog:
    """Events by user, time, item and type.

    Args:
        users: ids of users with a label.
        others: ids of users without one; their positions follow.
        items: ids of the catalogue.
        types: names of the codes in `type`, sorted.
        records: of `EVENT`: positions, microseconds UTC, code of the split (-1 where no column says so), label weight
            times the row's own (0 where the event is no label).
        bounds: where each user's records start, (n_users + n_others + 1,).
        per_item: events of each item, (n_items,).
        per_type: events of each type.
        first, newest: moments of the first and last event, microseconds UTC.
        has_weight: whether the rows had weights of their own.
        n_repeats: rows left out because they repeat another.
        sha256: of the names of the columns and of all rows.
    """

    users: IdMap
    others: pd.Index
    items: IdMap
    types: tuple[str, ...]
    records: Spool
    bounds: IntArray
    per_item: IntArray
    per_type: IntArray
    first: int
    newest: int
    has_weight: bool
    n_repeats: int
    sha256: str

    def __len__(self) -> int:
        return len(self.records)

    @property
    def per_user(self) -> IntArray:
        """Events of each user with any, (n_users + n_others,)."""
        return np.diff(self.bounds)

    def frame(self, users: list[object] | None = None, split_column: str | None = None) -> pd.DataFrame:
        """Events of some users, or of all, with outside ids, by time, user, item and type.

        Columns: user_id, item_id, event_type, timestamp, weight as in `records`, and the split column where there is one.
        """
        ids = self.users.ids.append(self.others)
        if users is None:
            records = self.records.read()
        else:
            known = np.unique(ids.get_indexer(pd.Index(users)))
            records = records_of(known[known >= 0], self.records, self.bounds)
        order = np.lexsort([records[name] for name in ("type", "item", "user", "timestamp")])
        records = records[order]
        columns: dict[str, object] = {
            "user_id": ids[records["user"]],
            "item_id": self.items.values(records["item"]),
            "event_type": pd.Index(self.types, dtype="str")[records["type"]],
            "timestamp": pd.to_datetime(records["timestamp"], unit="us", utc=True).as_unit("us"),
            "weight": records["weight"],
        }
        if split_column:
            columns[split_column] = pd.Index(["", *SPLITS], dtype="str")[records["split"] + 1]
        return pd.DataFrame(columns)


def records_of(users: IntArray, records: Spool, bounds: IntArray) -> Records:
    """Records of users, ascending positions.

    Args:
        bounds: where each user's records start, (n_users + 1,).
    """
    if not len(users):
        return np.empty(0, records.dtype)
    # users who stand side by side are read in one go
    breaks = np.flatnonzero(np.diff(users) > 1)
    firsts, lasts = users[np.r_[0, breaks + 1]], users[np.r_[breaks, len(users) - 1]]
    runs = zip(bounds[firsts].tolist(), bounds[lasts + 1].tolist(), strict=True)
    return np.concatenate([records.read(start, stop) for start, stop in runs])


class EventWriter:
    """Collects checked rows, chunk by chunk, for an `EventLog`.

    Args:
        items: ids of all items, each of which rows may name.
        event_weights: label weights by type; other types are kept and are no labels.
        split_column: of the rows, where one says which window a row belongs to.
        most_at_once: records sorted at a time.
    """

    def __init__(
        self,
        items: IdMap,
        event_weights: dict[str, float],
        split_column: str | None = None,
        most_at_once: int = MOST_AT_ONCE,
    ) -> None:
        self.items, self.event_weights, self.split_column = items, event_weights, split_column
        self.most_at_once = most_at_once
        self._users, self._types = _Codes(), _Codes()
        self._raw = Spool(_RAW)
        self._is_labelled: BoolArray = np.zeros(0, dtype=bool)
        self._has_events: BoolArray = np.zeros(len(items), dtype=bool)
        self._columns: set[str] = set()
        self._has_weight: set[bool] = set()
        self._wrong_split: list[str] = []
        self._n_wrong_split = 0

    def add(self, rows: pd.DataFrame, hashes: IntArray) -> None:
        """Adds rows in the contract's columns, checked; ids of items are in the catalogue's type.

        Args:
            hashes: of whole rows, (n_rows,) uint64.

        Raises:
            DataError: the split column is not there, or files disagree on whether rows have weights or on the type of ids.
            ResourceError: the disk is full or failed.
        """
        if not len(rows):
            return
        self._has_weight.add("weight" in rows)
        if len(self._has_weight) > 1:
            raise DataError("events: some files have a column weight, some have none; write all files of a table alike")
        out = np.zeros(len(rows), _RAW)
        out["user"], out["item"] = self._users.of(rows["user_id"]), self.items.positions(rows["item_id"])
        out["timestamp"], out["hash"] = rows["timestamp"].astype("int64"), hashes
        out["type"] = self._types.of(rows["event_type"])
        label_weight = rows["event_type"].map(self.event_weights).to_numpy(dtype=np.float32, na_value=0)
        out["weight"] = label_weight * np.asarray(rows.get("weight", 1), dtype=np.float32)
        out["split"] = self._split(rows, out["weight"] > 0) if self.split_column else -1
        out["place"] = _places(rows)
        self._has_events[out["item"]] = True
        self._columns |= set(map(str, rows.columns))
        grown = np.zeros(len(self._users), dtype=bool)
        grown[: len(self._is_labelled)] = self._is_labelled
        grown[out["user"][out["weight"] > 0]] = True
        self._is_labelled = grown
        self._raw.add(out)

    def finish(self, is_there: BoolArray | None = None) -> EventLog:
        """Brings all rows into order and drops those that repeat another: a label stays, and of several the one with the least hash.

        Args:
            is_there: items to keep though they have no events, (n_items,); all by default.

        Raises:
            DataError: the split column holds something else than train, valid and test.
        """
        if self._n_wrong_split:
            raise DataError(
                f"events: {self.split_column} holds {self._wrong_split[0]} in {self._n_wrong_split:,} rows; expected "
                "train, valid or test; mend the export, or take data.split_column out"
            )
        ids = self._users.ids()
        order = np.lexsort([ids.argsort().argsort(), ~self._is_labelled])
        position = _inverse(order)
        n_labelled = int(self._is_labelled.sum())
        types = self._types.ids()
        type_rank = _inverse(types.argsort())
        is_kept = np.ones(len(self.items), dtype=bool) if is_there is None else is_there | self._has_events
        item_position = np.cumsum(is_kept) - 1
        made = _Ordered(len(ids), int(is_kept.sum()), len(types))
        made.digest.update(repr(sorted(self._columns)).encode())  # a column by another name is another column
        for part in self._ranges(position):
            part["user"], part["type"] = position[part["user"]], type_rank[part["type"]]
            part["item"] = item_position[part["item"]]
            made.add(part)
        return EventLog(
            IdMap(ids[order[:n_labelled]]), ids[order[n_labelled:]], IdMap(self.items.ids[is_kept]),
            tuple(map(str, types.sort_values())), made.records, np.concatenate([[0], np.cumsum(made.per_user)]),
            made.per_item, made.per_type, made.first, made.newest, "weight" in self._columns, made.n_repeats,
            made.digest.hexdigest(),
        )  # fmt: skip

    def _ranges(self, position: IntArray) -> Iterator[Records]:
        """The raw records in ranges of users, each small enough to sort."""
        size = max(self.most_at_once, -(-len(self._raw) // MOST_FILES))
        if len(self._raw) <= size:
            yield self._raw.read()
            return
        counts = np.zeros(len(position), dtype=np.int64)
        for block in self._raw.blocks():
            counts += np.bincount(position[block["user"]], minlength=len(position))
        range_of = (np.cumsum(counts) - counts) // size  # of each user position, ascending
        spools = [Spool(_RAW, memory_bytes=0) for _ in range(int(range_of[-1]) + 1)]
        for block in self._raw.blocks():
            at = range_of[position[block["user"]]]
            for number in np.unique(at):
                spools[number].add(block[at == number])
        self._raw = Spool(_RAW)  # gives the first file back before the last one grows
        while spools:
            yield spools.pop(0).read()

    def _split(self, rows: pd.DataFrame, is_label: BoolArray) -> IntArray:
        if self.split_column not in rows:
            near = nearest(str(self.split_column), map(str, rows.columns))
            raise DataError(
                f"events: no column {shown(self.split_column)}, which data.split_column names; "
                + (f"did you mean {shown(near)}?" if near else "take the setting out, or add the column")
            )
        codes = pd.Index(SPLITS).get_indexer(pd.Index(rows[self.split_column].astype("str")))
        is_wrong = (codes < 0) & is_label
        if is_wrong.any():
            self._wrong_split.append(shown(rows[self.split_column][is_wrong].iloc[0]))
            self._n_wrong_split += int(is_wrong.sum())
        return codes.astype(np.int8)


@dataclass
class _Ordered:
    """What `EventWriter.finish` adds up over ranges of users."""

    n_users: int
    n_items: int
    n_types: int
    records: Spool = field(default_factory=lambda: Spool(EVENT))
    n_repeats: int = 0
    first: int = np.iinfo(np.int64).max
    newest: int = 0

    def __post_init__(self) -> None:
        self.per_user = np.zeros(self.n_users, dtype=np.int64)
        self.per_item, self.per_type = np.zeros(self.n_items, dtype=np.int64), np.zeros(self.n_types, dtype=np.int64)
        self.digest = hashlib.sha256()

    def add(self, raw: Records) -> None:
        """Sorts the records of a range of users and adds those that repeat no other."""
        raw = raw[np.lexsort([raw[name] for name in ("type", "item", "timestamp", "user")])]
        if not _differs(raw, ("user", "timestamp", "item", "type")).all():  # most tables need no second sort
            is_none = raw["weight"] <= 0  # of rows that repeat each other a label stays, then the one of the least hash
            keys = [raw[name] for name in ("place", "type", "item", "timestamp", "user")]
            raw = raw[np.lexsort([raw["hash"], is_none, *keys])]
        is_new = _differs(raw, ("user", "timestamp", "item", "type", "place"))
        self.n_repeats += len(raw) - int(is_new.sum())
        raw = raw[is_new]
        self.digest.update(raw["hash"].tobytes())
        self.per_user += np.bincount(raw["user"], minlength=self.n_users)
        self.per_item += np.bincount(raw["item"], minlength=self.n_items)
        self.per_type += np.bincount(raw["type"], minlength=self.n_types)
        if len(raw):
            self.first = min(self.first, int(raw["timestamp"].min()))
            self.newest = max(self.newest, int(raw["timestamp"].max()))
        kept = np.empty(len(raw), EVENT)
        for name in EVENT.names or ():
            kept[name] = raw[name]
        self.records.add(kept)


def _differs(records: Records, names: tuple[str, ...]) -> BoolArray:
    """Where a record differs from the one before in any of some fields, (n,); the first one does."""
    is_new = np.zeros(len(records), dtype=bool)
    is_new[:1] = True
    for name in names:
        is_new[1:] |= records[name][1:] != records[name][:-1]
    return is_new


class _Codes:
    """Numbers for values in the order in which they are first seen.

    Known values lie in indexes, each at least twice as long as the next, so that the tables behind them are seldom made.
    """

    def __init__(self) -> None:
        self._known: list[pd.Index] = []

    def __len__(self) -> int:
        return sum(map(len, self._known))

    def of(self, values: pd.Series) -> IntArray:
        """Number of each value, (n,); new values are given the next ones.

        Raises:
            DataError: the values are of another type than those before.
        """
        codes, found = pd.factorize(values)
        found = pd.Index(found)
        if self._known and found.dtype != self._known[0].dtype:
            raise DataError(
                f"events: {values.name} holds {found.dtype} in one file and {self._known[0].dtype} in another; write all "
                "files of a table alike"
            )
        at, offset = np.full(len(found), -1, dtype=np.int64), 0
        for known in self._known:
            place = known.get_indexer(found)
            at = np.where(place >= 0, place + offset, at)
            offset += len(known)
        is_new = at < 0
        at[is_new] = offset + np.arange(is_new.sum())
        self._known.append(found[is_new])
        while len(self._known) > 1 and 2 * len(self._known[-1]) > len(self._known[-2]):
            last = self._known.pop()
            self._known[-1] = self._known[-1].append(last)
        return at[codes]

    def ids(self) -> pd.Index:
        """The values by number."""
        return self._known[0].append(self._known[1:]) if self._known else pd.Index([], dtype="str")


def _places(rows: pd.DataFrame) -> IntArray:
    """What basket and session stand for, (n,) uint64; 0 where a row has neither, be the columns there or not."""
    if not {"basket_id", "session_id"} & set(rows.columns):
        return np.zeros(len(rows), dtype=np.uint64)
    texts = pd.DataFrame({c: _key(rows[c]) if c in rows else "" for c in ("basket_id", "session_id")}, index=rows.index)
    hashes = pd.util.hash_pandas_object(texts, index=False).to_numpy()
    return np.where((texts == "").all(axis=1), np.uint64(0), hashes)


def _key(values: pd.Series) -> pd.Series:
    """An id as text; 1 and 1.0 are one, null is empty."""
    texts = values.astype("str")
    if pd.api.types.is_float_dtype(values.dtype):
        is_whole = values % 1 == 0
        texts = texts.mask(is_whole, values.where(is_whole, 0).astype("int64").astype("str"))
    return texts.where(values.notna(), "")


def _inverse(order: IntArray) -> IntArray:
    """Where each entry went, (n,) int64."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place

"""What both arms are judged on: the same users, the same labels, the same catalogue, as arrays."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp

from features.clean import clean_texts
from recsys.errors import DataError, shown
from recsys.ids import IdMap
from recsys.types import BoolArray, FloatArray, IntArray

MAX_TITLE = 200
_DEEP = 100  # extra popular items looked at, to fill lists whose first items a user has seen


@dataclass(frozen=True)
class Cost:
    """What an arm took to make; None where nobody measured it.

    Args:
        train_s, score_s: seconds of training, and of scoring all users.
        ms_per_user: milliseconds of CPU time to score a user; the quickest of some turns, as others' work only adds to it.
        peak_memory_mib: of the process that trained, or for a release scored.
        model_bytes: on disk.
    """

    train_s: float | None = None
    score_s: float | None = None
    ms_per_user: float | None = None
    peak_memory_mib: float | None = None
    model_bytes: int | None = None

    @property
    def users_per_s(self) -> float | None:
        """Users scored in a second."""
        return 1000 / self.ms_per_user if self.ms_per_user else None


@dataclass(frozen=True)
class Arm:
    """One side of the comparison.

    Args:
        name: what the page calls it.
        table: recommendations: user_id, item_id, rank from 1; score, source, reason optional.
        version: model version or release.
        info: what is known of its making, shown on the page; `trained_until` (a UTC time: nothing at or
            after it was read) is checked against the test window.
        cost: what it took.
        candidate_recall: share of each user's labels among all items that were scored, by user_id; the ceiling of
            the ranking. None where unknown.
        longest: items that a list can hold where rules keep it short, of what its user has not taken. None: any number.
        asked: items that a list was to hold; no more of it count, in either arm. None where unknown.
    """

    name: str
    table: pd.DataFrame
    version: str = ""
    info: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    candidate_recall: pd.Series | None = None
    longest: int | None = None
    asked: int | None = None


@dataclass(frozen=True)
class World:
    """Users with labels, items, labels and history, by position.

    Args:
        users: users with at least one label, sampled where there are too many.
        items: items of the catalogue, of the labels and of the arms.
        relevant: non-zero where a user acted in the test window, (n_users, n_items).
        is_listed: True where the items table knows the item, (n_items,).
        titles: cut to 200 characters, otherwise as they came, (n_items,) str.
        n_candidates: users with labels before sampling.
        n_history: events before the window per user, (n_users,); None without a history.
        popularity: events before the window per item, (n_items,), by all users; None without a history.
        seen: events before the window, (n_users, n_items); None without a history.
        tenure_days: since the first event before the window, (n_users,), nan without one; None where the history
            has no times.
        attributes: the items table's other columns by item position, (n_items, ...); null where unlisted.
        hidden: non-zero where a user hid the item before the window, (n_users, n_items); None where nobody could.
    """

    users: IdMap
    items: IdMap
    relevant: sp.csr_matrix
    is_listed: BoolArray
    titles: np.ndarray
    n_candidates: int
    n_history: IntArray | None
    popularity: IntArray | None
    seen: sp.csr_matrix | None
    tenure_days: FloatArray | None
    attributes: pd.DataFrame
    hidden: sp.csr_matrix | None = None

    @classmethod
    def of(
        cls,
        arms: tuple[Arm, ...],
        events: pd.DataFrame,
        items: pd.DataFrame,
        history: pd.DataFrame | None,
        max_users: int,
        rng: np.random.Generator,
        start: pd.Timestamp | None = None,
        hidden: pd.DataFrame | None = None,
    ) -> "World":
        """Ids to positions; labels, history and what users hid to matrices.

        Raises:
            DataError: a column is missing, or ids are integers in one table and text in another.
        """
        tables = {"events": events, **{f"arm {shown(arm.name)}": arm.table for arm in arms}}
        if history is not None:
            tables["history"] = history = positive(history)
        _check_columns(tables, items)
        labels = positive(events)
        all_users = IdMap.from_values(labels["user_id"])
        kept = np.sort(rng.permutation(len(all_users))[:max_users])
        users = IdMap(all_users.ids[kept])
        item_ids = [items["item_id"], labels["item_id"], *(arm.table["item_id"] for arm in arms)]
        known = IdMap.from_values(pd.concat([pd.Series(ids.unique()) for ids in item_ids]).dropna().infer_objects())
        catalogue = items.dropna(subset=["item_id"]).drop_duplicates("item_id")
        position = known.positions(catalogue["item_id"])
        is_listed = np.zeros(len(known), dtype=bool)
        is_listed[position] = True
        titles = np.full(len(known), "", dtype=object)
        titles[position] = clean_texts(catalogue["title"]).str.slice(0, MAX_TITLE).to_numpy(dtype=object)
        attributes = catalogue.set_index("item_id").reindex(known.ids)
        relevant = counts(labels, users, known)
        if history is None:
            return cls(users, known, relevant, is_listed, titles, len(all_users), None, None, None, None, attributes)
        past = users.positions(history["user_id"])
        n_history = np.bincount(past[past >= 0], minlength=len(users))
        taken = known.positions(history["item_id"])
        popularity = np.bincount(taken[taken >= 0], minlength=len(known))
        seen = counts(history, users, known)
        tenure = _tenure(history, users, start) if start is not None and "timestamp" in history else None
        return cls(
            users, known, relevant, is_listed, titles, len(all_users), n_history, popularity, seen, tenure, attributes,
            None if hidden is None else counts(hidden, users, known),
        )  # fmt: skip

    @cached_property
    def n_relevant(self) -> IntArray:
        """Labels per user, (n_users,)."""
        return np.asarray(np.diff(self.relevant.indptr), dtype=np.int64)

    @property
    def catalogue(self) -> IntArray:
        """Positions of the items of the items table."""
        return np.flatnonzero(self.is_listed)

    @cached_property
    def is_offered(self) -> BoolArray:
        """Listed and not withdrawn, as far as the tables tell: what somebody took in the window was there, (n_items,)."""
        if "available" not in self.attributes:
            return self.is_listed
        is_taken = np.bincount(self.relevant.indices, minlength=len(self.items)) > 0
        return self.is_listed & (is_taken | ~self.attributes["available"].eq(False).to_numpy(dtype=bool))

    @cached_property
    def leaves_out_seen(self) -> bool:
        """Whether no label repeats what its user took before: evidently such labels were left out."""
        return self.seen is not None and self.relevant.multiply(self.seen).nnz == 0

    def lists(self, table: pd.DataFrame, n_slots: int) -> IntArray:
        """A table as item positions by slot; see `slots`."""
        return slots(table, self.users, self.items, n_slots)

    def coded(self, column: str) -> tuple[IntArray, pd.Index]:
        """An items column as codes, (n_items,), -1 where it is blank, into its sorted values."""
        values = clean_texts(self.attributes[column]).str.strip()
        code, names = values.where(values != "").factorize(sort=True)
        return np.asarray(code), pd.Index(names)

    def popular_lists(self, n_slots: int) -> IntArray | None:
        """The most popular items before the window, (n_users, n_slots); None without a history.

        Withdrawn ones are left out, and what a user hid. Items that a user already took are left out where labels leave them
        out, too.
        """
        if self.popularity is None or self.seen is None:
            return None
        counts = np.where(self.is_offered, self.popularity, 0)
        best = np.argsort(-counts, kind="stable")[: n_slots + _DEEP]
        best = best[counts[best] > 0]
        is_out = np.zeros((len(self.users), len(best)), dtype=bool)
        for barred in (self.seen if self.leaves_out_seen else None, self.hidden):
            if barred is not None:
                is_out |= barred[:, best].toarray() > 0
        order = np.argsort(is_out, axis=1, kind="stable")[:, :n_slots]
        ranked = np.where(np.take_along_axis(is_out, order, axis=1), -1, best[order])
        return np.pad(ranked, ((0, 0), (0, n_slots - ranked.shape[1])), constant_values=-1)


def positive(events: pd.DataFrame) -> pd.DataFrame:
    """Without rows whose weight is 0 or less, which are no labels."""
    return events[events["weight"] > 0] if "weight" in events else events


def sold(history: pd.DataFrame | None) -> pd.Index:
    """Items of an event before the window: they were there, whatever a catalogue imported since says of `created_at`."""
    return pd.Index([] if history is None else positive(history)["item_id"].unique())


def ranks(table: pd.DataFrame) -> FloatArray:
    """The rank column as float64, (n_rows,); nan where it is no number."""
    return np.asarray(pd.to_numeric(table["rank"], errors="coerce").astype("float64").to_numpy(na_value=np.nan))


def slots(table: pd.DataFrame, users: IdMap, items: IdMap, n_slots: int) -> IntArray:
    """A table of recommendations as item positions by slot, (n_users, n_slots); -1 where there is no row.

    A user without rows has an empty row: their metrics are 0, they are not dropped. Ranks that are no whole
    number from 1 to n_slots are left out here and reported by the checks.
    """
    rank = ranks(table)
    user_pos = users.positions(table["user_id"])
    fits = (user_pos >= 0) & (rank >= 1) & (rank <= n_slots) & (rank % 1 == 0)
    ranked = np.full((len(users), n_slots), -1, dtype=np.int64)
    ranked[user_pos[fits], rank[fits].astype(np.int64) - 1] = items.positions(table["item_id"][fits])
    return ranked


def counts(table: pd.DataFrame, users: IdMap, items: IdMap) -> sp.csr_matrix:
    """Rows of a table as counts, (n_users, n_items); unknown ids are left out."""
    row, column = users.positions(table["user_id"]), items.positions(table["item_id"])
    known = (row >= 0) & (column >= 0)
    cells = (np.ones(int(known.sum()), dtype=np.float32), (row[known], column[known]))
    return sp.csr_matrix(cells, shape=(len(users), len(items)))


def _tenure(history: pd.DataFrame, users: IdMap, start: pd.Timestamp) -> FloatArray:
    """Days from each user's first event to the window, (n_users,); nan without one."""
    first = history.groupby("user_id")["timestamp"].min().reindex(users.ids)
    return np.asarray((start - first).dt.total_seconds() / 86_400, dtype=np.float64)


def _check_columns(tables: dict[str, pd.DataFrame], items: pd.DataFrame) -> None:
    needed = {name: ["user_id", "item_id"] + ["rank"] * name.startswith("arm") for name in tables}
    for name, table in {**tables, "items": items}.items():
        refuse_missing(table, name, needed.get(name, ["item_id", "title"]))
    for column, group in (("user_id", tables), ("item_id", {**tables, "items": items})):
        kinds = {name: _kind(table[column]) for name, table in group.items() if len(table)}
        if len(set(kinds.values())) > 1:
            listed = ", ".join(f"{name} holds {kind}" for name, kind in kinds.items())
            raise DataError(f"{column}: {listed}; read both arms and the tables with one type of id")


def refuse_missing(table: pd.DataFrame, name: str, needed: list[str]) -> None:
    """Refuses a table without a column it needs.

    Raises:
        DataError: naming the table and the first such column.
    """
    missing = [column for column in needed if column not in table]
    if missing:
        found = ", ".join(map(shown, table.columns[:20]))
        raise DataError(f"{name}: column {missing[0]!r} is missing; found {found}; rename yours, or add it")


def _kind(ids: pd.Series) -> str:
    if pd.api.types.is_integer_dtype(ids.dtype):
        return "integers"
    kinds = {"integer": "integers", "floating": "floating-point numbers"}
    return kinds.get(pd.api.types.infer_dtype(ids), "text")

"""What each user did before a moment, as sparse matrices and recent lists."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from features.dataset import Dataset
from features.events import records_of
from features.spool import Records
from recsys.split import DAY_US
from recsys.types import BoolArray, FloatArray, IntArray

FAINTEST = 1e-6  # share of its weight that an event keeps at least, or is left out at


def strength(weight: FloatArray) -> FloatArray:
    """What label weights say of a user's taste, (n,) float64: 1 for 1, and 9 for 500, so that no bulk order drowns the rest.

    Source: Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008, eq. 6.

    >>> strength(np.array([0.0, 1.0, 3.0])).tolist()
    [0.0, 1.0, 2.0]
    """
    return np.asarray(np.log1p(np.asarray(weight, dtype=np.float64)) / np.log(2))


def ranges(starts: IntArray, counts: IntArray) -> IntArray:
    """Numbers from each start on, as many as its count, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


@dataclass(frozen=True)
class Histories:
    """Events known at a moment, ordered by user, then time; a step is one distinct moment of a user.

    Args:
        user_pos, item_pos: (n_events,) positions.
        timestamp: (n_events,) int64 microseconds, UTC, all before `as_of`.
        weight: (n_events,) float32 label weight.
        n_users, n_items: sizes of the position spaces.
        as_of: int64 microseconds, UTC.
        marks_seen: (n_events,) by which events their item counts as acted on; None: by all.
        hidden: events by which users took an item out of their own lists, none of which is among the others.
    """

    user_pos: IntArray
    item_pos: IntArray
    timestamp: IntArray
    weight: FloatArray
    n_users: int
    n_items: int
    as_of: int
    marks_seen: BoolArray | None = None
    hidden: "Histories | None" = None

    @classmethod
    def build(
        cls,
        user_pos: IntArray,
        item_pos: IntArray,
        timestamp: IntArray,
        weight: FloatArray,
        *,
        n_users: int,
        n_items: int,
        as_of: int,
        known: BoolArray | None = None,
        marks_seen: BoolArray | None = None,
        hidden: "Histories | None" = None,
    ) -> "Histories":
        """Sorts events; `known` picks the events that count, all before `as_of` by default."""
        keep = timestamp < as_of if known is None else known
        user, item, time, mass = user_pos[keep], item_pos[keep], timestamp[keep], weight[keep]
        marks = None if marks_seen is None else marks_seen[keep]
        same = user[1:] == user[:-1]
        rises = (user[1:] > user[:-1]) | same & (
            (time[1:] > time[:-1]) | (time[1:] == time[:-1]) & (item[1:] >= item[:-1])
        )
        if not rises.all():
            order = np.lexsort((item, time, user))
            user, item, time, mass = user[order], item[order], time[order], mass[order]
            marks = None if marks is None else marks[order]
        return cls(user, item, time, mass, n_users, n_items, as_of, marks, hidden)

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        known: BoolArray | None = None,
        as_of: int | None = None,
        hidden: Records | None = None,
    ) -> "Histories":
        """Those of a data set; `known` picks events that count, all before `as_of` (the data set's) by default; `hidden` is what
        of `Dataset.hidden` does, all before `as_of` by default.
        """
        stored = StoredHistories(dataset)
        as_of = stored.as_of if as_of is None else as_of
        hides = stored.hidden(dataset.hidden if hidden is None else hidden)
        return cls.build(
            dataset.user_pos, dataset.item_pos, dataset.timestamp, dataset.weight,
            n_users=stored.n_users, n_items=stored.n_items, as_of=as_of, known=known, marks_seen=dataset.marks_seen,
            hidden=hides.before(as_of) if hides else None,
        )  # fmt: skip

    @cached_property
    def step(self) -> IntArray:
        """How many of the user's distinct moments are newer than the event's, (n_events,) int64."""
        new_moment = np.ones(len(self.user_pos), dtype=bool)
        new_moment[1:] = (self.user_pos[1:] != self.user_pos[:-1]) | (self.timestamp[1:] != self.timestamp[:-1])
        moment = np.cumsum(new_moment)
        last = np.zeros(self.n_users, dtype=np.int64)
        last[self.user_pos] = moment  # the user's last event wins, since events are in time order
        return last[self.user_pos] - moment

    @cached_property
    def indptr(self) -> IntArray:
        """Where each user's events start, (n_users + 1,)."""
        return np.searchsorted(self.user_pos, np.arange(self.n_users + 1))

    @cached_property
    def n_events(self) -> IntArray:
        """Events per user, (n_users,)."""
        return np.diff(self.indptr)

    @cached_property
    def n_moments(self) -> IntArray:
        """Distinct moments per user, (n_users,)."""
        counts = np.zeros(self.n_users, dtype=np.int64)
        some = np.flatnonzero(self.n_events)
        counts[some] = self.step[self.indptr[some]] + 1  # the oldest event is as many steps back
        return counts

    @property
    def oldest(self) -> int:
        """When the first event was, int64 microseconds; `as_of` without one."""
        return int(self.timestamp.min(initial=self.as_of))

    def rows_of(self, users: IntArray) -> IntArray:
        """Rows of users' events, user after user in the order given."""
        return ranges(self.indptr[users], self.n_events[users])

    def of_users(self, users: IntArray) -> "Histories":
        """The histories of some users, who are renumbered 0..n-1 in the order given; strangers, from n_users, have none."""
        is_known = users < self.n_users
        rows = self.rows_of(users[is_known])
        counts = np.zeros(len(users), dtype=np.int64)
        counts[is_known] = self.n_events[users[is_known]]
        return Histories(
            np.repeat(np.arange(len(users)), counts),
            self.item_pos[rows],
            self.timestamp[rows],
            self.weight[rows],
            len(users),
            self.n_items,
            self.as_of,
            None if self.marks_seen is None else self.marks_seen[rows],
            self.hidden.of_users(users) if self.hidden else None,
        )

    def blocks(self) -> Iterator["Histories"]:
        """The events in parts, here one; see `StoredHistories`."""
        yield self

    def loaded(self) -> "Histories":
        """All in memory, as they are."""
        return self

    def before(self, moment: int) -> "Histories":
        """What was known at an earlier moment, int64 microseconds."""
        return Histories.build(
            self.user_pos, self.item_pos, self.timestamp, self.weight,
            n_users=self.n_users, n_items=self.n_items, as_of=moment, marks_seen=self.marks_seen,
            hidden=self.hidden.before(moment) if self.hidden else None,
        )  # fmt: skip

    def renamed(self, item_pos: IntArray, n_items: int) -> "Histories":
        """The same events over other item positions, such as rows of distinct texts."""
        hidden = self.hidden.renamed(item_pos, n_items) if self.hidden else None
        return replace(self, item_pos=item_pos[self.item_pos], n_items=n_items, hidden=hidden)

    def decayed(self, decay: float, faint: float = 0.0) -> sp.csr_matrix:
        """Strength of each item by how many steps ago it was taken, (n_users, n_items) float32; repeats add up.

        Args:
            faint: events that have decayed to this share of a newest one or less are left out.
        """
        share = np.power(float(decay), self.step)
        mass = strength(self.weight) * share
        # decay**step underflows for very long histories; such a share is noise, and zeros must not be stored
        keep = (share > max(FAINTEST, faint)) & (mass > 0)
        return self._matrix(mass[keep], keep)

    def confidence(self, half_life_days: float) -> sp.csr_matrix:
        """Weight of each item by its age in days, (n_users, n_items) float32; repeats add up."""
        age_days = (self.as_of - self.timestamp) / DAY_US
        mass = self.weight * np.maximum(np.power(0.5, age_days / half_life_days), FAINTEST)
        return self._matrix(mass, slice(None))

    def counts(self) -> sp.csr_matrix:
        """How often each user took each item, (n_users, n_items) float32."""
        return self._matrix(np.ones(len(self.item_pos), dtype=np.float32), slice(None))

    def days_since_last(self) -> FloatArray:
        """Days since the newest event of each user, (n_users,) float64; nan without an event."""
        last = np.zeros(self.n_users, dtype=np.int64)
        last[self.user_pos] = self.timestamp  # the newest event is written last
        return np.where(last > 0, (self.as_of - last) / DAY_US, np.nan)

    @cached_property
    def seen(self) -> tuple[IntArray, IntArray]:
        """User and item position of what counts as acted on, (n_seen,) each; a pair may come more than once."""
        if self.marks_seen is None:
            return self.user_pos, self.item_pos
        return self.user_pos[self.marks_seen], self.item_pos[self.marks_seen]

    def barred(self, exclude_seen: bool) -> tuple[IntArray, IntArray]:
        """User and item position of what no list of the user may hold, (n_barred,) each; a pair may come more than once.

        Args:
            exclude_seen: whether what was acted on is, too, and not only what was hidden.
        """
        nothing = np.zeros(0, dtype=np.int64)
        seen = self.seen if exclude_seen else (nothing, nothing)
        if self.hidden is None:
            return seen
        return np.concatenate([seen[0], self.hidden.user_pos]), np.concatenate([seen[1], self.hidden.item_pos])

    def listable(self, targets: sp.csr_matrix, exclude_seen: bool) -> sp.csr_matrix:
        """Targets, (n_users, n_items), without what is barred."""
        barred = self.barred(exclude_seen)
        is_barred = sp.csr_matrix((np.ones(len(barred[0]), dtype=bool), barred), (self.n_users, self.n_items))
        left = sp.csr_matrix(targets - targets.multiply(is_barred))
        left.eliminate_zeros()
        return left

    def popularity(self, days: float | None = None) -> FloatArray:
        """Summed event weight per item in the last `days`, or ever, (n_items,) float64."""
        recent = slice(None) if days is None else self.timestamp >= self.as_of - days * DAY_US
        weights = self.weight[recent].astype(np.float64)
        return np.asarray(np.bincount(self.item_pos[recent], weights, minlength=self.n_items), dtype=np.float64)

    def recent(self, n: int) -> IntArray:
        """The last `n` distinct items of each user, newest first, (n_users, n) int64; -1 marks an empty slot."""
        # newest first: reversed arrays are ordered by user down, time down; keep each pair's first sight
        user, item = self.user_pos[::-1], self.item_pos[::-1]
        _, first = np.unique(user.astype(np.int64) * self.n_items + item, return_index=True)
        first.sort()
        user, item = user[first][::-1], item[first][::-1]  # users up, each from old to new
        counts = np.bincount(user, minlength=self.n_users)
        from_newest = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(user))
        out = np.full((self.n_users, n), -1, dtype=np.int64)
        keep = from_newest < n
        out[user[keep], from_newest[keep]] = item[keep]
        return out

    def _matrix(self, mass: FloatArray, keep: BoolArray | slice) -> sp.csr_matrix:
        data = (mass.astype(np.float32), (self.user_pos[keep], self.item_pos[keep]))
        return sp.csr_matrix(data, shape=(self.n_users, self.n_items))


@dataclass(frozen=True)
class StoredHistories:
    """Histories of any number of users that stay where they are stored; only those asked for are read.

    Args:
        dataset: whose events count.
    """

    dataset: Dataset

    @property
    def n_users(self) -> int:
        """Size of the space of user positions."""
        return len(self.dataset.users)

    @property
    def n_items(self) -> int:
        """Size of the space of item positions."""
        return len(self.dataset.items)

    @property
    def as_of(self) -> int:
        """int64 microseconds, UTC."""
        return int(self.dataset.as_of.value // 1000)

    @property
    def oldest(self) -> int:
        """When the first event was, int64 microseconds."""
        return int(self.dataset.oldest.value // 1000)

    def of_users(self, users: IntArray) -> Histories:
        """As `Histories.of_users`."""
        known = np.unique(users[users < self.n_users])
        records = records_of(known, self.dataset.records, self.dataset.bounds)
        records["user"] = np.searchsorted(known, records["user"])
        some = self._histories(records[self.dataset.counts(records)])
        hidden = self.hidden(records)
        renumbered = replace(some, n_users=len(known), hidden=replace(hidden, n_users=len(known)) if hidden else None)
        return renumbered.of_users(np.where(users < self.n_users, np.searchsorted(known, users), len(known)))

    def blocks(self) -> Iterator[Histories]:
        """The events in parts that fit memory; a user's may be in two of them."""
        for records in self.dataset.blocks():
            yield self._histories(records)

    def loaded(self) -> Histories:
        """All in memory."""
        return Histories.of(self.dataset)

    def hidden(self, records: Records) -> Histories | None:
        """Those by which users hide items; None where there is no rule for that."""
        return self._histories(records[self.dataset.hides(records)]) if self.dataset.hidden_by else None

    def _histories(self, records: Records) -> Histories:
        columns = (records["user"], records["item"], records["timestamp"], records["weight"])
        return Histories(*columns, self.n_users, self.n_items, self.as_of, self.dataset.seeing(records))


Past = Histories | StoredHistories
"""What is known of users, in memory or not."""

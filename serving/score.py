"""Batch scoring: users in chunks to ranked lists with reasons; one shard of users is one part file."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from features import pairs
from features.activity import activity
from features.candidates import gather
from features.caps import pick_of
from features.chunks import chunk_size, chunks
from features.clean import clean_ids
from features.cold_order import score_pairs
from features.dataset import Dataset
from features.histories import Histories
from features.reasons import quoted, reasons
from features.snapshot import Snapshot
from recsys.errors import DataError, ModelError
from recsys.ids import IdMap
from recsys.machine import keep_memory, one_blas_thread, usable_cores
from recsys.ranker import Ranker
from recsys.schema import recommendation_schema
from recsys.types import FloatArray, IntArray, Progress
from training.evaluate import rank_pairs


@dataclass(frozen=True)
class Stamp:
    """What every row says about its origin; `run_date` is YYYY-MM-DD."""

    run_id: str
    model_version: str
    run_date: str


@dataclass(frozen=True)
class Scorer:
    """Scores users of one data set with one model; holds no state between calls.

    Args:
        snapshot: the world at the moment of scoring.
        ranker: sorts the candidates.
        users, items: outside ids of the snapshot's positions.
        titles: (n_items,) for the reasons.
        stamp: origin of the rows.
    """

    snapshot: Snapshot
    ranker: Ranker
    users: IdMap
    items: IdMap
    titles: pd.Series
    stamp: Stamp

    @classmethod
    def of(cls, dataset: Dataset, snapshot: Snapshot, ranker: Ranker, stamp: Stamp) -> "Scorer":
        """A scorer over a data set's ids and titles."""
        return cls(snapshot, ranker, dataset.users, dataset.items, dataset.catalogue["title"], stamp)

    def without_p(self) -> "Scorer":
        """For lists of some items alone: `p` weighs an item against all else that a user might take, and here is no else."""
        return replace(self, ranker=replace(self.ranker, calibration=None))

    @property
    def schema(self) -> pa.Schema:
        """Of the tables that `score` returns."""
        return recommendation_schema(_arrow_type(self.users), _arrow_type(self.items))

    @cached_property
    def quotes(self) -> pa.Array:
        """Titles as the reasons quote them."""
        return quoted(self.titles)

    def score(self, users: IntArray, k: int, progress: Progress | None = None) -> pa.Table:
        """The recommendation table of users, sorted by user, then rank.

        A user without history gets the popular list of the last days. A user gets fewer than k rows only
        where fewer items that ever sold may be recommended to them, or no more of a category or brand. `p` is null where calibration is off, for users without history (nobody
        knows whether a stranger takes anything), for popular items that fill a list up (the ranker never saw them) and in lists
        of some items alone (`without_p`).

        Args:
            users: (n,) ascending user positions.
            k: items per user.
        """
        keep_memory()
        k = min(k, len(self.items))  # nothing is as long as a list that nobody can fill
        size = chunk_size(len(self.items), self.snapshot.config.serving.chunk_users)
        histories = self.snapshot.histories.of_users(users)  # read once; the chunks below share it
        parts = []
        pool = ThreadPoolExecutor(usable_cores())
        try:
            with one_blas_thread():
                rows = chunks(np.arange(len(users)), size)
                for part in pool.map(lambda some: self._chunk(users[some], histories.of_users(some), k), rows):
                    parts.append(part)
                    if progress:
                        progress(min(len(users), len(parts) * size), len(users))
        finally:
            pool.shutdown(cancel_futures=True)  # a run that is told to stop does not finish the shard first
        return pa.concat_tables(parts) if parts else self.schema.empty_table()

    def _chunk(self, users: IntArray, some: Histories, k: int) -> pa.Table:
        candidates = gather(self.snapshot, some)
        table = pairs.build(self.snapshot, some, candidates)
        scores = score_pairs(self.ranker, candidates, table)
        refuse_broken(scores)
        items, values = rank_pairs(candidates, scores, k, self.snapshot.caps)
        user_row, slot = np.nonzero(items >= 0)
        item_pos = items[user_row, slot]
        keys = candidates.user_row * some.n_items + candidates.item_pos
        rows = np.searchsorted(keys, user_row * some.n_items + item_pos)
        columns: dict[str, object] = {"user_row": user_row, "item_pos": item_pos, "score": values[user_row, slot]}
        columns |= reasons(self.quotes, candidates, table, rows)
        columns["p"] = np.full(len(rows), np.nan)
        calibration = self.ranker.calibration
        if calibration is not None:
            active = activity(some, calibration.pace(self.snapshot.days))
            columns["p"] = calibration.probabilities(scores, candidates.indptr, active)[rows]
        return self._table(self._filled(pa.table(columns), some, k), users)

    def _filled(self, listed: pa.Table, some: Histories, k: int) -> pa.Table:
        """With popular items for users whose candidates ran out, scored below everything they have."""
        user_row, item_pos, score = (listed[name].to_numpy() for name in ("user_row", "item_pos", "score"))
        bounds = np.searchsorted(user_row, np.arange(some.n_users + 1))
        parts = [listed]
        who, what = some.barred(self.snapshot.config.rules.exclude_seen)
        for row in np.flatnonzero(np.diff(bounds) < k):  # rare: the popular lists are among everybody's candidates
            mine = slice(bounds[row], bounds[row + 1])
            extra = self._next(item_pos[mine], np.union1d(item_pos[mine], what[who == row]), k)
            n, floor = len(extra), score[mine].min(initial=0.0 if bounds[row] == bounds[row + 1] else np.inf)
            columns = {
                "user_row": np.full(n, row), "item_pos": extra, "score": floor - 1 - np.arange(n),
                "source": pa.repeat("popular", n), "reason": pa.repeat("Popular", n), "reason_pos": np.full(n, -1),
                "p": np.full(n, np.nan),
            }  # fmt: skip
            parts.append(pa.table(columns))
        whole = pa.concat_tables(parts)
        return whole if len(parts) == 1 else whole.take(np.argsort(whole["user_row"].to_numpy(), kind="stable"))

    def _next(self, listed: IntArray, barred: IntArray, k: int) -> IntArray:
        """Popular items that make a list as long as k, or as long as it gets."""
        popular, caps = self.snapshot.popular["all_time"], self.snapshot.caps
        first = popular if caps else popular[: k + len(barred)]
        whole = np.concatenate([listed, first[~np.isin(first, barred)]])[None]
        picked = pick_of(whole, caps, k)[0]
        return np.asarray(whole[0, picked[picked >= len(listed)]])

    def _table(self, listed: pa.Table, users: IntArray) -> pa.Table:
        """The lists as people outside know them, ranks from 1."""
        user_row, item_pos, pointed = (listed[name].to_numpy() for name in ("user_row", "item_pos", "reason_pos"))
        n = len(user_row)
        columns: dict[str, object] = {
            "user_id": pa.array(self.users.values(users[user_row])),
            "item_id": pa.array(self.items.values(item_pos)),
            "rank": np.arange(n) - np.searchsorted(user_row, user_row) + 1,
            "score": listed["score"],
            "p": pa.array(listed["p"].to_numpy(), from_pandas=True),
            "source": listed["source"],
            "reason": listed["reason"],
            "reason_item_id": pa.array(self.items.values(np.maximum(pointed, 0)).to_numpy(), mask=pointed < 0),
            "run_id": pa.repeat(self.stamp.run_id, n),
            "model_version": pa.repeat(self.stamp.model_version, n),
            "run_date": pa.repeat(self.stamp.run_date, n),
        }
        return pa.table(columns).cast(self.schema)


def users_to_score(dataset: Dataset, wanted: pd.Series | None = None) -> IntArray:
    """Ascending positions of the wanted users, or of all; unknown ids are left out.

    Raises:
        DataError: none of the wanted ids is known.
    """
    if wanted is None:
        return np.arange(len(dataset.users))
    known = pd.Series(dataset.users.ids)
    positions = dataset.users.positions(clean_ids(wanted, "users"))
    if not (positions >= 0).any():
        raise DataError(f"--users: none of {len(wanted):,} ids has events; ids there are {known.dtype}; mend the file")
    return np.unique(positions[positions >= 0])


def _arrow_type(ids: IdMap) -> pa.DataType:
    return pa.from_numpy_dtype(ids.ids.dtype) if pd.api.types.is_integer_dtype(ids.ids.dtype) else pa.string()


def refuse_broken(scores: FloatArray) -> None:
    """Refuses scores of the ranker that are NaN or infinite, (n_pairs,): they would empty lists without a word.

    Raises:
        ModelError: saying how many.
    """
    n_broken = int((~np.isfinite(scores)).sum())
    if n_broken:
        raise ModelError(
            f"ranker: {n_broken:,} of {len(scores):,} scores not finite; train again, or go back to the model before: "
            "recsys rollback --model"
        )

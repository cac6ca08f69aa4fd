"""Batches for the text tower: which texts a step encodes, and what they are asked.

A step draws users and looks at some moments in a row of each: every event there is a query, what came before it its
history, and all texts that these users took, with some of the whole catalogue, the choice (ADR 4).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.histories import Histories, ranges, strength
from recsys.types import BoolArray, FloatArray, IntArray

MOMENTS = 8  # of one user in a row that a step looks at
EVENTS_PER_USER = 32  # of these, at most: a wholesaler must not fill a batch alone
MAX_QUERIES = 1024
MAX_EVENTS = 4096  # a step looks at, where few texts are in very many of them
UNIFORM_SHARE = 0.25  # of a batch's texts drawn from the whole catalogue: hard evidence about unsold items


@dataclass(frozen=True)
class Batch:
    """One step's texts and queries.

    texts: (n,) text positions; history: (n_queries, n) float32 row weights that sum to 1, or a row without any;
    target: (n_queries,) column; masked: (n_queries, n) other positives of the user;
    log_inclusion: (n,); weight: (n_queries,) label weight.
    """

    texts: IntArray
    history: sp.csr_matrix
    target: IntArray
    masked: BoolArray
    log_inclusion: FloatArray
    weight: FloatArray


class BatchSampler:
    """Draws batches from histories whose item positions are text positions.

    Args:
        histories: events before the moment of training.
        decay: weight of a history item per step back.
        texts: ascending positions of those that exist at the moment, (n,) (all by default): what comes later is no
            evidence.
        targets_after: int64 us; only events at or after it may be targets (all by default).
    """

    def __init__(
        self, histories: Histories, decay: float, texts: IntArray | None = None, targets_after: int | None = None
    ) -> None:
        self.h = histories
        self.texts = np.arange(histories.n_items) if texts is None else texts
        self.decay = decay
        self.is_target = np.ones(len(histories.item_pos), dtype=bool)
        if targets_after is not None:
            self.is_target = histories.timestamp >= targets_after
        self.n_targets = np.bincount(histories.user_pos, self.is_target, histories.n_users).astype(np.int64)
        self.user_draws = np.flatnonzero((self.n_targets > 0) & (histories.n_moments > 1))
        self.n_steps = int(histories.n_moments.max(initial=0)) + 1
        # ascending, as events are; positions are 32 bits wide, and their product with moments is not
        self.moment_key = histories.user_pos.astype(np.int64) * self.n_steps - histories.step
        most = np.maximum(histories.n_moments / MOMENTS, histories.n_events / EVENTS_PER_USER)
        share = 1 / np.maximum(most, 1)
        draws = np.isin(np.arange(histories.n_users), self.user_draws)
        drawn = np.bincount(histories.item_pos, (share * draws)[histories.user_pos], minlength=histories.n_items)
        self.rate: FloatArray = drawn / max(1, len(self.user_draws))

    def draw(self, n_texts: int, rng: np.random.Generator) -> Batch | None:
        """A batch of `n_texts` texts, or of all where there are fewer; None when nobody has a pair in it."""
        n_texts = min(n_texts, len(self.texts))
        texts, rows, n_users = self._drawn(n_texts, rng)
        column = np.full(self.h.n_items, -1, dtype=np.int64)
        column[texts] = np.arange(len(texts))
        target = self._targets(rows, rng)
        if not len(target):
            return None
        history = self._history(rows, target, column, len(texts))
        # what the drawn users left free was filled from the rest of the catalogue
        n_chosen = len(np.unique(self.h.item_pos[rows]))
        uniform = (n_texts - n_chosen) / max(1, len(self.texts) - n_chosen)
        inclusion = 1 - (1 - np.minimum(self.rate[texts], 1 - 1e-9)) ** n_users * (1 - min(uniform, 1 - 1e-9))
        log_inclusion = np.log(np.maximum(inclusion, 1e-9)) if len(texts) < len(self.texts) else np.zeros(len(texts))
        target_rows = rows[target]
        masked = self._taken(self.h.user_pos[target_rows], column, len(texts))
        target_column = column[self.h.item_pos[target_rows]]
        masked[np.arange(len(target)), target_column] = False
        weight = self.h.weight[target_rows]
        return Batch(texts, history, target_column, masked, log_inclusion.astype(np.float32), weight)

    def _drawn(self, n_texts: int, rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
        """Texts of drawn users up to a share of the batch, the rest uniform; these users' rows, ascending; their number."""
        users = rng.permutation(self.user_draws)
        is_all = n_texts == len(self.texts)
        wanted = n_texts if is_all else int(n_texts * (1 - UNIFORM_SHARE))
        rows: IntArray = np.zeros(0, dtype=np.int64)
        asked, more = 0, max(8, wanted // EVENTS_PER_USER)
        while asked < len(users):
            rows = np.concatenate([rows, self._stretches(users[asked : asked + more], rng)])[:MAX_EVENTS]
            asked, more = asked + more, 2 * more
            first = np.sort(np.unique(self.h.item_pos[rows], return_index=True)[1])
            if len(first) > wanted:
                rows = rows[: first[wanted]]
            if len(first) > wanted or len(rows) == MAX_EVENTS:
                break
        n_users = len(np.unique(self.h.user_pos[rows]))
        if is_all:
            return self.texts, np.sort(rows), n_users
        chosen = np.unique(self.h.item_pos[rows])
        rest = rng.choice(self.texts, n_texts, replace=False)
        rest = rest[~np.isin(rest, chosen)][: n_texts - len(chosen)]
        return np.sort(np.concatenate([chosen, rest])), np.sort(rows), n_users

    def _stretches(self, users: IntArray, rng: np.random.Generator) -> IntArray:
        """Rows of some events of each user within `MOMENTS` moments in a row, one of which may be a target."""
        back = (rng.random(len(users)) * self.n_targets[users]).astype(np.int64)  # targets are a user's newest events
        target = self.h.indptr[users + 1] - 1 - back
        newest = self.h.step[target] - rng.integers(0, MOMENTS, len(users))
        newest = np.clip(newest, 0, np.maximum(self.h.n_moments[users] - MOMENTS, 0))
        key = users * self.n_steps - newest
        start = np.searchsorted(self.moment_key, key - (MOMENTS - 1))
        start = np.maximum(start, self.h.indptr[users])  # who has fewer moments
        counts = np.searchsorted(self.moment_key, key, side="right") - start
        rows = ranges(start, counts)
        order = np.lexsort((rng.random(len(rows)), np.repeat(np.arange(len(users)), counts)))
        return rows[order[ranges(np.zeros_like(counts), counts) < EVENTS_PER_USER]]

    def _targets(self, rows: IntArray, rng: np.random.Generator) -> IntArray:
        """Which of the rows are queries: those that may be and have an older one of the same user beside them."""
        first, counts = _runs(self.h.user_pos[rows])  # rows are old to new, so a user's first is the oldest
        oldest = np.repeat(self.h.step[rows[first]], counts)
        eligible = np.flatnonzero(self.is_target[rows] & (self.h.step[rows] < oldest))
        return np.sort(rng.permutation(eligible)[:MAX_QUERIES])

    def _history(self, rows: IntArray, target: IntArray, column: IntArray, n_texts: int) -> sp.csr_matrix:
        """Decayed history of each query among the rows of its user, (n_queries, n_texts)."""
        step, col = self.h.step[rows], column[self.h.item_pos[rows]]
        first, counts = _runs(self.h.user_pos[rows])
        run = np.repeat(np.arange(len(first)), counts)[target]
        size = target - first[run]  # older rows of the same user
        query = np.repeat(np.arange(len(target)), size)
        row = ranges(first[run], size)
        before = (step[row] > step[target][query]) & (col[row] != col[target][query])
        query, row = query[before], row[before]
        newest = np.zeros(len(target), dtype=np.int64)
        newest[query] = step[row]  # rows are old to new, so the newest is written last
        weight = np.power(self.decay, step[row] - newest[query]) * strength(self.h.weight[rows[row]])
        weight /= np.bincount(query, weight, len(target))[query]
        indptr = np.searchsorted(query, np.arange(len(target) + 1))
        return sp.csr_matrix((weight.astype(np.float32), col[row], indptr), shape=(len(target), n_texts))

    def _taken(self, user: IntArray, column: IntArray, n_texts: int) -> BoolArray:
        """What the user of each query ever took, (n_queries, n_texts)."""
        users, of_query = np.unique(user, return_inverse=True)
        some = self.h.of_users(users)
        col = column[some.item_pos]
        taken = np.zeros((len(users), n_texts), dtype=bool)
        taken[some.user_pos[col >= 0], col[col >= 0]] = True
        return taken[of_query]


def _runs(values: IntArray) -> tuple[IntArray, IntArray]:
    """Where each run of equal values starts, and its length."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return first, np.diff(np.append(first, len(values)))

"""Features of a (user, item) pair, from what was known at the snapshot's moment."""

from dataclasses import dataclass

import numpy as np

from features.candidates import LISTED, SCORED, Candidates
from features.histories import DAY_US, Histories
from features.snapshot import Snapshot
from recsys.machine import one_blas_thread
from recsys.types import FloatArray, IntArray

N_RECENT = 20  # items of the history compared by text with each candidate
NOTHING = -2.0  # below any cosine
_PAIR_NAMES = (
    "text_max", "text_mean", "text_last", "times_taken", "days_since_taken", "interval_share",
    "count_1d", "count_7d", "count_30d", "count_all", "trend", "age_days",
    "price", "price_ratio", "category_share", "brand_share",
    "user_events", "user_items", "user_days_since_last",
)  # fmt: skip
NAMES = (
    *(f"{s}_{kind}" for s in SCORED for kind in ("score", "z")),
    *(f"{s}_rank" for s in (*SCORED, *LISTED)),
    *_PAIR_NAMES,
)
FUSED = (  # what the linear fusion adds up
    *(f"{s}_z" for s in SCORED),
    "text_max", "text_mean", "text_last", "category_share", "brand_share", "count_7d", "count_30d", "count_all", "trend",
)  # fmt: skip


@dataclass(frozen=True)
class PairTable:
    """Features of candidates.

    Args:
        features: (n_pairs, len(NAMES)) float32, nan where unknown.
        likeness: cosine of each recent item of the user, newest first, with the candidate, (N_RECENT, n_pairs);
            `NOTHING` where there is none, or it is the candidate itself.
        recent: items of each pair's user, newest first, (n_users, N_RECENT); -1 marks an empty slot.
        user_row: (n_pairs,).
    """

    features: FloatArray
    likeness: FloatArray
    recent: IntArray
    user_row: IntArray

    def column(self, name: str) -> FloatArray:
        """One feature, (n_pairs,)."""
        return self.features[:, NAMES.index(name)]

    def nearest(self, rows: IntArray) -> IntArray:
        """Recent item most like the candidate by text, for some pairs; -1 where there is none."""
        some = self.likeness[:, rows]
        best = some.argmax(axis=0)
        return np.where(some.max(axis=0) > NOTHING, self.recent[self.user_row[rows], best], -1)


def build(snapshot: Snapshot, some: Histories, candidates: Candidates) -> PairTable:
    """The feature table of a chunk of users; columns are `NAMES`."""
    user, item, facts = candidates.user_row, candidates.item_pos, snapshot.facts
    columns: dict[str, FloatArray] = {}
    for source in SCORED:
        columns[f"{source}_score"] = candidates.scores[source]
        columns[f"{source}_z"] = standardised(candidates.scores[source], candidates)
    columns |= {f"{source}_rank": rank for source, rank in candidates.ranks.items()}
    columns |= _own_past(some, user, item)
    recent = some.recent(N_RECENT)
    likeness = _text_likeness(snapshot.text_vectors, recent, candidates)
    taken = np.flatnonzero(columns["times_taken"] > 0)
    likeness[:, taken] = np.where(
        recent.T[:, user[taken]] == item[taken], NOTHING, likeness[:, taken]
    )  # no reason for itself
    columns["text_max"], columns["text_last"] = (
        np.where(values > NOTHING, values, np.nan) for values in (likeness.max(axis=0), likeness[0])
    )
    columns["text_mean"] = _mean_likeness(likeness)
    for name, counts in facts.log_counts.items():
        columns[f"count_{name}"] = counts[item]
    columns["trend"] = facts.trend[item]
    columns["age_days"] = facts.age_days[item]
    columns["price"] = facts.price[item]
    columns["price_ratio"] = columns["price"] / _mean_price(some, facts.price)[user]
    columns["category_share"] = _share(some, facts.category, user, item)
    columns["brand_share"] = _share(some, facts.brand, user, item)
    columns["user_events"] = np.log1p(some.n_events)[user]
    columns["user_items"] = np.log1p(np.diff(some.counts().indptr))[user]
    columns["user_days_since_last"] = _days_since_last(some)[user]
    return PairTable(np.stack([columns[n].astype(np.float32) for n in NAMES], axis=1), likeness, recent, user)


def standardised(scores: FloatArray, candidates: Candidates) -> FloatArray:
    """Scores less their mean over the user's candidates, divided by their deviation; 0 where all are equal."""
    user, n = candidates.user_row, candidates.n_users
    size = np.maximum(np.bincount(user, minlength=n), 1)
    centred = scores - (np.bincount(user, scores, minlength=n) / size)[user]
    deviation = np.sqrt(np.bincount(user, centred**2, minlength=n) / size)
    return np.asarray(centred / np.where(deviation > 1e-9, deviation, 1.0)[user], dtype=np.float32)


def _text_likeness(vectors: FloatArray, recent: IntArray, candidates: Candidates) -> FloatArray:
    """Cosine of each recent item with each candidate, (N_RECENT, n_pairs); `NOTHING` in an empty slot.

    User by user: the vectors of one user's candidates fit the processor's cache, those of a chunk do not.
    """
    item, bounds = candidates.item_pos, candidates.indptr
    likeness = np.full((recent.shape[1], len(item)), NOTHING, dtype=np.float32)
    n_recent = (recent >= 0).sum(axis=1)
    room = np.empty((np.diff(bounds).max(initial=0), vectors.shape[1]), dtype=vectors.dtype)
    with one_blas_thread():
        for row in np.flatnonzero(n_recent):
            start, stop = bounds[row], bounds[row + 1]
            wanted = np.take(vectors, item[start:stop], axis=0, out=room[: stop - start], mode="clip")
            likeness[: n_recent[row], start:stop] = vectors[recent[row, : n_recent[row]]] @ wanted.T
    return likeness


def _mean_likeness(likeness: FloatArray) -> FloatArray:
    """Mean over the recent items that there are, (n_pairs,); nan where there is none."""
    is_there = likeness > NOTHING
    n = is_there.sum(axis=0)
    return np.where(n > 0, np.where(is_there, likeness, 0).sum(axis=0) / np.maximum(n, 1), np.nan)


def _own_past(some: Histories, user: IntArray, item: IntArray) -> dict[str, FloatArray]:
    """How often and when the user took this very item; nan where never."""
    events = some.user_pos.astype(np.int64) * some.n_items + some.item_pos
    keys, group = np.unique(events, return_inverse=True)
    times = np.bincount(group, minlength=len(keys))
    first = np.full(len(keys), np.iinfo(np.int64).max)
    last = np.zeros(len(keys), dtype=np.int64)
    np.minimum.at(first, group, some.timestamp)
    np.maximum.at(last, group, some.timestamp)
    since = (some.as_of - last) / DAY_US
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = np.where(times > 1, (last - first) / DAY_US / (times - 1), np.nan)
        share = np.where(interval > 0, since / interval, np.nan)
    pair_keys = user.astype(np.int64) * some.n_items + item  # ascending; a user's own items are far fewer
    at = np.minimum(np.searchsorted(pair_keys, keys), max(0, len(pair_keys) - 1))
    mine = pair_keys[at] == keys if len(pair_keys) else np.zeros(len(keys), dtype=bool)
    columns = {"times_taken": times, "days_since_taken": since, "interval_share": share}
    past = {name: np.full(len(pair_keys), np.nan) for name in columns}
    for name, values in columns.items():
        past[name][at[mine]] = values[mine]
    return past


def _share(some: Histories, codes: IntArray, user: IntArray, item: IntArray) -> FloatArray:
    """Share of the user's events whose item has the candidate's code; nan where the code is unknown."""
    code = codes[some.item_pos]
    n_codes = max(1, int(codes.max(initial=-1)) + 1)
    known = code >= 0
    table = np.bincount(some.user_pos[known] * n_codes + code[known], minlength=some.n_users * n_codes)
    share = table.reshape(some.n_users, n_codes) / np.maximum(some.n_events, 1)[:, None]
    return np.where(codes[item] >= 0, share[user, np.maximum(codes[item], 0)], np.nan)


def _mean_price(some: Histories, price: FloatArray) -> FloatArray:
    paid = price[some.item_pos]
    known = paid > 0
    total = np.bincount(some.user_pos[known], paid[known], minlength=some.n_users)
    n = np.bincount(some.user_pos[known], minlength=some.n_users)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _days_since_last(some: Histories) -> FloatArray:
    last = np.zeros(some.n_users, dtype=np.int64)
    np.maximum.at(last, some.user_pos, some.timestamp)
    return np.where(last > 0, (some.as_of - last) / DAY_US, np.nan)

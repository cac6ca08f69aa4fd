"""Features of a (user, item) pair, from what was known at the snapshot's moment."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from features.candidates import LISTED, SCORED, Candidates
from features.histories import Histories
from features.snapshot import Snapshot
from recsys.machine import one_blas_thread
from recsys.split import DAY_US
from recsys.types import FloatArray, IntArray
from recsys.vectors import products

N_RECENT = 20  # items of the history compared by text with each candidate
NOTHING = -2.0  # below any cosine
ROUNDING = 1e-5  # of a score: what float32 products differ by, and some
TINY = 1e-30
HABIT_DECAY = 0.98  # per step back: a habit outlives the taste of the day, which `repeat` follows
_PAIR_NAMES = (
    "text_max", "text_mean", "text_last",
    "times_taken", "days_since_taken", "interval_share", "taken_share", "steps_since_taken", "habit",
    "count_1d", "count_7d", "count_30d", "count_all", "trend", "age_days", "rebought",
    "price", "price_ratio", "category_share", "brand_share",
    "user_events", "user_items", "user_moments", "user_days_since_last",
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
        features: (n_pairs, len(NAMES)) float32, nan where unknown; columns lie in one piece each.
        likeness: cosine of each recent item of the user, newest first, with the candidate, as far as the leading
            directions tell, (N_RECENT, n_pairs); `NOTHING` where there is none, it is the candidate itself, or one has no text.
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
    sizes = np.diff(candidates.indptr)
    columns: dict[str, FloatArray] = {f"{source}_rank": rank for source, rank in candidates.ranks.items()}
    columns |= _own_past(some, user, item)
    recent = some.recent(N_RECENT)
    text_users = products(candidates.text_users, snapshot.text_basis).numpy()
    text, likeness = _text_products(snapshot.short_text_vectors, text_users[:, None], recent, candidates)
    for source, scores in (candidates.scores | {"text": text[0]}).items():
        columns[f"{source}_score"] = scores
        columns[f"{source}_z"] = standardised(scores, candidates)
    taken = np.flatnonzero(columns["times_taken"] > 0)
    likeness[:, taken] = np.where(
        recent.T[:, user[taken]] == item[taken], NOTHING, likeness[:, taken]
    )  # no reason for itself
    if not snapshot.has_text.all():  # empty slots, at -1, hold nothing already
        likeness[:, ~snapshot.has_text[item]] = NOTHING
        likeness[~snapshot.has_text[recent.T][:, user]] = NOTHING
    columns["text_max"], columns["text_last"] = (
        np.where(values > NOTHING, values, np.nan) for values in (likeness.max(axis=0), likeness[0])
    )
    columns["text_mean"] = _mean_likeness(likeness)
    columns |= dict(zip(facts.columns, facts.table[item].T, strict=True))
    columns["price_ratio"] = columns["price"] / np.repeat(_mean_price(some, facts.price), sizes)
    columns["category_share"] = _share(some, facts.category, user, item)
    columns["brand_share"] = _share(some, facts.brand, user, item)
    columns["user_events"] = np.repeat(np.log1p(some.n_events), sizes)
    columns["user_items"] = np.repeat(np.log1p(np.diff(some.counts().indptr)), sizes)
    columns["user_moments"] = np.repeat(some.n_moments, sizes)
    columns["user_days_since_last"] = np.repeat(some.days_since_last(), sizes)
    features = np.empty(
        (len(NAMES), len(user)), dtype=np.float32
    ).T  # column by column: the fusion wants a few of all pairs
    for index, name in enumerate(NAMES):
        features[:, index] = columns[name]
    return PairTable(features, likeness, recent, user)


def standardised(scores: FloatArray, candidates: Candidates) -> FloatArray:
    """Scores less their mean over the user's candidates, divided by their deviation; 0 where all are equal but for rounding."""
    sizes = np.diff(candidates.indptr)
    some = sizes > 0
    sizes, starts = sizes[some], candidates.indptr[:-1][some]
    if not len(sizes):
        return np.zeros(0, dtype=np.float32)
    mean = np.add.reduceat(scores, starts, dtype=np.float64) / sizes
    centred = scores - np.repeat(mean.astype(np.float32), sizes)
    deviation = np.sqrt(np.add.reduceat(centred * centred, starts, dtype=np.float64) / sizes)
    share = np.where(deviation > ROUNDING * np.abs(mean), 1 / np.maximum(deviation, TINY), 0.0).astype(np.float32)
    return np.asarray(centred * np.repeat(share, sizes), dtype=np.float32)


def _text_products(
    vectors: FloatArray, users: FloatArray, recent: IntArray, candidates: Candidates
) -> tuple[FloatArray, FloatArray]:
    """Dot products of candidates with vectors of their user, and with the user's recent items.

    User by user: the vectors of one user's candidates fit the processor's cache, those of a chunk do not; and they are
    fetched once for all products.

    Args:
        vectors: of the items, (n_items, dim).
        users: any number of vectors a user, (n_users, n_vectors, dim).
        recent: (n_users, n_recent), -1 marks an empty slot; these come last.

    Returns:
        (n_vectors, n_pairs) float32 products with the user's vectors, and (n_recent, n_pairs) with the recent items,
        `NOTHING` in an empty slot.
    """
    item, bounds, n_vectors = candidates.item_pos, candidates.indptr.tolist(), users.shape[1]
    out = np.full((n_vectors + recent.shape[1], len(item)), NOTHING, dtype=np.float32)
    n_known = (n_vectors + (recent >= 0).sum(axis=1)).tolist()
    room = np.empty((np.diff(bounds).max(initial=0), vectors.shape[1]), dtype=vectors.dtype)
    with one_blas_thread():
        for row, (start, stop) in enumerate(pairwise(bounds)):
            wanted = np.take(vectors, item[start:stop], axis=0, out=room[: stop - start], mode="clip")
            known = np.concatenate([users[row], vectors[recent[row, : n_known[row] - n_vectors]]])
            out[: n_known[row], start:stop] = (wanted @ known.T).T  # a quarter faster than known @ wanted.T
    return out[:n_vectors], out[n_vectors:]


def _mean_likeness(likeness: FloatArray) -> FloatArray:
    """Mean over the recent items that there are, (n_pairs,); nan where there is none."""
    n_there = (likeness > NOTHING).sum(axis=0, dtype=np.float32)
    total = likeness.sum(axis=0) - NOTHING * (len(likeness) - n_there)
    return np.where(n_there > 0, total / np.maximum(n_there, 1), np.nan)


def _own_past(some: Histories, user: IntArray, item: IntArray) -> dict[str, FloatArray]:
    """How often, when and how regularly the user took this very item; nan where never.

    Source: Hu et al., Modeling personalized item frequency information for next-basket recommendation, SIGIR 2020
        (decayed frequency, `habit`).
    """
    events = some.user_pos.astype(np.int64) * some.n_items + some.item_pos
    keys, group = np.unique(events, return_inverse=True)
    times = np.bincount(group, minlength=len(keys))
    first, last = np.empty((2, len(keys)), dtype=np.int64)
    first[group[::-1]], last[group] = some.timestamp[::-1], some.timestamp  # of a user's events, the last written stays
    is_new = np.ones(len(events), dtype=bool)  # several lines of one basket are one moment
    is_new[1:] = (events[1:] != events[:-1]) | (some.step[1:] != some.step[:-1])
    moments = np.bincount(group, is_new, len(keys))
    since = (some.as_of - last) / DAY_US
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = np.where(moments > 1, (last - first) / DAY_US / (moments - 1), np.nan)
        share = np.where(interval > 0, since / interval, np.nan)
    step = np.zeros(len(keys), dtype=np.int64)
    step[group] = some.step  # events are old to new, so the newest is written last
    columns = {
        "times_taken": times,
        "days_since_taken": since,
        "interval_share": share,
        "taken_share": moments / some.n_moments[keys // some.n_items],
        "steps_since_taken": step,
        "habit": np.bincount(group, is_new * HABIT_DECAY**some.step, len(keys)),
    }
    pair_keys = user.astype(np.int64) * some.n_items + item  # ascending; a user's own items are far fewer
    at = np.minimum(np.searchsorted(pair_keys, keys), max(0, len(pair_keys) - 1))
    mine = pair_keys[at] == keys if len(pair_keys) else np.zeros(len(keys), dtype=bool)
    past = {name: np.full(len(pair_keys), np.nan, dtype=np.float32) for name in columns}
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

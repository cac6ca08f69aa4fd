"""Features of a (user, item) pair, from what was known at the snapshot's moment."""

from dataclasses import dataclass

import numpy as np

from features.candidates import LISTED, SCORED, Candidates
from features.histories import DAY_US, Histories
from features.snapshot import Snapshot
from recsys.types import FloatArray, IntArray

N_RECENT = 20  # items of the history compared by text with each candidate
_PAIR_NAMES = (
    "text_max", "text_last", "times_taken", "days_since_taken", "interval_share",
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
    "text_max", "text_last", "category_share", "brand_share", "count_7d", "count_30d", "count_all", "trend",
)  # fmt: skip


@dataclass(frozen=True)
class PairTable:
    """Features of candidates.

    Args:
        features: (n_pairs, len(NAMES)) float32, nan where unknown.
        nearest: recent item most like the candidate by text, (n_pairs,) item positions, -1 where no history.
    """

    features: FloatArray
    nearest: IntArray

    def column(self, name: str) -> FloatArray:
        """One feature, (n_pairs,)."""
        return self.features[:, NAMES.index(name)]


def build(snapshot: Snapshot, some: Histories, candidates: Candidates) -> PairTable:
    """The feature table of a chunk of users; columns are `NAMES`."""
    user, item, facts = candidates.user_row, candidates.item_pos, snapshot.facts
    columns: dict[str, FloatArray] = {}
    for source in SCORED:
        columns[f"{source}_score"] = candidates.scores[source]
        columns[f"{source}_z"] = standardised(candidates.scores[source], candidates)
    columns |= {f"{source}_rank": rank for source, rank in candidates.ranks.items()}
    columns["text_max"], columns["text_last"], nearest = _text_likeness(snapshot, some, candidates)
    columns |= _own_past(some, user, item)
    for name, counts in (
        ("1d", facts.counts_1d),
        ("7d", facts.counts_7d),
        ("30d", facts.counts_30d),
        ("all", facts.counts),
    ):
        columns[f"count_{name}"] = np.log1p(counts)[item]
    columns["trend"] = np.log1p(facts.counts_7d)[item] - np.log1p(facts.counts_30d * 7 / 30)[item]
    columns["age_days"] = facts.age_days[item]
    columns["price"] = facts.price[item]
    columns["price_ratio"] = columns["price"] / _mean_price(some, facts.price)[user]
    columns["category_share"] = _share(some, facts.category, user, item)
    columns["brand_share"] = _share(some, facts.brand, user, item)
    columns["user_events"] = np.log1p(some.n_events)[user]
    columns["user_items"] = np.log1p(np.diff(some.counts().indptr))[user]
    columns["user_days_since_last"] = _days_since_last(some)[user]
    return PairTable(np.stack([columns[n].astype(np.float32) for n in NAMES], axis=1), nearest)


def standardised(scores: FloatArray, candidates: Candidates) -> FloatArray:
    """Scores less their mean over the user's candidates, divided by their deviation; 0 where all are equal."""
    user, n = candidates.user_row, candidates.n_users
    size = np.maximum(np.bincount(user, minlength=n), 1)
    centred = scores - (np.bincount(user, scores, minlength=n) / size)[user]
    deviation = np.sqrt(np.bincount(user, centred**2, minlength=n) / size)
    return np.asarray(centred / np.where(deviation > 1e-9, deviation, 1.0)[user], dtype=np.float32)


def _text_likeness(
    snapshot: Snapshot, some: Histories, candidates: Candidates
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Cosine with the most alike and with the newest recent item, and which the most alike is."""
    recent = some.recent(N_RECENT)  # (n_users, N_RECENT)
    indptr = candidates.indptr
    slot = np.arange(len(candidates.user_row)) - indptr[candidates.user_row]
    padded = np.zeros((some.n_users, max(1, np.diff(indptr).max(initial=0))), dtype=np.int64)
    padded[candidates.user_row, slot] = candidates.item_pos
    vectors = snapshot.text_vectors
    # (n_users, width, dim) @ (n_users, dim, N_RECENT)
    likeness = vectors[padded] @ vectors[np.maximum(recent, 0)].transpose(0, 2, 1)
    likeness = likeness[candidates.user_row, slot]  # (n_pairs, N_RECENT)
    past = recent[candidates.user_row]
    # the item itself is no reason for itself
    likeness = np.where((past >= 0) & (past != candidates.item_pos[:, None]), likeness, np.nan)
    filled = np.nan_to_num(likeness, nan=-2.0)
    best = filled.argmax(1)
    rows = np.arange(len(best))
    found = filled[rows, best] > -2
    return (
        np.where(found, filled[rows, best], np.nan),
        likeness[:, 0],
        np.where(found, past[rows, best], -1),
    )


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
    wanted = user.astype(np.int64) * some.n_items + item
    at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    mine = keys[at] == wanted if len(keys) else np.zeros(len(wanted), dtype=bool)
    columns = {"times_taken": times.astype(float), "days_since_taken": since, "interval_share": share}
    return {n: np.where(mine, v[at], np.nan) if len(keys) else np.full(len(wanted), np.nan) for n, v in columns.items()}


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

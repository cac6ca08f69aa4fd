"""How long lists can be: what users took or hid, and rules, may leave them fewer items than were asked for."""

import numpy as np

from features.caps import Cap, longest
from features.dataset import Dataset
from recsys.types import BoolArray, IntArray

MOST_COUNTED = 1000  # items of one list, which is as long as anybody looks


def usual_length(dataset: Dataset, users: IntArray, k: int, caps: tuple[Cap, ...], exclude_seen: bool) -> int:
    """Items that the lists of all but one in twenty users can hold, from 1 to k."""
    n_events = np.diff(dataset.bounds)[users] if exclude_seen or dataset.hidden_by else users[:0]
    most = k + (int(np.quantile(n_events, 0.95, method="higher")) if len(n_events) else 0)
    listable = n_listable(dataset, caps, most)
    if listable == most or not len(n_events):
        return max(1, min(k, listable))
    n_barred = _n_barred(dataset, np.ones(len(dataset.items), dtype=bool), exclude_seen)[users]
    return max(1, min(k, listable - int(np.quantile(n_barred, 0.95, method="higher"))))


def n_listable(dataset: Dataset, caps: tuple[Cap, ...], most: int) -> int:
    """Items that a list can hold of whatever is not barred to its user, counted up to `most`.

    Under caps only what sold is sure to be put forward for everybody. Where two of them cross, a list to which nothing can
    be added is at least half as long as the longest.
    """
    if not caps:
        return min(most, int(dataset.available.sum()))
    is_sold = np.zeros(len(dataset.items), dtype=bool)
    for block in dataset.blocks():
        is_sold[block["item"]] = True
    return longest((dataset.available & is_sold).nonzero()[0], caps, most * len(caps)) // len(caps)


def n_all_barred(dataset: Dataset, users: IntArray, exclude_seen: bool) -> int:
    """How many of the users have taken or hidden every item that may be recommended: nothing is left to list for them."""
    n_available, is_any_barred = int(dataset.available.sum()), exclude_seen or dataset.hidden_by
    if not len(users) or not is_any_barred or np.diff(dataset.bounds)[users].max() < n_available:
        return 0
    return int((_n_barred(dataset, dataset.available, exclude_seen)[users] >= n_available).sum())


def _n_barred(dataset: Dataset, among: BoolArray, exclude_seen: bool) -> IntArray:
    """Distinct items that no list of each user may hold, (n_users,), of those that count, (n_items,)."""
    counts = np.zeros(len(dataset.users), dtype=np.int64)
    for block in dataset.records.blocks():
        block = block[among[block["item"]] & dataset.bars(block, exclude_seen)]
        pairs = np.unique(block["user"].astype(np.int64) * len(dataset.items) + block["item"])
        counts += np.bincount(pairs // len(dataset.items), minlength=len(counts))
    return counts

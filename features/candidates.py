"""Who is worth scoring: each source puts forward its best items for a user; the ranker sees the union."""

from dataclasses import dataclass

import numpy as np

from features.histories import Histories
from features.snapshot import Snapshot
from recsys.types import BoolArray, FloatArray, IntArray

SCORED = ("text", "cf", "item_item", "ease", "repeat")  # sources with a score for every (user, item)
LISTED = ("recent", "popular", "all_time", "new")  # sources that only list items


@dataclass(frozen=True)
class Candidates:
    """(user, item) pairs, ordered by user, then item.

    Args:
        user_row: row in the chunk of users, (n_pairs,).
        item_pos: (n_pairs,).
        scores: per scored source, (n_pairs,) float32.
        ranks: per source, place in its own list from 0, nan where it did not list the item, (n_pairs,) float32.
        n_users: users in the chunk, some of whom may have no pair.
    """

    user_row: IntArray
    item_pos: IntArray
    scores: dict[str, FloatArray]
    ranks: dict[str, FloatArray]
    n_users: int

    @property
    def indptr(self) -> IntArray:
        """Where each user's pairs start, (n_users + 1,)."""
        return np.searchsorted(self.user_row, np.arange(self.n_users + 1))


def gather(snapshot: Snapshot, some: Histories) -> Candidates:
    """The union of all sources' lists for a chunk of users.

    Args:
        snapshot: the world as of the moment.
        some: the histories of the chunk, users renumbered from 0 (`Histories.of_users`).
    """
    limits = snapshot.config.candidates
    allowed = np.tile(snapshot.is_eligible, (some.n_users, 1))
    if snapshot.config.rules.exclude_seen:
        allowed[some.user_pos, some.item_pos] = False
    scores = source_scores(snapshot, some)
    lists = {name: top_k(np.where(allowed, scores[name], -np.inf), limits.per_source) for name in SCORED}
    for name in ("item_item", "ease", "repeat"):  # a zero there means "never heard of it", not a low score
        values = np.take_along_axis(scores[name], np.maximum(lists[name], 0), axis=1)
        lists[name] = np.where(values > 0, lists[name], -1)
    lists["new"] = _new(snapshot, scores["text"], allowed, limits.new)
    for name in (*SCORED, "new"):  # where nothing is known of a user, only popularity speaks
        lists[name] = np.where(some.n_events[:, None] > 0, lists[name], -1)
    for name, items in snapshot.popular.items():
        lists[name] = np.tile(items[: limits.popular], (some.n_users, 1))
    is_candidate = np.zeros_like(allowed)
    for items in lists.values():
        user, slot = np.nonzero(items >= 0)
        is_candidate[user, items[user, slot]] = True
    is_candidate &= allowed
    user_row, item_pos = np.nonzero(is_candidate)
    pair_scores = {name: scores[name][user_row, item_pos] for name in SCORED}
    ranks = {name: _rank_in(items, user_row, item_pos, some.n_items) for name, items in lists.items()}
    return Candidates(user_row, item_pos, pair_scores, ranks, some.n_users)


def source_scores(snapshot: Snapshot, some: Histories) -> dict[str, FloatArray]:
    """Scores of all items for a chunk of users by each scored source, (n_users, n_items) float32."""
    decayed = some.decayed(snapshot.config.cf.history_decay)
    return {
        "text": snapshot.text_users(some) @ snapshot.text_vectors.T,
        "cf": snapshot.cf_users(some) @ snapshot.cf.item_factors.T,
        "item_item": snapshot.cf.neighbour_scores(decayed).toarray(),
        "ease": snapshot.cf.ease_scores(decayed).toarray(),
        "repeat": decayed.toarray(),
    }


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Positions of the k highest scores a row, best first, ties by position; -1 where fewer are finite.

    >>> top_k(np.array([[1.0, 3.0, 3.0, -np.inf]]), k=4)
    array([[ 1,  2,  0, -1]])
    """
    k = min(k, scores.shape[1])
    picked = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    picked.sort(axis=1)
    values = np.take_along_axis(scores, picked, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    picked, values = np.take_along_axis(picked, order, axis=1), np.take_along_axis(values, order, axis=1)
    return np.where(np.isfinite(values), picked, -1)


def _new(snapshot: Snapshot, text_scores: FloatArray, allowed: BoolArray, n: int) -> IntArray:
    new = np.flatnonzero(snapshot.is_new)
    if not len(new) or not n:
        return np.full((len(text_scores), 1), -1)
    best = top_k(np.where(allowed[:, new], text_scores[:, new], -np.inf), n)
    return np.where(best >= 0, new[np.maximum(best, 0)], -1)


def _rank_in(lists: IntArray, user_row: IntArray, item_pos: IntArray, n_items: int) -> FloatArray:
    """Place of each pair in a source's lists, nan where it is not in them."""
    if lists.shape[1] == 0:
        return np.full(len(user_row), np.nan, dtype=np.float32)
    user, slot = np.nonzero(lists >= 0)
    keys = user * n_items + lists[user, slot]
    order = np.argsort(keys)
    keys, places = keys[order], slot[order]
    wanted = user_row * n_items + item_pos
    at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    if not len(keys):
        return np.full(len(user_row), np.nan, dtype=np.float32)
    return np.where(keys[at] == wanted, places[at], np.nan).astype(np.float32)

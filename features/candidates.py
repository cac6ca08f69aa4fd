"""Who is worth scoring: each source puts forward its best items for a user; the ranker sees the union."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from features.histories import Histories
from features.snapshot import Snapshot
from recsys.nearest import score_values
from recsys.types import BoolArray, FloatArray, IntArray

SCORED = ("text", "cf", "item_item", "ease", "repeat")  # sources with a score for every (user, item)
SPARSE = ("item_item", "ease", "repeat")  # of these, the ones that never heard of most items
LISTED = ("recent", "popular", "all_time", "new")  # sources that only list items
BLOCKS_PER_ITEM = 8  # of `top_k`: fewer leave more to sort, more cost time to partition
MOST_LEFT = 4
FAINT = 0.03  # what counts less than this share of the newest moment calls no neighbours: half of their cost

Scores = FloatArray | IntArray
Listed = tuple[IntArray, IntArray]  # (user row x n_items + item, place from 0) of all that a source put forward


@dataclass(frozen=True)
class Candidates:
    """(user, item) pairs, ordered by user, then item.

    Args:
        user_row: row in the chunk of users, (n_pairs,).
        item_pos: (n_pairs,).
        scores: per scored source but text, (n_pairs,) float32: `features.pairs` has the text vectors at hand anyway.
        ranks: per source, place in its own list from 0, nan where it did not list the item, (n_pairs,) float32.
        text_users: vector of each user, (n_users, dim); zero for an empty history.
        n_users: users in the chunk, some of whom may have no pair.
    """

    user_row: IntArray
    item_pos: IntArray
    scores: dict[str, FloatArray]
    ranks: dict[str, FloatArray]
    text_users: FloatArray
    n_users: int

    @cached_property
    def indptr(self) -> IntArray:
        """Where each user's pairs start, (n_users + 1,)."""
        return np.searchsorted(self.user_row, np.arange(self.n_users + 1))

    def values_of(self, matrix: sp.csr_matrix) -> FloatArray:
        """What a sparse matrix, (n_users, n_items), holds at the pairs, (n_pairs,)."""
        if not len(self.item_pos):  # scipy would give back a matrix
            return np.zeros(0, dtype=matrix.dtype)
        return np.asarray(matrix[self.user_row, self.item_pos]).ravel()


def gather(snapshot: Snapshot, some: Histories) -> Candidates:
    """The union of all sources' lists for a chunk of users.

    Args:
        snapshot: the world as of the moment.
        some: the histories of the chunk, users renumbered from 0 (`Histories.of_users`).
    """
    users = {"text": snapshot.text_users(some), "cf": snapshot.cf_users(some)}
    listings: dict[str, Scores] = {
        "text": snapshot.text_search.scores(users["text"]), "cf": snapshot.cf_search.scores(users["cf"]),
        **sparse_scores(snapshot, some),
    }  # fmt: skip
    for values in listings.values():
        _bar(snapshot, some, values, _lowest(values.dtype))
    listed = _source_lists(snapshot, some, listings, users) | _popular_lists(snapshot, some)
    is_candidate = np.zeros((some.n_users, some.n_items), dtype=bool)
    for keys, _ in listed.values():
        is_candidate.ravel()[keys] = True
    _bar(snapshot, some, is_candidate, False)
    pair_keys = np.flatnonzero(is_candidate)  # several times faster than nonzero of two axes
    indptr = np.searchsorted(pair_keys, np.arange(some.n_users + 1) * some.n_items)
    user_row = np.repeat(np.arange(some.n_users), np.diff(indptr))
    item_pos = pair_keys - user_row * some.n_items
    scores = {name: score_values(values.ravel()[pair_keys]) for name, values in listings.items() if name != "text"}
    scores["cf"][~snapshot.has_factors[item_pos]] = 0
    ranks = _ranks(listed, pair_keys, is_candidate)
    for name in set(SCORED) - {*listings}:
        scores[name], ranks[name] = np.zeros(len(pair_keys), np.float32), np.full(len(pair_keys), np.nan, np.float32)
    return Candidates(user_row, item_pos, scores, ranks, users["text"], some.n_users)


def _source_lists(
    snapshot: Snapshot, some: Histories, listings: Mapping[str, Scores], users: Mapping[str, FloatArray]
) -> dict[str, Listed]:
    """What each source that knows users puts forward, for those of whom something is known.

    Args:
        listings: scores of all items by source, (n_users, n_items), barred ones lowest; here those that are nowhere, too.
        users: vectors of the users by dense source.
    """
    limits = snapshot.config.candidates
    known = np.flatnonzero(some.n_events)
    for name, is_somewhere in (("text", snapshot.has_text), ("cf", snapshot.has_factors)):
        if not is_somewhere.all():  # what is nowhere is near nobody, and takes no place from what is
            listings[name][:, ~is_somewhere] = _lowest(listings[name].dtype)
    # a zero of a sparse source means "never heard of it", not a low score
    floors = {"text": snapshot.text_search.floor, "cf": snapshot.cf_search.floor} | dict.fromkeys(SPARSE, 0.0)
    lists = {
        name: top_k(_rows(values, known), limits.per_source, floors[name]) for name, values in listings.items()
    } | {"new": _new(snapshot, _rows(listings["text"], known), limits.new)}
    for name, vectors in (("text", users["text"]), ("new", users["text"]), ("cf", users["cf"])):
        lists[name][~vectors[known].any(axis=1)] = -1  # who is nowhere is near nothing
    listed: dict[str, Listed] = {}
    for name, items in lists.items():
        row, place = np.nonzero(items >= 0)
        listed[name] = known[row] * some.n_items + items[row, place], place
    return listed


def _popular_lists(snapshot: Snapshot, some: Histories) -> dict[str, Listed]:
    """The same lists for everybody."""
    users = np.arange(some.n_users)[:, None] * some.n_items
    listed: dict[str, Listed] = {}
    for name, items in snapshot.popular.items():
        first = items[: snapshot.config.candidates.popular]
        listed[name] = (users + first).ravel(), np.tile(np.arange(len(first)), some.n_users)
    return listed


def source_scores(snapshot: Snapshot, some: Histories) -> dict[str, FloatArray]:
    """Scores of all items for a chunk of users by each scored source, exact, (n_users, n_items) float32."""
    return {
        "text": snapshot.text_users(some) @ snapshot.text_vectors.T,
        "cf": snapshot.cf_users(some) @ snapshot.cf.item_factors.T,
        **sparse_scores(snapshot, some),
    }


def sparse_scores(snapshot: Snapshot, some: Histories) -> dict[str, FloatArray]:
    """Scores of all items by the sources that know few of them, (n_users, n_items) float32; 0 where unknown.

    Without "repeat" where all that was seen is excluded: all of it would be barred.
    """
    decay = snapshot.config.cf.history_decay
    recent = some.decayed(decay, FAINT)
    return {
        "item_item": snapshot.cf.neighbour_scores(recent).toarray(),
        "ease": snapshot.cf.ease_scores(recent).toarray(),
        **({} if snapshot.config.rules.only_new else {"repeat": some.decayed(decay).toarray()}),
    }


def top_k(scores: FloatArray | IntArray, k: int, above: float | None = None) -> IntArray:
    """Positions of the k highest scores a row, best first, ties by position; -1 where fewer are `above`.

    NaN and infinity never rank, nor does the least integer. The k-th largest of the maxima of k or more disjoint blocks
    is at most the k-th largest score: only what reaches it is sorted. Thirty times faster than a partition of whole
    rows of 20,000.

    >>> top_k(np.array([[1.0, 3.0, 3.0, -np.inf]]), k=4)
    array([[ 1,  2,  0, -1]])
    """
    n_rows, n_columns = scores.shape
    k = min(k, n_columns)
    if not n_rows or not k:
        return np.full((n_rows, k), -1, dtype=np.int64)
    n_blocks = min(n_columns, BLOCKS_PER_ITEM * k)
    blocks, rest = np.split(scores, [n_columns // n_blocks * n_blocks], axis=1)
    maxima = blocks.reshape(n_rows, -1, n_blocks).max(axis=1)
    is_float = np.issubdtype(scores.dtype, np.floating)
    if is_float and (not (maxima < np.inf).all() or (rest == np.inf).any()):
        return top_k(np.where(np.isfinite(scores), scores, -np.inf), k, above)
    least = np.partition(maxima, n_blocks - k, axis=1)[:, n_blocks - k]
    bound = _lowest(scores.dtype) if above is None else above
    kind = scores.dtype.type
    least = np.maximum(least, np.nextafter(kind(bound), kind(np.inf)) if is_float else int(bound) + 1)
    is_left = scores >= least[:, None]
    bounds = np.arange(n_rows + 1) * n_columns
    left = np.flatnonzero(is_left)
    starts = np.searchsorted(left, bounds)
    crowded = np.flatnonzero(np.diff(starts) > MOST_LEFT * k)
    for many in crowded:  # ties: the first k of them are enough
        is_left[many, np.flatnonzero(scores[many] == least[many])[k:]] = False
    if len(crowded):
        left = np.flatnonzero(is_left)
        starts = np.searchsorted(left, bounds)
    row = np.repeat(np.arange(n_rows), np.diff(starts))
    slot = np.arange(len(left)) - starts[row]
    shape = n_rows, max(k, int(np.diff(starts).max()))
    column, negated = (
        np.full(shape, -1, dtype=np.int64),
        np.full(shape, np.inf, dtype=scores.dtype if is_float else np.float32),
    )
    column[row, slot] = left - row * n_columns
    negated[row, slot] = -scores.ravel()[left].astype(negated.dtype)
    order = np.argsort(negated, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(column, order, axis=1)


def _rows(scores: Scores, rows: IntArray) -> Scores:
    """Some rows, ascending; without a copy where they are all."""
    return scores if len(rows) == len(scores) else scores[rows]


def _bar(snapshot: Snapshot, some: Histories, values: Scores | BoolArray, mark: float) -> None:
    """Writes a mark, in place, where an item may not be recommended to a user; (n_users, n_items)."""
    if not snapshot.is_eligible.all():
        values[:, ~snapshot.is_eligible] = mark
    values[some.barred(snapshot.config.rules.exclude_seen)] = mark


def _lowest(kind: np.dtype[Any]) -> float:
    """What never ranks, in scores of a type."""
    return np.iinfo(kind).min if np.issubdtype(kind, np.integer) else -np.inf


def _new(snapshot: Snapshot, text_scores: Scores, n: int) -> IntArray:
    new = np.flatnonzero(snapshot.is_new)
    if not len(new) or not n:
        return np.full((len(text_scores), 1), -1)
    best = top_k(text_scores[:, new], n, snapshot.text_search.floor)
    return np.where(best >= 0, new[np.maximum(best, 0)], -1)


def _ranks(listed: Mapping[str, Listed], pair_keys: IntArray, is_candidate: BoolArray) -> dict[str, FloatArray]:
    """Place of each pair in every source's lists, nan where it is not in them.

    Args:
        listed: per source, what it put forward.
        pair_keys: keys of the pairs.
        is_candidate: (n_users, n_items), whether a key is among the pairs.
    """
    row_of = np.empty(is_candidate.size, dtype=np.int32)
    row_of[pair_keys] = np.arange(len(pair_keys))
    ranks = {}
    for name, (keys, places) in listed.items():
        kept = is_candidate.ravel()[keys]
        ranks[name] = np.full(len(pair_keys), np.nan, dtype=np.float32)
        ranks[name][row_of[keys[kept]]] = places[kept]
    return ranks

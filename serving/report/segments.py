"""The primary metric inside groups of users, and on groups of items."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.activity import GROUPS, group_of
from features.text import item_texts
from recsys import metrics
from recsys.config import ReportConfig
from recsys.types import IntArray
from serving.report.measures import Lists
from serving.report.statistics import Effect, benjamini_hochberg, paired_effect
from serving.report.world import World

MAX_VALUES = 12  # a column with more distinct texts is no segment
MAX_TEXT = 2_000  # characters of an item whose words are counted
MAX_GROUPS = 10  # categories and languages shown: those with most labels
TENURE = ("under 30 days", "30-89 days", "90-364 days", "a year and more")
ITEM_CLASSES = ("head", "torso", "tail", "cold")
TEXT_LENGTH = ("no text", "1-4 words", "5-14 words", "15+ words")
KINDS = ("history", "tenure", "items", "category", "language", "text")  # divisions of our own


@dataclass(frozen=True)
class Segment:
    """The primary metric inside a group of users, or on a class of items; `effect` is None under the minimum."""

    kind: str
    name: str
    n: int
    is_protected: bool
    effect: Effect | None
    p_adjusted: float


@dataclass(frozen=True)
class Coding:
    """A division of items or users: `code` of each, (n,), -1 where none, into `names`.

    `protected` is the group that must not lose: it goes with the division, as a column may bear any name.
    """

    kind: str
    names: tuple[str, ...]
    code: IntArray
    protected: str | None = None


def segments(
    world: World, a: Lists, b: Lists, k: int, config: ReportConfig, users: pd.DataFrame | None
) -> tuple[Segment, ...]:
    """Groups of users by history, tenure and the users table; items by popularity, category, language, text length.

    On a group of items, only labels of the group count, and only users who have one.
    """
    groups: list[tuple[Coding, str, np.ndarray, np.ndarray]] = []
    values = [lists.values[lists.primary] for lists in (a, b)]
    for coding in _users(world, users):
        for code, name in enumerate(coding.names):
            rows = coding.code == code
            groups.append((coding, name, values[0][rows], values[1][rows]))
    for coding in _items(world):
        for code, name in enumerate(coding.names):
            groups.append((coding, name, *_on_items(world, a, b, coding.code == code, k)))
    effects = [
        paired_effect(in_a, in_b, config.alpha) if len(in_a) >= config.min_segment_users else None
        for _, _, in_a, in_b in groups
    ]
    adjusted = benjamini_hochberg(np.array([effect.p if effect else np.nan for effect in effects]))
    return tuple(
        Segment(coding.kind, name, len(in_a), name == coding.protected, effects[i], float(adjusted[i]))
        for i, (coding, name, in_a, _) in enumerate(groups)
    )


def item_classes(popularity: IntArray) -> IntArray:
    """Class of each item, (n_items,): 0 head, 1 torso, 2 tail, 3 cold.

    Sorted by events before the window, the head is the items before which less than 50% of the events
    lie, the torso those before 80%, the tail the rest; cold items have no event.

    >>> item_classes(np.array([6, 3, 1, 0])).tolist()
    [0, 1, 2, 3]
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    share = before / max(1, popularity.sum())
    codes = np.empty(len(popularity), dtype=np.int64)
    codes[order] = np.digitize(share, [0.5, 0.8])
    codes[popularity == 0] = 3
    return codes


def _on_items(world: World, a: Lists, b: Lists, is_in: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    n_relevant = np.asarray(world.relevant.astype(bool).astype(np.int64) @ is_in.astype(np.int64))
    rows = n_relevant > 0
    in_a, in_b = (
        metrics.ndcg(lists.hits[rows, :k] & is_in[lists.ranked[rows, :k]], n_relevant[rows], k) for lists in (a, b)
    )
    return in_a, in_b


def _users(world: World, users: pd.DataFrame | None) -> Iterator[Coding]:
    if world.n_history is not None:
        yield Coding("history", GROUPS, group_of(world.n_history), protected="0")
    if world.tenure_days is not None:
        known = ~np.isnan(world.tenure_days)
        yield Coding("tenure", TENURE, np.where(known, np.digitize(world.tenure_days, [30, 90, 365]), -1))
    if users is None or "user_id" not in users:
        return
    row = world.users.positions(users["user_id"])  # text meets numbers
    attributes = users.drop(columns="user_id")[row >= 0].set_index(row[row >= 0])
    attributes = attributes[~attributes.index.duplicated()].reindex(range(len(world.users)))
    for column in sorted(map(str, attributes.columns)):
        yield from _of_column(f"users.{column}" if column in KINDS else column, attributes[column])


def _of_column(kind: str, values: pd.Series) -> Iterator[Coding]:
    """A users column as groups: few values as they are, many numbers by quarters; many texts are left out."""
    if not values.map(pd.api.types.is_hashable).all():  # lists of interests and the like
        return
    n_values = values.nunique()
    if pd.api.types.is_numeric_dtype(values.dtype) and n_values > MAX_VALUES:
        numbers = values.astype("float64")
        code = pd.qcut(numbers, 4, labels=False, duplicates="drop").fillna(-1).astype("int64").to_numpy()
        inside = [numbers[code == quarter] for quarter in range(code.max() + 1)]
        yield Coding(kind, tuple(f"{part.min():.4g} to {part.max():.4g}" for part in inside), code)
    elif 2 <= n_values <= MAX_VALUES:
        code, found = values.astype("str").where(values.notna()).factorize(sort=True)
        yield Coding(kind, tuple(map(str, found)), np.asarray(code))


def _items(world: World) -> Iterator[Coding]:
    if world.popularity is not None:
        yield Coding("items", ITEM_CLASSES, item_classes(world.popularity), protected="tail")
    for column in ("category", "language"):
        if column in world.attributes:
            yield from _most_taken(world, column)
    texts = item_texts(world.attributes, ("title", "description"))
    code = np.digitize([len(text[:MAX_TEXT].split()) for text in texts], [1, 5, 15])
    yield Coding("text", TEXT_LENGTH, np.where(world.is_listed, code, -1))


def _most_taken(world: World, column: str) -> Iterator[Coding]:
    """The values of an items column with most labels; the rest is left out."""
    code, found = world.coded(column)
    labels = np.bincount(world.relevant.indices, minlength=len(world.items))
    total = np.bincount(code[code >= 0], labels[code >= 0], minlength=len(found))
    kept = np.sort(np.argsort(-total, kind="stable")[:MAX_GROUPS])
    if len(kept) > 1:
        new = np.full(len(found) + 1, -1)
        new[kept] = np.arange(len(kept))
        yield Coding(column, tuple(str(found[i]) for i in kept), new[code])

"""No more of one kind in a list than the rules allow: what would be too much makes room for the next best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from recsys.config import RulesConfig
from recsys.errors import DataError
from recsys.types import BoolArray, IntArray

KINDS = ("category", "brand")


@dataclass(frozen=True)
class Cap:
    """At most `most` items of one value of a column in a list.

    Args:
        column: of the items table.
        codes: number of each item's value, -1 where it has none: of those there are never too many. (n_items,), or of
            what is picked from, (n_users, n_slots).
        most: items, at least 1.
    """

    column: str
    codes: IntArray
    most: int

    def of(self, items: IntArray) -> "Cap":
        """The same over the items at some positions, of any shape; -1 stands for no item."""
        return replace(self, codes=np.where(items >= 0, self.codes[np.maximum(items, 0)], -1))


def codes_of(catalogue: pd.DataFrame, column: str) -> IntArray:
    """Number of each item's value, (n_items,) int64; -1 where it is blank, or there is no such column."""
    if column not in catalogue:
        return np.full(len(catalogue), -1, dtype=np.int64)
    values = catalogue[column].fillna("").astype("str").str.strip()
    return np.asarray(pd.factorize(values.where(values != ""))[0], dtype=np.int64)


def caps_of(rules: RulesConfig, codes: Mapping[str, IntArray]) -> tuple[Cap, ...]:
    """The caps that the rules ask for; `codes` of every column in `KINDS`, (n_items,)."""
    asked = {"category": rules.max_per_category, "brand": rules.max_per_brand}
    return tuple(Cap(column, codes[column], most) for column, most in asked.items() if most is not None)


def catalogue_caps(rules: RulesConfig, catalogue: pd.DataFrame) -> tuple[Cap, ...]:
    """The same of a catalogue.

    Raises:
        DataError: no item has the value that is counted, so that the rule would hold nothing back.
    """
    caps = caps_of(rules, {column: codes_of(catalogue, column) for column in KINDS})
    for cap in caps:
        if (cap.codes < 0).all():
            raise DataError(
                f"items: no item has a {cap.column}, which rules.max_per_{cap.column} counts; map the column that holds it "
                f"below [data.columns], or take the rule out"
            )
    return caps


def pick(is_there: BoolArray, caps: tuple[Cap, ...], k: int) -> IntArray:
    """The first k slots of each row that the caps leave, in their order, (n_users, k); -1 where there are fewer.

    Greedy, so that a shorter list is the beginning of a longer one.

    Args:
        is_there: slots that hold an item, best first, (n_users, n_slots).
        caps: over the same slots.

    >>> teas = Cap("category", np.array([[0, 0, 0, 1, -1]]), most=2)
    >>> pick(np.ones((1, 5), dtype=bool), (teas,), k=4)
    array([[0, 1, 3, 4]])
    """
    n_users = len(is_there)
    left, row = is_there.copy(), np.arange(n_users)
    is_picked, picked = np.zeros_like(is_there), np.full((n_users, k), -1, dtype=np.int64)
    for slot in range(min(k, is_there.shape[1])):
        best = left.argmax(axis=1)
        goes_on = left[row, best]
        if not goes_on.any():
            break
        picked[goes_on, slot] = best[goes_on]
        left[row, best], is_picked[row[goes_on], best[goes_on]] = False, True
        for cap in caps:
            value = cap.codes[row, best]
            is_same = (cap.codes == value[:, None]) & (value >= 0)[:, None]
            is_full = goes_on & ((is_same & is_picked).sum(axis=1) >= cap.most)
            left[is_full] &= ~is_same[is_full]
    return picked


def pick_of(items: IntArray, caps: tuple[Cap, ...], k: int) -> IntArray:
    """`pick` of the slots that hold some items, (n_users, n_slots), -1 for none; the caps are over the catalogue."""
    return pick(items >= 0, tuple(cap.of(items) for cap in caps), k)


def capped(items: IntArray, caps: tuple[Cap, ...], k: int) -> IntArray:
    """The first k items of each row that the caps leave, (n_users, k); -1 where there are fewer.

    Args:
        items: best first, (n_users, n_slots); -1 stands for no item.
        caps: over the catalogue.
    """
    if not caps:
        return items[:, :k]
    picked = pick_of(items, caps, k)
    return np.where(picked >= 0, np.take_along_axis(items, np.maximum(picked, 0), axis=1), -1)


def longest(items: IntArray, caps: tuple[Cap, ...], most: int) -> int:
    """How many of some items, best first, a list can hold under caps over the catalogue; counted up to `most`."""
    return int((pick_of(items[None], caps, most) >= 0).sum())

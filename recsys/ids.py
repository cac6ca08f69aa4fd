"""Outside ids (`user_id`, `item_id`) to positions in arrays (`user_pos`, `item_pos`) and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from recsys.types import IntArray


@dataclass(frozen=True)
class IdMap:
    """Sorted, unique outside ids; the position of an id is its row.

    Sorting makes positions independent of the order of the input, so ties broken by position are
    ties broken by id.

    Args:
        ids: (n,) unique and sorted, int64 or string; kept as given, never through float.
    """

    ids: pd.Index

    @classmethod
    def from_values(cls, values: pd.Series | pd.Index) -> "IdMap":
        """The map over the unique values of a column."""
        return cls(pd.Index(values).unique().sort_values())

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, values: pd.Series | pd.Index | np.ndarray | Sequence[object]) -> IntArray:
        """Positions of outside ids, (n,) int64; -1 where the id is unknown.

        Integers and text meet as text: one table may have come as CSV, where every id is text.

        >>> IdMap.from_values(pd.Series(["b", "a"])).positions(["a", "z"])
        array([ 0, -1])
        >>> IdMap.from_values(pd.Series([7, 10])).positions(["10", "07"])
        array([ 1, -1])
        >>> IdMap.from_values(pd.Series(["7", "a"])).positions([7, "a"])
        array([0, 1])
        """
        asked = pd.Index(values)
        if asked.dtype == object:  # numbers and text together, as a list in a config may hold them
            asked = asked.astype("str")
        if is_numeric_dtype(asked.dtype) == is_numeric_dtype(self.ids.dtype):
            return self.ids.get_indexer(asked).astype(np.int64)
        return self._texts.get_indexer(asked.astype("str")).astype(np.int64)

    def values(self, positions: IntArray) -> pd.Index:
        """Outside ids at positions, in their original type."""
        return self.ids[positions]

    @cached_property
    def _texts(self) -> pd.Index:
        return self.ids.astype("str")

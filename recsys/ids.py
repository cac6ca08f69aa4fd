"""Outside ids (`user_id`, `item_id`) to positions in arrays (`user_pos`, `item_pos`) and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from recsys.errors import shown
from recsys.types import BoolArray, IntArray


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
        >>> IdMap.from_values(pd.Series([7, 2**60 + 1])).positions(np.array([2**60, 2**60 + 1, 2**63], dtype="uint64"))
        array([-1,  1, -1])
        """
        asked = pd.Index(values)
        if asked.dtype == object:  # numbers and text together, as a list in a config may hold them
            asked = asked.astype("str")
        if is_integer_dtype(asked.dtype) and is_integer_dtype(self.ids.dtype) and asked.dtype != self.ids.dtype:
            return self._whole_numbers(asked)
        if is_numeric_dtype(asked.dtype) == is_numeric_dtype(self.ids.dtype):
            return self.ids.get_indexer(asked).astype(np.int64)
        return self._texts.get_indexer(asked.astype("str")).astype(np.int64)

    def values(self, positions: IntArray) -> pd.Index:
        """Outside ids at positions, in their original type."""
        return self.ids[positions]

    @property
    def look(self) -> str:
        """What its ids look like, in words: the remedy of who asked for one that is not there.

        >>> IdMap.from_values(pd.Series([7, 10, 12, 15])).look
        "ids there look like '7', '10', '12'"
        """
        return f"ids there look like {', '.join(map(shown, self.ids[:3]))}"

    def _whole_numbers(self, asked: pd.Index) -> IntArray:
        """Positions of integers of another width or sign: pandas would let both meet as floats."""
        positions, can_be = np.full(len(asked), -1, dtype=np.int64), fits(asked, self.ids)
        positions[can_be] = self.ids.get_indexer(asked[can_be].astype(self.ids.dtype))
        return positions

    @cached_property
    def _texts(self) -> pd.Index:
        return self.ids.astype("str")


def fits(numbers: pd.Index, kind: pd.Index) -> BoolArray:
    """Where integers are within the width and sign of others, (n,); what is missing is not."""
    limits = np.iinfo(str(kind.dtype).lower())
    return pd.Series(numbers).between(limits.min, limits.max).fillna(False).to_numpy(dtype=bool)


def unwrapped(ids: pd.Series) -> pd.Series:
    """Ids in the type that they have within categories or among objects: integers stay integers.

    >>> unwrapped(pd.Series([7, None, 9]).astype("Int64").astype("category")).tolist()
    [7, <NA>, 9]
    >>> unwrapped(pd.Series([7, 9], dtype=object)).dtype
    Int64Dtype()
    """
    if isinstance(ids.dtype, pd.CategoricalDtype):
        kinds = ids.dtype.categories
        whole = is_integer_dtype(kinds.dtype)  # which would become floats beside a gap
        ids = ids.astype("UInt64" if str(kinds.dtype).lower() == "uint64" else "Int64") if whole else ids.astype(object)
    if ids.dtype == object and pd.api.types.infer_dtype(ids, skipna=True) == "integer":
        return pd.Series(pd.array(ids.to_list()), ids.index, name=ids.name)
    return ids

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from features.caps import KINDS, Cap, caps_of, catalogue_caps, codes_of, longest, pick
from recsys.config import RulesConfig
from recsys.errors import DataError
from recsys.types import IntArray


def by_loop(codes: list[IntArray], most: list[int], there: int, k: int) -> list[int]:
    """The rule in words: go down the list, leave out what is one too many of its kind."""
    kept: list[int] = []
    counts = [Counter[int]() for _ in codes]
    for slot in range(there):
        values = [int(some[slot]) for some in codes]
        if len(kept) < k and all(v < 0 or n[v] < m for v, n, m in zip(values, counts, most, strict=True)):
            kept.append(slot)
            for value, count in zip(values, counts, strict=True):
                count[value] += 1
    return kept


def test_the_next_best_takes_the_place_of_what_is_one_too_many() -> None:
    """Teas 0 1 2 and an oil 3 in order, brands 5 5 6 6; one brand each, two teas."""
    category, brand = np.array([[0, 0, 0, 1]]), np.array([[5, 5, 6, 6]])
    two_teas, one_each = Cap("category", category, 2), Cap("brand", brand, 1)
    there = np.ones((1, 4), dtype=bool)
    assert pick(there, (two_teas,), 4).tolist() == [[0, 1, 3, -1]]
    assert pick(there, (one_each,), 4).tolist() == [[0, 2, -1, -1]]
    # the second tea of brand 5 is out, so that it does not count as a tea
    assert pick(there, (two_teas, one_each), 4).tolist() == [[0, 2, -1, -1]]
    assert pick(there, (), 3).tolist() == [[0, 1, 2]]


def test_many_lists_are_picked_as_one_by_one_and_shorter_ones_begin_longer_ones() -> None:
    rng = np.random.default_rng(0)
    codes = [rng.integers(-1, 4, (50, 30)), rng.integers(-1, 9, (50, 30))]
    sizes = rng.integers(0, 31, 50)
    caps = Cap("category", codes[0], 3), Cap("brand", codes[1], 2)
    picked = pick(np.arange(30) < sizes[:, None], caps, 20)
    for row in range(50):
        expected = by_loop([some[row] for some in codes], [3, 2], sizes[row], 20)
        assert picked[row][picked[row] >= 0].tolist() == expected
    np.testing.assert_array_equal(pick(np.arange(30) < sizes[:, None], caps, 7), picked[:, :7])


def test_caps_are_of_the_rules_and_blank_values_are_never_too_many() -> None:
    items = pd.DataFrame({"category": ["tea", " tea ", "", None, "oil"], "brand": [None, "a", "a", "a", "b"]})
    assert caps_of(RulesConfig(), {column: codes_of(items, column) for column in KINDS}) == ()
    category, brand = catalogue_caps(RulesConfig(max_per_category=1, max_per_brand=2), items)
    assert (category.column, category.codes.tolist(), category.most) == ("category", [0, 0, -1, -1, 1], 1)
    assert (brand.column, brand.codes.tolist(), brand.most) == ("brand", [-1, 0, 0, 0, 1], 2)
    assert [longest(np.arange(5), (cap,), 9) for cap in (category, brand)] == [4, 4]
    assert longest(np.arange(2), (category,), 9) == 1
    assert [longest(np.arange(5), (category, brand), most) for most in (9, 3)] == [4, 3]
    assert category.of(np.array([[4, -1], [0, 2]])).codes.tolist() == [[1, -1], [0, -1]]


@pytest.mark.parametrize("items", [pd.DataFrame({"item_id": ["a"]}), pd.DataFrame({"brand": [None, " "]})])
def test_a_rule_that_would_hold_nothing_back_is_refused(items: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"no item has a brand, which rules\.max_per_brand counts; map the column"):
        catalogue_caps(RulesConfig(max_per_brand=1), items)

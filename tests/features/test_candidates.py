import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from features.candidates import Candidates, top_k


def slow_top_k(scores: np.ndarray, k: int, above: float) -> np.ndarray:
    rows = []
    for row in scores:
        best = [i for i in np.argsort(-row, kind="stable") if row[i] > above][:k]
        rows.append(best + [-1] * (min(k, len(row)) - len(best)))
    return np.array(rows)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 400)),
    k=st.integers(1, 60),
    n_values=st.sampled_from([1, 3, 50, 10**6]),
    seed=st.integers(0, 999),
)
def test_lists_are_those_of_a_full_stable_sort(shape: tuple[int, int], k: int, n_values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-n_values, n_values, shape).astype(np.float32)
    scores[rng.random(shape) < 0.1] = -np.inf
    for above in (-np.inf, 0.0):
        np.testing.assert_array_equal(top_k(scores, k, above), slow_top_k(scores, k, above))


@pytest.mark.parametrize("value", [0.0, -np.inf, 7.0])
def test_a_row_of_ties_gives_its_first_positions_or_nothing(value: float) -> None:
    scores = np.full((2, 5000), value, dtype=np.float32)
    expected = np.arange(100) if np.isfinite(value) else np.full(100, -1)
    np.testing.assert_array_equal(top_k(scores, 100), [expected, expected])


def test_no_row_gives_no_list() -> None:
    assert top_k(np.zeros((0, 9), np.float32), 3).shape == (0, 3)


def test_values_at_pairs_where_there_are_some_and_where_there_are_none() -> None:
    matrix = sp.csr_matrix(np.array([[0, 2, 0], [3, 0, 1]], dtype=np.float32))
    for users, items, found in (([0, 1, 1], [1, 1, 2], [2, 0, 1]), ([], [], [])):
        pairs = np.array(users, dtype=np.int64), np.array(items, dtype=np.int64)
        assert Candidates(*pairs, {}, {}, np.zeros((2, 1)), 2).values_of(matrix).tolist() == found

import numpy as np
import pytest
import torch

from features.candidates import top_k
from recsys.machine import has_bf16
from recsys.nearest import DIRECTIONS, DenseSearch, score_values
from recsys.vectors import leading_directions, unit_rows

RNG = np.random.default_rng(0)
ITEMS = unit_rows(RNG.normal(size=(600, 200)).astype(np.float32) * 0.98 ** np.arange(200, dtype=np.float32))
QUERIES = unit_rows(ITEMS[:8] + ITEMS[8:16])


def test_leading_directions_are_those_in_which_vectors_differ_most() -> None:
    basis = leading_directions(ITEMS, DIRECTIONS)
    np.testing.assert_allclose(basis.T @ basis, np.eye(DIRECTIONS), atol=1e-5)
    np.testing.assert_allclose((ITEMS @ basis) @ basis.T, ITEMS, atol=0.2)
    kept = ((ITEMS @ basis) ** 2).sum() / (ITEMS**2).sum()
    assert kept == pytest.approx((np.linalg.svd(ITEMS)[1][:DIRECTIONS] ** 2).sum() / (ITEMS**2).sum(), rel=1e-4)


def test_all_directions_of_short_vectors_change_no_product() -> None:
    vectors = ITEMS[:, :16].copy()
    short = vectors @ leading_directions(vectors, DIRECTIONS)
    np.testing.assert_allclose(short @ short.T, vectors @ vectors.T, atol=1e-5)


def test_a_small_catalogue_is_searched_exactly() -> None:
    search = DenseSearch.over(ITEMS)
    np.testing.assert_allclose(search.scores(QUERIES), QUERIES @ ITEMS.T, atol=1e-6)
    assert search.floor is None


def test_a_large_one_on_fewer_directions_finds_nearly_the_same() -> None:
    search = DenseSearch.over(ITEMS, leading_directions(ITEMS, DIRECTIONS), exact_up_to=0)
    assert search.items.shape == (600, DIRECTIONS)
    found = top_k(search.scores(QUERIES), 20, search.floor)
    exact = top_k(QUERIES @ ITEMS.T, 20)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, exact, strict=True)]) > 0.8


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bfloat16")
def test_bits_of_bfloat16_stand_for_its_values_and_sort_like_them() -> None:
    vectors = ITEMS[:, :16].copy()
    search = DenseSearch.over(vectors, exact_up_to=0)
    bits = search.scores(QUERIES[:, :16].copy())
    assert bits.dtype == np.int16
    values = score_values(bits)
    np.testing.assert_allclose(values, QUERIES[:, :16] @ vectors.T, atol=0.01)
    np.testing.assert_array_equal(top_k(bits, 30, 0.0), top_k(values, 30, 0.0))


def test_a_query_that_is_not_finite_finds_nothing() -> None:
    queries = QUERIES.copy()
    queries[0, 3] = np.nan
    found = top_k(DenseSearch.over(ITEMS, leading_directions(ITEMS, DIRECTIONS), exact_up_to=0).scores(queries), 5, 0.0)
    assert (found[0] == -1).all()
    assert (found[1:] >= 0).all()

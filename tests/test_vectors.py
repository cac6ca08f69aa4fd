import numpy as np
import pytest
import torch

from features.chunks import chunk_size
from recsys.vectors import BLOCK_ROWS, block_rows, leading_directions, products, unit_rows

RNG = np.random.default_rng(0)


def test_rows_have_length_one_and_a_zero_row_stays() -> None:
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_leading_directions_keep_what_there_is() -> None:
    vectors = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(np.abs(leading_directions(vectors, 1)), [[1], [0], [0]], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_columns", [1, 5, 11, 3000])
def test_products_of_a_row_do_not_depend_on_the_others(dtype: torch.dtype, n_columns: int) -> None:
    rows = RNG.normal(size=(2 * BLOCK_ROWS + 9, 48)).astype(np.float32)
    matrix = torch.from_numpy(RNG.normal(size=(48, n_columns)).astype(np.float32)).to(dtype)
    whole = products(rows, matrix)
    assert whole.dtype == dtype
    np.testing.assert_allclose(
        whole.float(), rows @ matrix.float().numpy(), atol=1e-4 if dtype == torch.float32 else 0.5
    )
    for size in (1, 2, 7, BLOCK_ROWS, BLOCK_ROWS + 1):
        parts = [products(rows[start : start + size], matrix) for start in range(0, len(rows), size)]
        assert torch.equal(torch.cat(parts), whole)
    order = RNG.permutation(len(rows))
    assert torch.equal(products(rows[order], matrix), whole[torch.from_numpy(order)])


def test_no_row_gives_no_product() -> None:
    assert products(np.zeros((0, 4), np.float32), np.ones((4, 3), np.float32)).shape == (0, 3)


def test_blocks_of_wide_products_have_fewer_rows_and_chunks_are_whole_blocks() -> None:
    assert [block_rows(n) for n in (1, 20_000, 200_000, 200_001, 1_000_000, 10**8)] == [64, 64, 64, 32, 8, 8]
    assert [chunk_size(n) for n in (0, 20_000, 100_000, 200_000, 300_000, 1_000_000, 10**8)] == [
        256,
        256,
        128,
        64,
        32,
        8,
        1,
    ]
    assert [chunk_size(20_000, most) for most in (1, 7, 64, 100)] == [1, 7, 64, 64]

"""Small arithmetic on rows that are vectors."""

import numpy as np
import torch
from torch.nn import functional

from recsys.types import FloatArray

BLOCK_ROWS = 64  # fewer cost a catalogue of 20,000 up to twice the time, more are padding where chunks are small
LEAST_ROWS = 8
BLOCK_CELLS = 12_800_000  # blocks of wider products have fewer rows
NARROW = 16


def unit_rows(vectors: FloatArray) -> FloatArray:
    """Rows divided by their length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def leading_directions(vectors: FloatArray, most: int) -> FloatArray:
    """Orthonormal directions that keep most of the products of vectors (n, dim), at most `most`: (dim, directions) float32."""
    return np.asarray(np.linalg.eigh(vectors.T @ vectors)[1][:, -most:], dtype=np.float32)


def block_rows(n_columns: int) -> int:
    """How many rows `products` takes at once, a power of two: whatever the number of rows, their blocks are of it."""
    return 2 ** int(np.log2(np.clip(BLOCK_CELLS // max(1, n_columns), LEAST_ROWS, BLOCK_ROWS)))


def products(rows: FloatArray, matrix: FloatArray | torch.Tensor) -> torch.Tensor:
    """The product rows @ matrix, each row's numbers the same whichever others it comes with, and how many.

    BLAS adds up in another order for another shape, and two items a rounding apart change places, or a tree sends one
    the other way. So that lists do not depend on how users are cut into chunks, all products are of one shape, and of
    torch's BLAS: numpy's rounds the last rows of a product unlike the others on some processors.

    Args:
        rows: (n, dim) float32.
        matrix: (dim, n_columns) float32 or bfloat16.

    Returns:
        (n, n_columns) in the matrix's dtype.
    """
    matrix = torch.as_tensor(matrix)
    n, n_columns = len(rows), matrix.shape[1]
    if n_columns < NARROW:  # below that torch's rounds the last rows unlike the others, too
        matrix = functional.pad(matrix, (0, NARROW - n_columns))
    size, some = block_rows(n_columns), torch.from_numpy(rows).to(matrix.dtype)
    out = torch.empty((n, matrix.shape[1]), dtype=matrix.dtype)
    for start in range(0, n, size):
        block, place = some[start : start + size], out[start : start + size]
        if len(block) == size:
            torch.matmul(block, matrix, out=place)
        else:
            place[:] = (functional.pad(block, (0, 0, 0, size - len(block))) @ matrix)[: len(block)]
    return out[:, :n_columns]

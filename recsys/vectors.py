"""Small arithmetic on rows that are vectors."""

import numpy as np

from recsys.types import FloatArray


def unit_rows(vectors: FloatArray) -> FloatArray:
    """Rows divided by their length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def leading_directions(vectors: FloatArray, most: int) -> FloatArray:
    """Orthonormal directions that keep most of the products of vectors (n, dim), at most `most`: (dim, directions) float32."""
    return np.asarray(np.linalg.eigh(vectors.T @ vectors)[1][:, -most:], dtype=np.float32)

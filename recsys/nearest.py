"""Which items have the highest dot products with a query: the search behind the lists of the dense sources."""

from dataclasses import dataclass

import numpy as np
import torch

from recsys.machine import has_bf16
from recsys.types import FloatArray, IntArray
from recsys.vectors import products

EXACT_UP_TO = 5_000  # items: below, float32 products of whole vectors are cheap
DIRECTIONS = 128  # of MiniLM's 384: a third of the time, nearly all of the first 50 items found


@dataclass(frozen=True)
class DenseSearch:
    """Item vectors prepared for products with many queries.

    A large catalogue is searched on some directions of its vectors, in bfloat16 where the processor multiplies that
    faster: good enough to choose candidates.

    Args:
        items: (n_items, dim or directions) float32 or bfloat16.
        basis: (dim, directions) float32, or None where vectors are kept whole.
        floor: a list holds what scores more; None where any score will do.
    """

    items: torch.Tensor
    basis: FloatArray | None
    floor: float | None

    @classmethod
    def over(
        cls, vectors: FloatArray, basis: FloatArray | None = None, exact_up_to: int = EXACT_UP_TO
    ) -> "DenseSearch":
        """The search over item vectors, (n_items, dim) float32.

        Args:
            basis: directions that are enough for a large catalogue; see `recsys.vectors.leading_directions`.
            exact_up_to: items of a catalogue that is searched exactly.
        """
        if len(vectors) <= exact_up_to:
            return cls(torch.from_numpy(vectors), None, None)
        if basis is not None:
            vectors = vectors @ basis
        is_quick = has_bf16(torch.device("cpu"))
        return cls(torch.from_numpy(vectors).to(torch.bfloat16 if is_quick else torch.float32), basis, 0.0)

    def scores(self, queries: FloatArray) -> FloatArray | IntArray:
        """Scores of all items, (n_queries, n_items): float32, or the bits of bfloat16 as int16.

        numpy knows no bfloat16; positive values and their bits as integers are in the same order, and negative values
        are negative integers, below every floor. A query that is not finite scores nothing.
        """
        queries = np.where(np.isfinite(queries).all(axis=1, keepdims=True), queries, 0)
        if self.basis is not None:
            queries = products(queries, self.basis).numpy()
        found = products(queries, self.items.T)
        if found.dtype == torch.float32:
            return found.numpy()
        return np.asarray(found.view(torch.int16).numpy())


def score_values(scores: FloatArray | IntArray) -> FloatArray:
    """What some of `DenseSearch.scores` mean, float32."""
    if scores.dtype == np.int16:
        return (scores.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(scores, dtype=np.float32)

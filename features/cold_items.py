"""Items nobody took yet borrow behaviour from taken items with like texts: ALS factors and EASE columns.

    likeness K = cosine of encoder vectors + mean cosine of weighted words and word pieces
    shares     = (K_ll + RIDGE I)^-1 K_lc          l: lenders, the items that EASE covers; c: cold items

A cold item's factors and its column of EASE weights are those of the lenders, summed by its shares (kernel ridge
regression). The encoder alone says more here than the head, which knows what sold.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve

from recsys.cf_tower import CFTower
from recsys.errors import ModelError
from recsys.text_terms import term_vectors
from recsys.types import FloatArray, IntArray

RIDGE = 3.0  # of 1 and 10 the first loses on online-retail, the second on movies; docs/experiments.md
COLD_AT_ONCE = 4096  # bounds memory: their shares of all lenders are made, lent and dropped together


def with_cold_items(cf: CFTower, vectors: FloatArray, readings: Sequence[Sequence[str]]) -> CFTower:
    """The tower with factors and EASE columns for its cold items that say something; doing it twice changes nothing.

    Args:
        cf: over the catalogue; items that are not warm are cold.
        vectors: unit vectors of the encoder without the head, (n_items, dim).
        readings: texts of the items, (n_items,) each: as they are, and in word pieces, which know stems but few scripts.

    Raises:
        ModelError: vectors that are no numbers, which an encoder with broken weights makes.

    Source: Gantner et al., Learning attribute-to-feature mappings for cold-start recommendations, ICDM 2010.
        Differs: kernel ridge regression, and EASE's columns beside the factors.
    """
    n_broken = int((~np.isfinite(vectors)).sum())
    if n_broken:
        raise ModelError(f"text tower: item vectors hold {n_broken:,} numbers that are NaN or infinite; train again")
    lenders = np.flatnonzero(np.diff(cf.ease.indptr))  # all of them warm
    cold = np.flatnonzero(~cf.is_warm)
    borrowers = cold[np.array([bool(readings[0][item]) for item in cold.tolist()], dtype=bool)]
    if not len(lenders) or not len(borrowers):
        return cf.with_cold(cold, [])
    both = np.concatenate([lenders, borrowers])
    parts = [term_vectors([texts[item] for item in both])[0] / len(readings) ** 0.5 for texts in readings]
    terms = sp.csr_matrix(sp.hstack(parts), dtype=np.float32)
    lending, borrowing = terms[: len(lenders)], terms[len(lenders) :]
    likeness = _likeness(vectors[lenders], vectors[lenders], lending, lending)
    likeness[np.diag_indices_from(likeness)] += RIDGE
    factor = cho_factor(likeness, overwrite_a=True, check_finite=False)

    def loans() -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
        for start in range(0, len(borrowers), COLD_AT_ONCE):
            some = slice(start, start + COLD_AT_ONCE)
            likeness = _likeness(vectors[lenders], vectors[borrowers[some]], lending, borrowing[some])
            yield lenders, borrowers[some], cho_solve(factor, likeness).astype(np.float32)

    return cf.with_cold(cold, loans())


def _likeness(a: FloatArray, b: FloatArray, terms_a: sp.csr_matrix, terms_b: sp.csr_matrix) -> FloatArray:
    """Cosine of vectors plus cosine of terms, (n_a, n_b) float32."""
    return np.asarray(a @ b.T + (terms_a @ terms_b.T).toarray(), dtype=np.float32)

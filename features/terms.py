"""Texts as weighted word pieces and pairs of neighbours: what an encoder blurs (names, models, other languages)."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from recsys.types import IntArray

LEAST_TEXTS = 2  # a term of one text likens it to nothing
MOST_SHARE = 0.3  # a term of more texts than that says nothing
_PAIR = 1 << 32  # beyond any vocabulary, so that pairs and single pieces have different keys


def term_vectors(tokens: Sequence[Sequence[int]]) -> sp.csr_matrix:
    """Unit rows of TF-IDF weights over pieces and pairs of neighbouring pieces, (n_texts, n_terms) float32.

    Args:
        tokens: token ids per text, each with the encoder's first and last mark, which do not count.

    Returns:
        One row a text; zeros where no term of it is in at least `LEAST_TEXTS` texts and at most `MOST_SHARE` of them.

    Source: Salton and Buckley, Term-weighting approaches in automatic text retrieval, 1988 (log tf, idf, cosine).
    """
    row, key = _terms(tokens)
    keys, term = np.unique(key, return_inverse=True)
    counts = sp.csr_matrix((np.ones(len(row)), (row, term)), shape=(len(tokens), len(keys)))  # repeats add up
    n_texts = np.bincount(counts.indices, minlength=len(keys))
    is_telling = (n_texts >= LEAST_TEXTS) & (n_texts <= max(LEAST_TEXTS, MOST_SHARE * len(tokens)))
    weights = counts[:, is_telling]
    weights.data = (1 + np.log(weights.data)) * np.log(len(tokens) / n_texts[is_telling])[weights.indices]
    length = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.maximum(length, 1e-12)) @ weights, dtype=np.float32)


def _terms(tokens: Sequence[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Text and key of every piece and every pair, (n,) each."""
    inner = [np.asarray(t[1:-1], dtype=np.int64) for t in tokens]
    text = np.repeat(np.arange(len(inner)), [len(t) for t in inner])
    piece = np.concatenate([*inner, np.zeros(0, dtype=np.int64)])
    follows = text[1:] == text[:-1]
    pair = ((piece[:-1] + 1) * _PAIR + piece[1:])[follows]
    return np.concatenate([text, text[1:][follows]]), np.concatenate([piece, pair])

"""Texts by their words: what an encoder blurs (names, models, sizes) or cannot read (scripts it never learned).

    text -> words and pairs of neighbours -> TF-IDF -> leading directions -> unit length

Words are runs of letters and digits with their marks (vowel signs, accents); scripts that put no spaces between words
are read letter by letter.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd, svd_flip

from recsys.types import FloatArray

DIRECTIONS = 512
FIT_TEXTS = 50_000  # of a large catalogue, drawn at random: its directions are the same, and found in seconds
MOST_TERMS = 2**15  # the most frequent; bounds the saved model
LEAST_TEXTS = 2  # a term of one text likens it to nothing
MOST_SHARE = 0.3  # a term of more texts than that says nothing
MAX_CHARACTERS = 400  # of a text that are read: about what the encoder reads; long texts share words with everything
_NO_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Burmese, Khmer, kana, Han
)
_MARKS = "".join(chr(c) for c in range(0x300, 0xFE30) if unicodedata.category(chr(c)).startswith("M"))  # no part of \w
_WORD = rf"[{_NO_SPACES}]|(?:[^\W{_NO_SPACES}][{_MARKS}]*)+"
_FAINT = 0.2  # of a text's unit length: what less of it the directions hold is noise, and stays short


def term_vectors(texts: Sequence[str], most_terms: int | None = None) -> tuple[sp.csr_matrix, TfidfVectorizer | None]:
    """Unit rows of TF-IDF weights over words and pairs of neighbours, (n_texts, n_terms) float32, and what made them.

    Args:
        most_terms: only the most frequent; all by default.

    Returns:
        One row a text, zeros where no term of it is in at least `LEAST_TEXTS` texts and at most `MOST_SHARE` of them;
        without a column, and None, where there is no such term at all.

    Source: Salton and Buckley, Term-weighting approaches in automatic text retrieval, 1988 (log tf, idf, cosine).
    """
    most = max(LEAST_TEXTS, int(MOST_SHARE * len(texts)))
    vectorizer = _vectorizer(min_df=LEAST_TEXTS, max_df=most, max_features=most_terms)
    try:
        return sp.csr_matrix(vectorizer.fit_transform([text[:MAX_CHARACTERS] for text in texts])), vectorizer
    except ValueError as error:
        if "empty vocabulary" not in str(error) and "no terms remain" not in str(error):
            raise
        return sp.csr_matrix(np.zeros((len(texts), 0), dtype=np.float32)), None


@dataclass(frozen=True)
class TextTerms:
    """The leading directions of the words of a catalogue, for texts of any later one.

    Args:
        terms: the vocabulary, (n_terms,).
        idf: rarity of each, (n_terms,) float32.
        directions: (n_terms, dim) float32.

    Source: Deerwester et al., Indexing by latent semantic analysis, JASIS 1990;
        Halko et al., Finding structure with randomness, SIAM Review 2011 (randomised SVD).
    """

    terms: tuple[str, ...]
    idf: FloatArray
    directions: FloatArray

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int) -> "TextTerms":
        """Directions of the distinct texts of a catalogue; none where no word is in two of them."""
        drawn = np.random.default_rng(seed).permutation(len(texts))[:FIT_TEXTS]
        weights, vectorizer = term_vectors([texts[i] for i in np.sort(drawn)], MOST_TERMS)
        if vectorizer is None:
            return NO_WORDS
        size = min(DIRECTIONS, *weights.shape)
        left, _, right = randomized_svd(weights, size, n_iter=5, random_state=seed, flip_sign=False)
        directions = svd_flip(left, right, u_based_decision=False)[1].T  # signs do not hang on the machine
        terms = tuple(vectorizer.get_feature_names_out())
        return cls(terms, vectorizer.idf_.astype(np.float32), np.ascontiguousarray(directions, dtype=np.float32))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.directions.shape[1]

    def vectors(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of texts, (n, dim) float32, of unit length; shorter where few terms are known, zero where none is."""
        if not self.dim:
            return np.zeros((len(texts), 0), dtype=np.float32)
        vectorizer = _vectorizer(vocabulary=self.terms)
        vectorizer.idf_ = self.idf
        found = np.asarray(vectorizer.transform([text[:MAX_CHARACTERS] for text in texts]) @ self.directions)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(length, _FAINT), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Writes terms.json and terms.safetensors."""
        (folder / "terms.json").write_text(json.dumps(self.terms))
        save_file({"idf": self.idf, "directions": self.directions}, folder / "terms.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "TextTerms":
        """What `save` wrote.

        Raises:
            KeyError, ValueError: a file is not what `save` writes, or the two do not fit each other.
        """
        terms, arrays = json.loads((folder / "terms.json").read_text()), load_file(folder / "terms.safetensors")
        idf, directions = arrays["idf"], arrays["directions"]
        if not isinstance(terms, list) or len({str(term) for term in terms}) != len(terms):
            raise ValueError("terms.json is no list of different words")
        if directions.ndim != 2 or idf.ndim != 1 or not len(terms) == len(idf) == len(directions):
            raise ValueError(f"{len(terms)} terms, but idf of {idf.shape} and directions of {directions.shape}")
        if not np.isfinite(idf).all():
            raise ValueError("idf holds numbers that are NaN or infinite")
        return cls(tuple(map(str, terms)), idf, directions)


NO_WORDS = TextTerms((), np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
"""Of a tower that knows none."""


def _vectorizer(**settings: object) -> TfidfVectorizer:
    return TfidfVectorizer(
        preprocessor=_normal, token_pattern=_WORD, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, **settings
    )


def _normal(text: str) -> str:
    """One form of what looks the same (full-width digits, ligatures), in small letters."""
    return unicodedata.normalize("NFKC", text).lower()

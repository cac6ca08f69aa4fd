"""The collaborative-filtering tower: ALS, item-item neighbours and EASE; the only file that knows implicit.

Users have no stored factors: each is folded in from the history at hand, so that somebody who came after
training is served like everybody else, and the model's size does not depend on the number of users.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender
from implicit.recommender_base import ModelFitError
from scipy.linalg.lapack import dposv as posv
from scipy.linalg.lapack import sgesv as gesv

from recsys.bundle import load_arrays, load_sparse, save_arrays, save_sparse
from recsys.config import CFConfig
from recsys.errors import ModelError
from recsys.machine import one_blas_thread
from recsys.types import BoolArray, FloatArray, IntArray
from recsys.vectors import products

ROWS_AT_ONCE = 20_000  # cast to float64
TEXT_RIDGE = 1.0  # per item; text vectors have unit length, so this shrinks a map learned from few items


@dataclass(frozen=True)
class CFTower:
    """Item factors, item-item similarities and EASE weights; items without events borrow theirs by text.

    Args:
        config: of the fit.
        item_factors: (n_items, factors) float32; zeros for a cold item until it borrows.
        similarity: (n_items, n_items) float32, cosine of the columns of users, `neighbours` a row.
        ease: (n_items, n_items) float32, weight of a taken item (row) for another; `neighbours` a row, some negative.
        is_warm: True where the item had events, (n_items,).

    Source: Hu, Koren, Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008 (ALS);
        Sarwar et al., Item-based collaborative filtering, WWW 2001; Steck, Embarrassingly shallow autoencoders
        for sparse data, WWW 2019 (EASE).
    """

    config: CFConfig
    item_factors: FloatArray
    similarity: sp.csr_matrix
    ease: sp.csr_matrix
    is_warm: BoolArray

    @classmethod
    def fit(cls, confidence: sp.csr_matrix, text_views: Sequence[FloatArray], config: CFConfig, seed: int) -> "CFTower":
        """Fits on decayed event weights.

        Args:
            confidence: summed, decayed weights, (n_users, n_items) float32, non-negative.
            text_views: see `ease_weights`.
            seed: of the factors' start.
        """
        similarity, ease = neighbour_weights(confidence, config), ease_weights(confidence, text_views, config)
        return cls(config, als_factors(confidence, config, seed), similarity, ease, warm_items(confidence))

    def with_cold(self, cold: IntArray, loans: Iterable[tuple[IntArray, IntArray, FloatArray]]) -> "CFTower":
        """The tower with new factors and EASE columns for cold items; those they had are gone.

        Args:
            cold: positions of items, none warm.
            loans: for some of the cold items: positions of the lenders (n_lenders,), of the borrowers (n_borrowers,),
                and how much of each lender a borrower takes, (n_lenders, n_borrowers) float32. Each row of EASE keeps
                its `neighbours` strongest borrowed weights.
        """
        factors = self.item_factors.copy()
        factors[cold] = 0
        is_kept = np.ones(len(factors), dtype=bool)
        is_kept[cold] = False
        ease = sp.csr_matrix(self.ease @ sp.diags(is_kept.astype(np.float32)))
        borrowed = sp.csr_matrix(ease * np.float32(0))
        borrowed.eliminate_zeros()
        calling = np.flatnonzero(np.diff(ease.indptr))  # of a large catalogue, few items have weights for others
        called = ease[calling]
        for lenders, borrowers, shares in loans:
            factors[borrowers] = shares.T @ factors[lenders]
            weights = np.asarray(called[:, lenders] @ shares, dtype=np.float32)
            found = sp.coo_matrix(_strongest(weights, self.config.neighbours))
            places = (calling[found.row], borrowers[found.col])
            borrowed = _strongest_of(borrowed + sp.csr_matrix((found.data, places), ease.shape), self.config.neighbours)
        ease = sp.csr_matrix(ease + borrowed)
        ease.eliminate_zeros()
        return replace(self, item_factors=factors, ease=ease)

    def fold_in(self, confidence: sp.csr_matrix) -> FloatArray:
        """Factors of users from their histories, (n_users, factors) float32; zeros for an empty one.

        With Y the factors of a user's items, c their confidences and A = all Y'Y + regularisation, the factors are
        (A + Y' diag(c - 1) Y)^-1 Y'c. A short history is solved in its own size: with A = LL' and W = Y L'^-1 the
        same is L'^-1 W' z, where (I + diag(c - 1) WW') z = c. Twice as fast as implicit does it.
        """
        sorted_by_user = confidence.tocsr()
        out = np.zeros((sorted_by_user.shape[0], self.item_factors.shape[1]), dtype=np.float32)
        is_known = self.is_warm[sorted_by_user.indices]  # others have factors from their text, which no user made
        bounds = np.concatenate([[0], np.cumsum(is_known)])[sorted_by_user.indptr]
        items, weights = sorted_by_user.indices[is_known], self.config.alpha * sorted_by_user.data[is_known]
        gram, inverse, rotated = self._roots
        is_short = np.diff(bounds) <= len(gram)
        with one_blas_thread():
            for row in np.flatnonzero(np.diff(bounds)):
                at = slice(bounds[row], bounds[row + 1])
                c = weights[at].astype(np.float32)
                if not is_short[row]:
                    # weights may be revenue, millions of ones: in float32 nothing of the solution would be left
                    y = self.item_factors[items[at]].astype(np.float64)
                    out[row] = posv(gram + (y.T * (c - 1)) @ y, c @ y)[1]
                    continue
                w = rotated[items[at]]
                small = (w @ w.T) * (c - 1)
                small.ravel()[:: len(c) + 1] += 1
                out[row] = gesv(small.T, c, overwrite_a=True)[2] @ w  # a transpose is what LAPACK takes without a copy
            out[is_short] = products(out[is_short], inverse).numpy()
        return out

    @cached_property
    def _roots(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Y'Y + regularisation over all items that users made, the inverse of its lower triangular root, and W."""
        y = self.item_factors[self.is_warm].astype(np.float64)
        gram = y.T @ y + self.config.regularization * np.eye(y.shape[1])
        inverse = np.linalg.inv(np.linalg.cholesky(gram)).astype(np.float32)
        return gram, inverse, self.item_factors @ inverse.T

    def neighbour_scores(self, decayed: sp.csr_matrix) -> sp.csr_matrix:
        """Summed similarity of each item to a user's decayed history, (n_users, n_items) float32."""
        return sp.csr_matrix(decayed @ self.similarity)

    def ease_scores(self, decayed: sp.csr_matrix) -> sp.csr_matrix:
        """Summed EASE weights of each item for a user's decayed history, (n_users, n_items) float32."""
        return sp.csr_matrix(decayed @ self.ease)

    def for_catalogue(self, trained_pos: IntArray) -> "CFTower":
        """The tower over another catalogue; items it never saw are cold.

        Args:
            trained_pos: position in this tower of each item of the new catalogue, -1 where there is none.
        """
        known = trained_pos >= 0
        n_trained = len(self.is_warm)
        pick = sp.csr_matrix(
            (np.ones(known.sum(), np.float32), (np.flatnonzero(known), trained_pos[known])),
            shape=(len(trained_pos), n_trained),
        )
        is_warm = np.zeros(len(trained_pos), dtype=bool)
        is_warm[known] = self.is_warm[trained_pos[known]]
        factors = np.zeros((len(trained_pos), self.item_factors.shape[1]), dtype=np.float32)
        factors[known] = self.item_factors[trained_pos[known]]
        similarity, ease = (sp.csr_matrix(pick @ m @ pick.T) for m in (self.similarity, self.ease))
        return replace(self, item_factors=factors, similarity=similarity, ease=ease, is_warm=is_warm)

    def save(self, folder: Path) -> None:
        """Writes cf.safetensors, cf_neighbours.npz, cf_ease.npz and cf.json."""
        save_arrays(folder / "cf.safetensors", item_factors=self.item_factors, is_warm=self.is_warm.astype(np.uint8))
        save_sparse(folder / "cf_neighbours.npz", self.similarity)
        save_sparse(folder / "cf_ease.npz", self.ease)
        (folder / "cf.json").write_text(self.config.model_dump_json(indent=2))

    @classmethod
    def load(cls, folder: Path) -> "CFTower":
        """A tower saved by `save`."""
        arrays = load_arrays(folder / "cf.safetensors")
        config = CFConfig.model_validate_json((folder / "cf.json").read_text())
        similarity, ease = load_sparse(folder / "cf_neighbours.npz"), load_sparse(folder / "cf_ease.npz")
        is_warm = arrays["is_warm"].astype(bool)
        return cls(config, arrays["item_factors"], similarity, ease, is_warm)


def als_factors(confidence: sp.csr_matrix, config: CFConfig, seed: int) -> FloatArray:
    """Item factors of ALS, (n_items, factors) float32; zeros for items without events.

    Users and items without events are left out before it starts: it draws as many numbers as there are of them, so whoever
    came later would change what was known earlier.

    Args:
        confidence: as in `CFTower.fit`.
        seed: of the factors' start.

    Raises:
        ModelError: they come out as no numbers, as they do where weights are enormous.
    """
    warm = np.flatnonzero(warm_items(confidence))
    known = confidence[np.diff(confidence.indptr) > 0][:, warm]
    # implicit threads over users itself; a threaded BLAS below it fights for the same cores
    with one_blas_thread():
        als = AlternatingLeastSquares(
            factors=min(config.factors, min(known.shape)),
            regularization=config.regularization,
            alpha=config.alpha,
            iterations=config.iterations,
            random_state=seed,
        )
        try:
            als.fit(known, show_progress=False)
        except ModelFitError as error:
            raise ModelError(
                f"ALS: {error} (largest weight of a user and an item {confidence.data.max():g}); "
                "bring the column weight of the events to about 1, or lower cf.alpha"
            ) from error
    item_factors = np.zeros((confidence.shape[1], als.factors), dtype=np.float32)
    item_factors[warm] = als.item_factors
    return item_factors


def neighbour_weights(confidence: sp.csr_matrix, config: CFConfig) -> sp.csr_matrix:
    """Cosines of an item with its nearest others, (n_items, n_items) float32."""
    with one_blas_thread():
        neighbours = ItemItemRecommender(K=config.neighbours + 1)  # an item's nearest neighbour is itself
        neighbours.fit(_unit_columns(confidence), show_progress=False)
    similarity = sp.csr_matrix(neighbours.similarity, dtype=np.float32)
    similarity.setdiag(0)
    similarity.eliminate_zeros()
    return similarity


def warm_items(confidence: sp.csr_matrix) -> BoolArray:
    """True where an item had events, (n_items,)."""
    return np.asarray(np.bincount(confidence.indices, minlength=confidence.shape[1]) > 0)


def ease_weights(confidence: sp.csr_matrix, text_views: Sequence[FloatArray], config: CFConfig) -> sp.csr_matrix:
    """EASE pulled towards what texts say, over the most taken items, the strongest weights of each row kept.

    The weights B of min |X - XB|^2 + a |B|^2 + b |B - S|^2 with an empty diagonal. X is users by items; a + b is the
    penalty, `ease_regularization` times the mean squared mass of an item, and b its share `ease_text_share`. S is the same
    model with text dimensions in the place of users: it predicts an item's text vector from those of the others; of several
    ways to read texts, the mean. With P = (X'X + (a + b) I)^-1 the solution is P (X'X + b S) less what empties the
    diagonal, P diag(u).

    Args:
        confidence: as in `CFTower.fit`.
        text_views: vectors of the items, (n_items, dim) each, by each way of reading texts; the shorter a way's vectors,
            the less it says. Best those that know no labels: they say what the labels do not.

    What a user took is capped at 1, so that a staple bought every week does not outweigh all else. Dropping all but
    the strongest hundred a row cost nothing measurable; the inverse is why very long tails are left to ALS.

    Source: Moon et al., LLM-enhanced linear autoencoders for recommendation (L3AE), CIKM 2025.
        Differs: the penalty follows the scale of the data.
    """
    taken = confidence.minimum(1)
    mass = np.asarray(taken.sum(axis=0)).ravel()
    chosen = np.sort(np.argsort(-mass, kind="stable")[: config.ease_items])
    chosen = chosen[mass[chosen] > 0]
    some = sp.csr_matrix(taken[:, chosen], dtype=np.float32)
    gram = (some.T @ some).toarray().astype(np.float64)
    diagonal = np.diag_indices_from(gram)
    penalty = config.ease_regularization * gram[diagonal].mean()
    gram[diagonal] += penalty
    inverse = np.linalg.inv(gram)
    weights = -penalty * inverse  # P X'X = I - (a + b) P, and the diagonal is emptied below
    if config.ease_text_share:
        text_weights = sum(_text_weights(vectors, chosen) for vectors in text_views) / len(text_views)
        weights += config.ease_text_share * penalty * (inverse @ text_weights)
    weights[diagonal] += 1
    weights -= inverse * (weights[diagonal] / inverse[diagonal])
    weights = weights.astype(np.float32)
    np.fill_diagonal(weights, 0)
    found = sp.coo_matrix(_strongest(weights, config.neighbours))
    places = (chosen[found.row], chosen[found.col])
    return sp.csr_matrix((found.data, places), shape=(confidence.shape[1],) * 2)


def _text_weights(vectors: FloatArray, chosen: IntArray) -> FloatArray:
    """EASE with the dimensions of text vectors in the place of users: weights among some items, (n, n) float64.

    All items shape the directions. The inverse of V V' + c I is (I - V (V'V + c I)^-1 V') / c: small.
    """
    directions = TEXT_RIDGE * np.eye(vectors.shape[1])
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE].astype(np.float64)
        directions += block.T @ block
    some = vectors[chosen].astype(np.float64)
    inverse = -some @ np.linalg.solve(directions, some.T)
    inverse[np.diag_indices_from(inverse)] += 1
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def _unit_columns(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Columns of unit length, so that products of columns are cosines."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel())
    return sp.csr_matrix(matrix @ sp.diags(1 / np.maximum(length, 1e-12)), dtype=np.float64)  # implicit wants float64


def _strongest(weights: FloatArray, n: int) -> FloatArray:
    """The same with all but the `n` largest by size of each row set to zero, in place."""
    if n < weights.shape[1]:
        weakest = np.argpartition(-np.abs(weights), n - 1, axis=1)[:, n:]  # exactly n stay, also where many are alike
        np.put_along_axis(weights, weakest, 0, axis=1)
    return weights


def _strongest_of(matrix: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """The `n` largest by size of each row of a sparse matrix; ties go to the lower column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -np.abs(matrix.data), row))
    place = np.arange(len(row)) - matrix.indptr[row]
    kept = np.sort(order[place < n])
    return sp.csr_matrix((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)

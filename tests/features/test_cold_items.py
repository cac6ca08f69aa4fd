import numpy as np
import pytest
import scipy.sparse as sp

from features.cold_items import RIDGE, with_cold_items
from recsys.cf_tower import CFTower
from recsys.config import CFConfig
from recsys.errors import ModelError
from recsys.text_terms import term_vectors


def tower(n_items: int = 7, ease_items: int = 6) -> CFTower:
    """Users 0-9 take items 0-2, users 10-19 take items 3-5; nobody takes the rest."""
    dense = np.zeros((20, n_items), dtype=np.float32)
    dense[:10, :3] = dense[10:, 3:6] = 1
    dense[np.arange(20), np.arange(20) % 3 + np.repeat([0, 3], 10)] = 0
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1, *[0] * (n_items - 6)]]
    return CFTower.fit(
        sp.csr_matrix(dense), [vectors], CFConfig(factors=2, iterations=15, ease_items=ease_items), seed=0
    )


VECTORS = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1, 0]]
TEXTS = [f"{'bike' if 3 <= i < 6 else 'tea'} {['red', 'green', 'blue'][i % 3]}" for i in range(11)]
PIECES = ["7 7" if 3 <= i < 6 else "8 9" for i in range(11)]


def readings(n_items: int = 7) -> list[list[str]]:
    return [TEXTS[:n_items], PIECES[:n_items]]


def test_a_cold_item_scores_like_those_with_its_text() -> None:
    lent = with_cold_items(tower(), VECTORS, readings())
    newcomer = sp.csr_matrix(np.array([[1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
    by_factors = (lent.fold_in(newcomer) @ lent.item_factors.T)[0]
    assert by_factors[6] > by_factors[3:6].max()
    by_ease = lent.ease_scores(newcomer).toarray()[0]
    assert by_ease[6] > by_ease[3:6].max()


# of the six taken items users 0-19 leave out items 0 and 4 most often, so EASE of four items does without them
@pytest.mark.parametrize(("ease_items", "lenders"), [(6, [0, 1, 2, 3, 4, 5]), (4, [1, 2, 3, 5])])
def test_shares_are_kernel_ridge_regression(ease_items: int, lenders: list[int]) -> None:
    before = tower(ease_items=ease_items)
    lent = with_cold_items(before, VECTORS, readings())
    both = [*lenders, 6]
    words, pieces = (term_vectors([texts[item] for item in both])[0].toarray() for texts in readings())
    likeness = VECTORS[both] @ VECTORS[both].T + (words @ words.T + pieces @ pieces.T) / 2
    shares = np.linalg.solve(likeness[:-1, :-1] + RIDGE * np.eye(len(lenders)), likeness[:-1, -1])
    np.testing.assert_allclose(lent.item_factors[6], shares @ before.item_factors[lenders], rtol=1e-4)
    borrowed = before.ease.toarray()[:, lenders] @ shares
    np.testing.assert_allclose(lent.ease.toarray()[:, 6], borrowed, rtol=1e-4, atol=1e-7)


def test_warm_items_keep_what_they_have_and_twice_is_once() -> None:
    before = tower()
    lent = with_cold_items(before, VECTORS, readings())
    np.testing.assert_array_equal(lent.item_factors[:6], before.item_factors[:6])
    np.testing.assert_array_equal(lent.ease.toarray()[:, :6], before.ease.toarray()[:, :6])
    twice = with_cold_items(lent, VECTORS, readings())
    np.testing.assert_array_equal(twice.ease.toarray(), lent.ease.toarray())
    np.testing.assert_array_equal(twice.item_factors, lent.item_factors)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([VECTORS, VECTORS[:4]])
    whole = with_cold_items(tower(11), vectors, readings(11))
    monkeypatch.setattr("features.cold_items.COLD_AT_ONCE", 2)
    blocks = with_cold_items(tower(11), vectors, readings(11))
    np.testing.assert_allclose(blocks.item_factors, whole.item_factors, rtol=1e-5)
    np.testing.assert_allclose(blocks.ease.toarray(), whole.ease.toarray(), rtol=1e-5, atol=1e-8)


def test_nothing_cold_changes_nothing() -> None:
    before = tower(6)
    lent = with_cold_items(before, VECTORS[:6], readings(6))
    np.testing.assert_array_equal(lent.ease.toarray(), before.ease.toarray())


def test_an_item_without_text_borrows_nothing() -> None:
    words, pieces = readings()
    lent = with_cold_items(tower(), VECTORS, [[*words[:6], ""], [*pieces[:6], ""]])
    assert not lent.item_factors[6].any()
    assert not lent.ease.toarray()[:, 6].any()


def test_vectors_that_are_no_numbers_are_refused_by_name() -> None:
    broken = VECTORS.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ModelError, match="text tower: item vectors hold 1 numbers that are NaN"):
        with_cold_items(tower(), broken, readings())

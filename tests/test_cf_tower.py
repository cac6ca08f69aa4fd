from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from recsys.cf_tower import TEXT_RIDGE, CFTower, _strongest, als_factors, ease_weights
from recsys.config import CFConfig
from recsys.errors import ModelError


@pytest.fixture(scope="module")
def tower() -> CFTower:
    return CFTower.fit(taken(), [vectors()], CFConfig(factors=2, iterations=15, neighbours=3), seed=0)


def taken() -> sp.csr_matrix:
    """Users 0-9 take items 0-2, users 10-19 take items 3-5; nobody takes item 6."""
    dense = np.zeros((20, 7), dtype=np.float32)
    dense[:10, :3] = dense[10:, 3:6] = 1
    dense[np.arange(20), np.arange(20) % 3 + np.repeat([0, 3], 10)] = 0
    return sp.csr_matrix(dense)


def vectors() -> np.ndarray:
    """Items 0-2 share a text direction, 3-5 another, and the cold item 6 is like 0-2."""
    v = np.zeros((7, 4), dtype=np.float32)
    v[[0, 1, 2, 6], 0] = v[3:6, 1] = 1
    return v


def test_users_and_items_to_come_change_no_factors() -> None:
    config, known = CFConfig(factors=3, iterations=3), taken()[:, :6]
    later = sp.csr_matrix(np.pad(known.toarray(), ((0, 5), (0, 4))))
    before, after = (als_factors(some, config, seed=0) for some in (known, later))
    np.testing.assert_array_equal(after[:6], before)
    assert before.any(axis=1).all()
    assert not after[6:].any()


def test_a_user_who_came_later_is_folded_in(tower: CFTower) -> None:
    newcomer = sp.csr_matrix(np.array([[1, 0, 0, 0, 0, 0, 0]], dtype=np.float32))
    scores = tower.fold_in(newcomer)[0] @ tower.item_factors.T
    assert scores[1:3].min() > scores[3:6].max()


def test_a_cold_item_takes_its_share_of_the_lenders(tower: CFTower) -> None:
    shares = np.array([[0.5], [0.25]], dtype=np.float32)
    lent = tower.with_cold(np.array([6]), [(np.array([0, 3]), np.array([6]), shares)])
    assert not tower.item_factors[6].any()
    np.testing.assert_allclose(lent.item_factors[6], 0.5 * tower.item_factors[0] + 0.25 * tower.item_factors[3])
    before, after = tower.ease.toarray(), lent.ease.toarray()
    np.testing.assert_allclose(after[:, 6], 0.5 * before[:, 0] + 0.25 * before[:, 3], rtol=1e-6)
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    twice = lent.with_cold(np.array([6]), [(np.array([0, 3]), np.array([6]), shares)])
    np.testing.assert_array_equal(twice.ease.toarray(), after)
    assert not lent.with_cold(np.array([6]), []).ease.toarray()[:, 6].any()


def test_rows_keep_their_strongest_borrowed_weights_over_all_loans() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random((50, 9)) < 0.4).astype(np.float32)
    dense[:, 4:] = 0
    tower = CFTower.fit(sp.csr_matrix(dense), [np.eye(9, dtype=np.float32)], CFConfig(factors=2, neighbours=2), 0)
    lenders, shares = np.arange(4), rng.random((4, 5)).astype(np.float32)
    together = tower.with_cold(np.arange(4, 9), [(lenders, np.arange(4, 9), shares)]).ease.toarray()
    apart = [(lenders, np.arange(n, n + 1), shares[:, [n - 4]]) for n in range(4, 9)]
    np.testing.assert_allclose(tower.with_cold(np.arange(4, 9), apart).ease.toarray(), together, rtol=1e-6)
    assert ((together[:, 4:] != 0).sum(axis=1) <= 2).all()


def test_an_empty_history_gives_zeros(tower: CFTower) -> None:
    assert not tower.fold_in(sp.csr_matrix(np.zeros((1, 7), dtype=np.float32))).any()


def test_neighbours_share_users_and_an_item_is_not_its_own(tower: CFTower) -> None:
    dense = tower.similarity.toarray()
    assert dense.diagonal().max() == 0
    assert dense[0, 1] > 0
    assert dense[0, 3:].max() == 0


def test_ease_is_the_closed_form_and_keeps_the_strongest_weights() -> None:
    dense = taken().toarray()[:, :6].astype(np.float64)
    config = CFConfig(factors=2, iterations=1, neighbours=6, ease_regularization=2.0, ease_text_share=0.0)
    gram = dense.T @ dense
    inverse = np.linalg.inv(gram + 2 * gram.diagonal().mean() * np.eye(6))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    whole = CFTower.fit(taken(), [vectors()], config, seed=0).ease.toarray()
    np.testing.assert_allclose(whole[:6, :6], expected, rtol=1e-5, atol=1e-6)
    assert not whole[6].any()
    few = CFTower.fit(taken(), [vectors()], config.model_copy(update={"neighbours": 2}), seed=0).ease.toarray()
    kept = few != 0
    np.testing.assert_array_equal(few[kept], whole[kept])
    assert np.abs(whole[~kept]).max() <= np.abs(few[kept]).min() + 1e-6


def test_ease_towards_texts_is_the_least_of_its_loss() -> None:
    """Any change of a weight off the diagonal raises |X - XB|^2 + a |B|^2 + b |B - S|^2."""
    rng = np.random.default_rng(0)
    dense = (rng.random((30, 6)) < 0.4).astype(np.float64)
    views = [rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)]
    config = CFConfig(neighbours=6, ease_regularization=1.0, ease_text_share=0.25)
    weights = ease_weights(sp.csr_matrix(dense.astype(np.float32)), views, config).toarray().astype(np.float64)
    inverses = [np.linalg.inv(texts @ texts.T + TEXT_RIDGE * np.eye(6)) for texts in views]
    text_weights = np.mean([-inverse / np.diag(inverse) for inverse in inverses], axis=0)
    np.fill_diagonal(text_weights, 0)
    penalty = (dense.T @ dense).diagonal().mean()

    def gradient(b: np.ndarray) -> np.ndarray:
        pull = 0.75 * penalty * b + 0.25 * penalty * (b - text_weights)
        return np.asarray(dense.T @ (dense @ b - dense) + pull)

    off = ~np.eye(6, dtype=bool)
    assert np.abs(gradient(weights)[off]).max() < 1e-4
    assert np.abs(gradient(np.zeros((6, 6)))[off]).max() > 1


def test_of_weights_that_are_all_alike_no_more_than_the_limit_stay() -> None:
    assert (_strongest(np.ones((3, 9), np.float32), 4) != 0).sum(axis=1).tolist() == [4, 4, 4]


def test_weights_beyond_all_measure_are_told() -> None:
    with pytest.raises(ModelError, match=r"largest weight .* 1e\+30"):
        als_factors(sp.csr_matrix(taken() * np.float32(1e30)), CFConfig(factors=2, iterations=3), seed=0)


def test_save_then_load_scores_the_same(tower: CFTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    again = CFTower.load(tmp_path)
    np.testing.assert_array_equal(again.fold_in(taken()), tower.fold_in(taken()))
    np.testing.assert_array_equal(again.similarity.toarray(), tower.similarity.toarray())
    np.testing.assert_array_equal(again.ease.toarray(), tower.ease.toarray())


def test_another_catalogue_keeps_known_items_and_treats_new_ones_as_cold(tower: CFTower) -> None:
    moved = tower.for_catalogue(np.array([5, -1, 0]))
    np.testing.assert_array_equal(moved.item_factors[[0, 2]], tower.item_factors[[5, 0]])
    assert moved.is_warm.tolist() == [True, False, True]
    assert not moved.item_factors[1].any()
    assert moved.similarity.shape == (3, 3)


@pytest.mark.parametrize("n_taken", [1, 3, 7, 30])
def test_fold_in_solves_the_normal_equations_for_short_and_long_histories(n_taken: int) -> None:
    rng = np.random.default_rng(0)
    confidence = sp.csr_matrix(sp.random(200, 40, 0.2, random_state=rng, dtype=np.float32))
    tower = CFTower.fit(confidence, [np.eye(40, dtype=np.float32)], CFConfig(factors=12, iterations=3), seed=0)
    items, weight = rng.permutation(40)[:n_taken], rng.random(n_taken).astype(np.float32)
    user = sp.csr_matrix((weight, (np.zeros(n_taken, int), items)), shape=(1, 40))
    y = np.where(tower.is_warm[:, None], tower.item_factors, 0).astype(np.float64)
    c = np.zeros(40)
    c[items] = tower.config.alpha * weight
    c_less = np.zeros(40)
    c_less[items] = c[items] - 1
    expected = np.linalg.solve(
        y.T @ y + y.T @ (c_less[:, None] * y) + tower.config.regularization * np.eye(12), y.T @ c
    )
    np.testing.assert_allclose(tower.fold_in(user)[0], expected, rtol=1e-3, atol=1e-4)


def test_a_long_history_of_huge_weights_is_folded_in_too(tower: CFTower) -> None:
    rng = np.random.default_rng(0)
    confidence = sp.csr_matrix(sp.random(300, 100, 0.2, random_state=rng, dtype=np.float32))
    tower = CFTower.fit(confidence, [np.eye(100, dtype=np.float32)], CFConfig(factors=64, iterations=3), seed=0)
    once = sp.csr_matrix(np.ones((1, 100), dtype=np.float32))
    y = tower.item_factors.astype(np.float64)
    expected = np.linalg.lstsq(y, np.ones(100), rcond=None)[0]  # so much certainty outweighs all else
    np.testing.assert_allclose(tower.fold_in(once * np.float32(1e8))[0], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("weight", [1e3, 1e5])
def test_a_long_history_of_dear_things_keeps_its_digits(weight: float) -> None:
    rng = np.random.default_rng(0)
    confidence = sp.csr_matrix(sp.random(300, 400, 0.2, random_state=rng, dtype=np.float32))
    config = CFConfig(factors=64, iterations=3)
    tower = CFTower.fit(confidence, [np.eye(400, dtype=np.float32)], config, seed=0)
    items = rng.permutation(400)[:300]
    paid = (weight * rng.random(300)).astype(np.float32)
    user = sp.csr_matrix((paid, (np.zeros(300, int), items)), shape=(1, 400))
    y, c = tower.item_factors.astype(np.float64), np.ones(400)
    c[items] = config.alpha * paid
    gram = (y.T * c) @ y + config.regularization * np.eye(64)
    expected = np.linalg.solve(gram, y[items].T @ c[items])
    np.testing.assert_allclose(tower.fold_in(user)[0], expected, rtol=1e-3, atol=1e-5)

import numpy as np
import pytest

from serving.report.overlap import PERSISTENCE, overlap


def slow(a: list[int], b: list[int]) -> tuple[float, float]:
    """Jaccard and RBO from their definitions, for one user."""
    agreement = []
    for depth in range(1, len(a) + 1):
        first, second = ({item for item in items[:depth] if item >= 0} for items in (a, b))
        longest = max(len(first), len(second))
        agreement.append(len(first & second) / longest if longest else 1.0)
    weights = [PERSISTENCE**d for d in range(len(a))]
    first, second = {i for i in a if i >= 0}, {i for i in b if i >= 0}
    jaccard = len(first & second) / len(first | second) if first | second else 1.0
    return jaccard, float(np.dot(agreement, weights) / sum(weights))


def test_agrees_with_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.argsort(rng.random((50, 12)), axis=1)[:, :7] for _ in range(2))
    a[::5, 4:], b[::7, 2:], a[0], b[0] = -1, -1, -1, -1
    expected = np.mean([slow(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)], axis=0)
    found = overlap(a, b)
    assert (found.jaccard, found.rbo) == pytest.approx(tuple(expected))


def test_the_same_items_in_another_order_are_one_set_and_another_ranking() -> None:
    a, b = np.array([[1, 2, 3]]), np.array([[3, 2, 1]])
    found = overlap(a, b)
    assert found.jaccard == 1
    assert found.same == 0
    # depths 1, 2, 3 agree by 0, 1/2, 1
    assert found.rbo == pytest.approx((0.9 * 0.5 + 0.81) / (1 + 0.9 + 0.81))


def test_nothing_in_common_is_nothing_and_nobody_is_unknown() -> None:
    found = overlap(np.array([[1, 2]]), np.array([[3, 4]]))
    assert (found.jaccard, found.rbo, found.same) == (0, 0, 0)
    assert np.isnan(overlap(np.empty((0, 2), dtype=int), np.empty((0, 2), dtype=int)).rbo)

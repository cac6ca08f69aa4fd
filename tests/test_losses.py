import math

import torch

from recsys.losses import sampled_softmax


def loss(masked: list[list[bool]], log_inclusion: list[float]) -> float:
    scores = torch.tensor([[0.2, 0.2, 0.2]])
    return float(
        sampled_softmax(
            scores, torch.tensor([0]), torch.tensor(masked), torch.tensor(log_inclusion), torch.ones(1), 0.1
        )
    )


def test_three_equal_scores_cost_log_three() -> None:
    assert math.isclose(loss([[False] * 3], [0.0] * 3), math.log(3), rel_tol=1e-6)


def test_a_masked_positive_is_no_negative() -> None:
    assert math.isclose(loss([[False, True, False]], [0.0] * 3), math.log(2), rel_tol=1e-6)


def test_a_rarely_sampled_item_stands_for_many() -> None:
    # the third item is in one sample of four, so it counts as four: log(1 + 1 + 4)
    assert math.isclose(loss([[False] * 3], [0.0, 0.0, math.log(0.25)]), math.log(6), rel_tol=1e-6)

import numpy as np
import pytest
import torch

from recsys.text_head import TextHead


@pytest.fixture
def head() -> TextHead:
    head = TextHead(width=8, hidden=5)
    with torch.no_grad():
        for index, weight in enumerate(head.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    return head


def pooled() -> torch.Tensor:
    return 6 * torch.randn(20, 8, generator=torch.Generator().manual_seed(9))


def test_an_untrained_head_leaves_cosines_as_they_are() -> None:
    unit = torch.nn.functional.normalize(pooled(), dim=1)
    torch.testing.assert_close(TextHead(width=8)(pooled()), unit)


def test_one_for_wider_inputs_starts_from_their_leading_directions() -> None:
    inputs = torch.nn.functional.normalize(pooled() * torch.tensor([1.0] * 5 + [0.1] * 3), dim=1)
    vectors = TextHead.untrained(inputs.numpy(), dim=6, seed=0)(inputs)
    assert vectors.shape == (20, 6)
    torch.testing.assert_close(vectors @ vectors.T, inputs @ inputs.T, atol=0.05, rtol=0)
    narrow = TextHead.untrained(inputs.numpy(), dim=2, seed=0)(inputs)
    assert (narrow @ narrow.T - inputs @ inputs.T).abs().max() > 0.5


def test_the_length_of_a_pooled_vector_does_not_matter(head: TextHead) -> None:
    torch.testing.assert_close(head(pooled()), head(3 * pooled()))


@pytest.mark.parametrize("width", [8, 6])
def test_two_plain_layers_say_the_same_of_inputs_that_end_in_zeros(head: TextHead, width: int) -> None:
    first, second = head.as_two_layers(width)
    inputs = pooled()
    inputs[:, width:] = 0
    x = torch.nn.functional.normalize(inputs[:, :width], dim=1)
    plain = torch.nn.functional.normalize(torch.nn.functional.gelu(x @ first.T) @ second.T, dim=1)
    torch.testing.assert_close(head(inputs), plain)


def test_its_state_gives_back_the_head_and_others_are_refused(head: TextHead) -> None:
    again = TextHead.of(head.state_dict())
    np.testing.assert_array_equal(again(pooled()).detach(), head(pooled()).detach())
    with pytest.raises(ValueError, match="make no head"):
        TextHead.of(head.state_dict() | {"outer": torch.zeros(3, 8)})
    with pytest.raises(ValueError, match="make no head"):
        TextHead.of(head.state_dict() | {"inner": torch.zeros(3)})


def test_the_seed_draws_the_hidden_layer() -> None:
    one, other = TextHead(8, 5), TextHead(8, 5)
    other.reset(1)
    assert not torch.equal(one.inner, other.inner)
    other.reset(0)
    assert torch.equal(one.inner, other.inner)

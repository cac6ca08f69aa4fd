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


def test_the_length_of_a_pooled_vector_does_not_matter(head: TextHead) -> None:
    torch.testing.assert_close(head(pooled()), head(3 * pooled()))


def test_two_plain_layers_say_the_same(head: TextHead) -> None:
    first, second = head.as_two_layers()
    x = torch.nn.functional.normalize(pooled(), dim=1)
    plain = torch.nn.functional.normalize(torch.nn.functional.gelu(x @ first.T) @ second.T, dim=1)
    torch.testing.assert_close(head(pooled()), plain)


def test_two_layers_give_back_the_head_and_others_are_refused(head: TextHead) -> None:
    again = TextHead.from_two_layers(*head.as_two_layers())
    np.testing.assert_array_equal(again(pooled()).detach(), head(pooled()).detach())
    with pytest.raises(ValueError, match="make no head"):
        TextHead.from_two_layers(torch.zeros(20, 8), torch.zeros(8, 21))


def test_the_seed_draws_the_hidden_layer() -> None:
    one, other = TextHead(8, 5), TextHead(8, 5)
    other.reset(1)
    assert not torch.equal(one.inner, other.inner)
    other.reset(0)
    assert torch.equal(one.inner, other.inner)

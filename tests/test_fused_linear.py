import pytest
import torch
from torch import nn

from recsys.fused_linear import FusedLinear, with_fused_linears


def test_fused_layers_give_what_linear_layers_give() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 2, bias=False))
    plain = nn.Sequential(nn.Linear(8, 16), nn.GELU(), inner)
    x = torch.randn(3, 5, 8)
    with torch.inference_mode():
        wanted = plain(x)
        found = with_fused_linears(plain)(x)
    assert isinstance(plain[0], FusedLinear)
    assert isinstance(inner[0], FusedLinear)
    assert isinstance(inner[1], nn.Linear)  # no bias, nothing to gain
    torch.testing.assert_close(found, wanted)


def test_a_torch_without_the_product_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = nn.Sequential(nn.Linear(8, 16))
    with_fused_linears(plain)
    assert isinstance(plain[0], nn.Linear)

"""Linear layers of an encoder that only encodes: on a CPU in bfloat16, oneDNN adds the bias within the product.

`torch.nn.Linear` writes the bias out first and adds the product to it, a tenth of the time of encoding.
"""

import torch
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """The same map as a linear layer's, without gradient, (..., in_features) -> (..., out_features)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """X W' + b."""
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return fused


def with_fused_linears(encoder: nn.Module) -> nn.Module:
    """The encoder with its linear layers replaced, in place; as it was where this torch has no such product."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return encoder  # the name is torch's own, not promised to its users
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.bias is not None:
                setattr(module, name, FusedLinear(child))
    return encoder

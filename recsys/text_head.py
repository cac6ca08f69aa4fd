"""The head of the text tower: what is trained in seconds on cached vectors, before and on top of the encoder.

    x -> x / |x| -> P x + W gelu(U x) -> unit length

P starts as the identity and W as zero: an untrained head leaves the pretrained encoder's cosines as they are.
"""

import torch
from torch import Tensor, nn

HIDDEN = 512
_START = 4.0  # length of U's rows: wide enough that gelu bends, narrow enough that nothing saturates


class TextHead(nn.Module):
    """A linear map and one hidden layer beside it, (n, width) -> (n, dim) unit rows.

    Source: Kumar et al., Fine-tuning can distort pretrained features, ICLR 2022 (head first, then encoder);
        the layer beside the identity as in Gao et al., CLIP-Adapter, IJCV 2024.
        Differs: the identity is trained too.
    """

    def __init__(self, width: int, hidden: int = HIDDEN, dim: int | None = None) -> None:
        super().__init__()
        dim = dim or width
        self.projection = nn.Parameter(torch.empty(dim, width))
        self.inner = nn.Parameter(torch.empty(hidden, width))
        self.outer = nn.Parameter(torch.empty(dim, hidden))
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Back to the untrained head; the seed draws what the hidden layer looks at."""
        with torch.no_grad():
            self.projection.copy_(torch.eye(*self.projection.shape))
            drawn = torch.randn(self.inner.shape, generator=torch.Generator().manual_seed(seed))
            self.inner.copy_(drawn * _START / self.inner.shape[1] ** 0.5)
            self.outer.zero_()

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors from pooled ones."""
        x = nn.functional.normalize(pooled, dim=1)
        bent = nn.functional.gelu(x @ self.inner.T) @ self.outer.T
        return nn.functional.normalize(x @ self.projection.T + bent, dim=1)

    def as_two_layers(self) -> tuple[Tensor, Tensor]:
        """The same head after the first division as gelu layer and linear layer, for tools that know only those.

        gelu(x) - gelu(-x) = x, so the hidden layer can carry the identity: (2 width + hidden, width) and
        (dim, 2 width + hidden).
        """
        one = torch.eye(self.projection.shape[1])
        first = torch.cat([one, -one, self.inner.detach().cpu()])
        second = torch.cat([self.projection, -self.projection, self.outer], dim=1).detach().cpu()
        return first.contiguous(), second.contiguous()

    @classmethod
    def from_two_layers(cls, first: Tensor, second: Tensor) -> "TextHead":
        """The head that `as_two_layers` wrote.

        Raises:
            ValueError: the shapes are not those of such a head.
        """
        width = first.shape[1]
        hidden = len(first) - 2 * width
        if hidden < 0 or second.shape[1] != len(first):
            raise ValueError(f"layers of {tuple(first.shape)} and {tuple(second.shape)} make no head")
        head = cls(width, hidden, len(second))
        with torch.no_grad():
            head.projection.copy_(second[:, :width])
            head.inner.copy_(first[2 * width :])
            head.outer.copy_(second[:, 2 * width :])
        return head

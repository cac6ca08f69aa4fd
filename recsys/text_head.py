"""The head of the text tower: what is trained in seconds on cached vectors, before and on top of the encoder.

    x -> x / |x| -> P x + W gelu(U x) -> unit length

P starts as the identity, or as the leading directions of inputs that are wider than the vectors, and W as zero: an
untrained head leaves cosines as they are, or nearly.
"""

import torch
from torch import Tensor, nn

from recsys.types import FloatArray
from recsys.vectors import leading_directions

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

    @classmethod
    def untrained(cls, inputs: FloatArray, dim: int, seed: int) -> "TextHead":
        """A head for such inputs, (n, width), that gives `dim` numbers or, where these are fewer, their width."""
        width = inputs.shape[1]
        head = cls(width, dim=min(dim, width))
        head.reset(seed)
        if dim < width:
            with torch.no_grad():
                head.projection.copy_(torch.from_numpy(leading_directions(inputs, dim).T))
        return head

    def reset(self, seed: int) -> None:
        """Back to the identity; the seed draws what the hidden layer looks at."""
        with torch.no_grad():
            self.projection.copy_(torch.eye(*self.projection.shape))
            drawn = torch.randn(self.inner.shape, generator=torch.Generator().manual_seed(seed))
            self.inner.copy_(drawn * _START / self.inner.shape[1] ** 0.5)
            self.outer.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Unit vectors from inputs, (n, width)."""
        x = nn.functional.normalize(inputs, dim=1)
        bent = nn.functional.gelu(x @ self.inner.T) @ self.outer.T
        return nn.functional.normalize(x @ self.projection.T + bent, dim=1)

    @property
    def n_inputs(self) -> int:
        """Length of an input."""
        return int(self.projection.shape[1])

    def as_two_layers(self, width: int) -> tuple[Tensor, Tensor]:
        """The same head after the first division as gelu layer and linear layer, for tools that know only those.

        Of inputs whose places from `width` on are zero: (2 width + hidden, width) and (dim, 2 width + hidden), since
        gelu(x) - gelu(-x) = x, so that the hidden layer can carry the linear map.
        """
        one = torch.eye(width)
        projection = self.projection.detach().cpu()[:, :width]
        first = torch.cat([one, -one, self.inner.detach().cpu()[:, :width]])
        second = torch.cat([projection, -projection, self.outer.detach().cpu()], dim=1)
        return first.contiguous(), second.contiguous()

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> "TextHead":
        """The head whose `state_dict` this is.

        Raises:
            KeyError, ValueError: a part is missing, or the shapes are not those of a head.
        """
        projection, inner = state["projection"], state["inner"]
        if projection.ndim != 2 or inner.ndim != 2:
            raise ValueError(f"parts of {projection.ndim} and {inner.ndim} dimensions make no head")
        head = cls(projection.shape[1], len(inner), len(projection))
        try:
            head.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the parts make no head: {error}") from error
        return head

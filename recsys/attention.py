"""Attention of a BERT encoder, made for short texts on a CPU in bfloat16.

Three things make it faster there than the ways that come with transformers, for the same numbers up to rounding:
scores are scaled inside their product; a softmax over rows whose length is no multiple of 32 is taken in float32,
because in bfloat16 its remainder is computed number by number; and its backward pass is that of plain products.
docs/performance.md has the measurements.
"""

from typing import Any

import torch
from torch import Tensor, nn

_WHOLE_VECTORS = 32  # bfloat16 numbers of a 512-bit register


def short_text_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Softmax attention by the signature that `transformers.AttentionInterface` asks for; dropout is off.

    Args:
        query, key, value: (n_texts, n_heads, length, head_width), one dtype.
        attention_mask: added to the scores, (n_texts, 1, length or 1, length); None where no text has a filler.
        scaling: factor of the scores.

    Returns:
        Weighted values, (n_texts, length, n_heads, head_width), and None in the place of the weights.

    Source: Vaswani et al., Attention is all you need, NeurIPS 2017, eq. 1.
    """
    n_texts, n_heads, length, width = query.shape
    queries, keys, values = (part.reshape(n_texts * n_heads, length, width) for part in (query, key, value))
    scores = torch.baddbmm(query.new_zeros(()), queries, keys.transpose(1, 2), beta=0, alpha=scaling)
    if length % _WHOLE_VECTORS:
        scores = scores.float()
    scores = scores.view(n_texts, n_heads, length, length)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    mixed = torch.bmm(weights.view(n_texts * n_heads, length, length), values)
    return mixed.view(n_texts, n_heads, length, width).transpose(1, 2).contiguous(), None

"""Training losses of the text tower, one signature for all: scores in, one number out."""

import torch
from torch import Tensor


def sampled_softmax(
    scores: Tensor, target: Tensor, masked: Tensor, log_inclusion: Tensor, weight: Tensor, temperature: float
) -> Tensor:
    """Softmax over a sample of items, corrected for how each item came into the sample.

    Each candidate stands for `1 / P(it was sampled)` items of the catalogue, so its logit is lowered by
    the log of that probability; the sum over the sample then estimates the sum over the catalogue.

    Args:
        scores: cosines, (n_queries, n_items).
        target: column of the item each query went on to take, (n_queries,) int64.
        masked: True where an item is another positive of the same user and so no negative, (n_queries, n_items).
        log_inclusion: log probability that the item is in the sample, (n_items,).
        weight: of each query's label, (n_queries,).
        temperature: divides the cosines.

    Returns:
        Weighted mean cross-entropy, a scalar.

    Source: Yi et al., Sampling-bias-corrected neural modeling, RecSys 2019; temperature and correction as in
        Yuan et al., Where to go next for recommender systems? ID vs. modality, SIGIR 2023.
        Differs: inclusion probabilities are known from the sampler, not estimated from a stream.
    """
    logits = (scores / temperature - log_inclusion).masked_fill(masked, float("-inf"))
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    return (losses * weight).sum() / weight.sum()

"""How fast behaviour ages: the half-life of events and the decay of histories, chosen by what predicts best.

Gift shoppers follow the season, film lovers keep their taste for years: no default serves both.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from features.candidates import top_k
from features.chunks import chunks
from features.histories import Histories
from recsys.cf_tower import ease_weights
from recsys.config import RECENCY, Config
from recsys.metrics import hits_of, ndcg
from recsys.types import BoolArray, FloatArray, Progress

NEVER = 100_000.0  # days
HALF_LIVES = (NEVER, 730.0, 180.0, 60.0, 20.0, 7.0)  # the slowest first: it wins where nothing speaks against it
DECAYS = (1.0, 0.95, 0.9, 0.8, 0.6)
FEW_ITEMS = 2000  # EASE over the most taken items takes a second, not a minute, and prefers the same ages
FIT_USERS = 100_000
JUDGES = 2000
K = 10
CHUNK = 256


def learn_recency(
    histories: Histories,
    targets: sp.csr_matrix,
    text_views: Sequence[FloatArray],
    available: BoolArray,
    config: Config,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> dict[str, float]:
    """`half_life_days` and `history_decay` of `[cf]`: the slowest forgetting that is not worse than the best.

    Each pair is judged by EASE's NDCG@10 on users who had a history. Of those whose paired difference to the best is
    within its standard error, the longest half-life counts, then the largest decay; so few users mean slow forgetting.

    Args:
        histories: before the window.
        targets: what each user took in it, as far as it counts, (n_users, n_items).
        text_views: vectors of texts that EASE is pulled towards, (n_items, dim) each.
        available: items that may be recommended, (n_items,).

    Returns:
        Empty where nobody can judge.

    Source: Breiman et al., Classification and regression trees, 1984 (the one-standard-error rule).
    """
    able = np.flatnonzero((np.diff(targets.indptr) > 0) & (histories.n_events > 0))
    if not len(able):
        return {}
    judges = np.sort(rng.permutation(able)[:JUDGES])
    some, wanted = histories.of_users(judges), targets[judges]
    learners = histories.of_users(np.sort(rng.permutation(histories.n_users)[:FIT_USERS]))
    small = config.cf.model_copy(update={"ease_items": min(FEW_ITEMS, config.cf.ease_items)})
    values: dict[tuple[float, float], FloatArray] = {}
    for done, half_life in enumerate(HALF_LIVES):
        weights = ease_weights(learners.confidence(half_life), text_views, small)
        for decay in DECAYS:
            values[half_life, decay] = _quality(some, wanted, weights, decay, available, config.rules.exclude_seen)
        if progress:
            progress(done + 1, len(HALF_LIVES))
    half_life, decay = _slowest_of_the_best(values)
    return dict(zip(RECENCY, (half_life, decay), strict=True))


def _slowest_of_the_best(values: dict[tuple[float, float], FloatArray]) -> tuple[float, float]:
    """The first entry whose mean shortfall to the best entry is within its standard error."""
    best = max(values, key=lambda pair: values[pair].mean())
    for pair, quality in values.items():
        shortfall = values[best] - quality
        if shortfall.mean() <= shortfall.std() / np.sqrt(len(shortfall)):
            return pair
    return best


def _quality(
    some: Histories,
    wanted: sp.csr_matrix,
    weights: sp.csr_matrix,
    decay: float,
    available: BoolArray,
    exclude_seen: bool,
) -> FloatArray:
    """NDCG@10 of each judge by EASE alone, (n_users,). Only items that it has weights for are ranked: few of many."""
    ranked = np.unique(weights.indices)
    column = np.full(weights.shape[1], -1)
    column[ranked] = np.arange(len(ranked))
    weights, found = weights[:, ranked], wanted[:, ranked]
    values = []
    for users in chunks(np.arange(some.n_users), CHUNK):
        chunk = some.of_users(users)
        scores = (chunk.decayed(decay) @ weights).toarray()
        scores[:, ~available[ranked]] = -np.inf
        user, item = chunk.barred(exclude_seen)
        barred = column[item]
        scores[user[barred >= 0], barred[barred >= 0]] = -np.inf
        values.append(ndcg(hits_of(top_k(scores, K), found[users]), np.diff(wanted[users].indptr), K))
    return np.concatenate(values)

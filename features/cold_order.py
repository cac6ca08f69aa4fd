"""Which of the items nobody took yet comes first: the one that borrowed most for this user.

The ranker learns from items that have sold, and has seen few others win. It says how many cold items a list has and
where; what they borrowed from items with like texts says which (features.cold_items).
"""

import numpy as np

from features.candidates import Candidates
from features.pairs import NAMES, PairTable
from recsys.ranker import Ranker
from recsys.types import FloatArray, IntArray

CF_WEIGHT = 0.5  # of the ALS score beside EASE's, both standardised; docs/experiments.md


def score_pairs(ranker: Ranker, candidates: Candidates, table: PairTable, by: str | None = None) -> FloatArray:
    """The ranker's scores of candidates, cold items in order, (n_pairs,) float64, comparable within a user.

    Args:
        by: "trees" or "fusion" to overrule the ranker's choice.
    """
    return in_cold_order(ranker.score(table.features, by, candidates.indptr), table.features, candidates.indptr)


def in_cold_order(scores: FloatArray, features: FloatArray, bounds: IntArray) -> FloatArray:
    """The same scores, (n_pairs,), those of a user's cold items handed out among them anew; ties keep their order.

    Args:
        features: of the pairs, (n_pairs, len(NAMES)).
        bounds: where each user's pairs start, (n_users + 1,).
    """
    count, ease, cf = (features[:, NAMES.index(name)] for name in ("count_all", "ease_z", "cf_z"))
    cold = np.flatnonzero(count == 0)
    if not len(cold):
        return scores
    borrowed = ease[cold] + CF_WEIGHT * cf[cold]
    user, own = np.searchsorted(bounds, cold, side="right"), -scores[cold]
    places = np.lexsort((own, user))
    out = scores.copy()
    out[cold[np.lexsort((own, -borrowed, user))]] = scores[cold[places]]
    return out

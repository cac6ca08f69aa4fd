"""Which of the items nobody took yet comes first: the one that borrowed most for this user.

The ranker learns from items that have sold, and has seen few others win. It says how many cold items a list has and
where; what they borrowed from items with like texts says which (features.cold_items).
"""

import numpy as np

from features.candidates import Candidates
from features.pairs import PairTable
from recsys.ranker import Ranker
from recsys.types import FloatArray

CF_WEIGHT = 0.5  # of the ALS score beside EASE's, both standardised; docs/experiments.md


def score_pairs(ranker: Ranker, candidates: Candidates, table: PairTable, by: str | None = None) -> FloatArray:
    """The ranker's scores of candidates, cold items in order, (n_pairs,) float64, comparable within a user.

    Args:
        by: "trees" or "fusion" to overrule the ranker's choice.
    """
    return in_cold_order(ranker.score(table.features, by, candidates.indptr), table)


def in_cold_order(scores: FloatArray, table: PairTable) -> FloatArray:
    """The same scores, (n_pairs,), those of a user's cold items handed out among them anew; ties keep their order."""
    cold = np.flatnonzero(table.column("count_all") == 0)
    if not len(cold):
        return scores
    borrowed = table.column("ease_z")[cold] + CF_WEIGHT * table.column("cf_z")[cold]
    user, own = table.user_row[cold], -scores[cold]
    places = np.lexsort((own, user))
    out = scores.copy()
    out[cold[np.lexsort((own, -borrowed, user))]] = scores[cold[places]]
    return out

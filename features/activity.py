"""How active a user has been, as of a moment: who buys often and lately comes back."""

import numpy as np

from features.histories import Histories
from recsys.types import FloatArray, IntArray

GROUPS = ("0", "1-4", "5-19", "20+")  # users by events in their history


def group_of(n_events: IntArray) -> IntArray:
    """Place in `GROUPS` of users with so many events, (n_users,)."""
    return np.digitize(n_events, [1, 5, 20])


def activity(histories: Histories, pace: float = 1.0) -> FloatArray:
    """log(1 + events) and log(1 + days since the last one) of each user, (n_users, 2); nan without an event.

    Args:
        pace: what counts are multiplied by, so that those of different times compare.
    """
    columns = np.stack([np.log1p(pace * histories.n_events), np.log1p(histories.days_since_last())], axis=1)
    columns[histories.n_events == 0] = np.nan
    return columns

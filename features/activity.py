"""How active a user has been, as of a moment: who buys often and lately comes back."""

import numpy as np

from features.histories import Histories
from recsys.split import DAY_US
from recsys.types import FloatArray


def activity(histories: Histories, days: float | None = None) -> FloatArray:
    """log(1 + events) and log(1 + days since the last one) of each user, (n_users, 2); nan without an event.

    Args:
        days: as long a past is counted, all of it by default.
    """
    n_events = histories.n_events
    if days is not None:
        is_counted = histories.timestamp >= histories.as_of - days * DAY_US
        n_events = np.bincount(histories.user_pos[is_counted], minlength=histories.n_users)
    columns = np.stack([np.log1p(n_events), np.log1p(histories.days_since_last())], axis=1)
    columns[histories.n_events == 0] = np.nan
    return columns

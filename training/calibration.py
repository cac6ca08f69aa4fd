"""Fits the map from scores to probabilities on out-of-fold scores, and measures it on the report window."""

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from features import pairs
from features.activity import activity
from features.candidates import gather
from features.chunks import chunk_size, chunks
from features.cold_order import score_pairs
from features.snapshot import Snapshot
from recsys.calibration import Calibration, Reliability
from recsys.metrics import places
from recsys.ranker import Ranker
from recsys.types import FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_USERS = 4000  # drawn for the report; scoring them costs seconds
TOP = 10  # slots that most people see


def fit_calibration(
    snapshot: Snapshot,
    users: IntArray,
    targets: sp.csr_matrix,
    indptr: IntArray,
    gains: FloatArray,
    scores: FloatArray,
) -> Calibration:
    """The calibration of a ranker.

    Args:
        snapshot: the world when the window began.
        users: who the ranker learns from, (n_some,).
        targets: what users took in the window and could have been recommended, (n_users, n_items).
        indptr, gains: their pairs, as the ranker learns from them.
        scores: of these pairs, each by a ranker that learned from other users. Only how many trees there are was
            chosen on them.
    """
    histories = snapshot.histories.loaded()
    everybody, active, is_known = activity(histories), np.diff(targets.indptr) > 0, histories.n_events > 0
    takers, known = everybody[users], everybody[is_known]
    return Calibration.fit(scores, gains > 0, indptr, takers, known, active[is_known], snapshot.days)


def measure_reliability(
    snapshot: Snapshot, ranker: Ranker, targets: sp.csr_matrix, rng: np.random.Generator
) -> dict[str, Reliability]:
    """How far `p` can be relied on in a window: of all candidates ("candidates"), and of the first 10 ("top 10").

    Users are drawn from all who had a history when the window began, as a night would score them, whether they took
    something in it or not. Empty where the ranker has no calibration or there is nobody to draw.

    Args:
        snapshot: the world when the window began.
        targets: what users took in the window and could have been recommended, (n_users, n_items).
    """
    users = rng.permutation(np.flatnonzero(snapshot.histories.loaded().n_events))[:MAX_USERS]
    if ranker.calibration is None or not len(users):
        return {}
    p, taken, top = [], [], []
    for drawn in chunks(users, chunk_size(snapshot.histories.n_items)):
        chunk = np.sort(drawn)
        some = snapshot.histories.of_users(chunk)
        candidates = gather(snapshot, some)
        scores = score_pairs(ranker, candidates, pairs.build(snapshot, some, candidates))
        active = activity(some, ranker.calibration.pace(snapshot.days))
        p.append(ranker.calibration.probabilities(scores, candidates.indptr, active))
        taken.append(candidates.values_of(targets[chunk]) > 0)
        top.append(places(scores, candidates.indptr) < TOP)
    said, happened, shown = np.concatenate(p), np.concatenate(taken), np.concatenate(top)
    if not len(said):
        return {}
    return {
        "candidates": Reliability.measure(said, happened),
        f"top {TOP}": Reliability.measure(said[shown], happened[shown]),
    }


def diagram(reliability: dict[str, Reliability]) -> "Figure":
    """Rate against p, bin by bin, on logarithmic axes; on the diagonal p is what happens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for name, found in reliability.items():
        _, p, rate = np.array(found.bins).T
        lowest = min([lowest, *p[p > 0], *rate[rate > 0]])
        axes.plot(p, rate, "o-", label=f"{name}: error {found.error:.2g}, base rate {found.base_rate:.2g}")
    axes.plot([lowest, 1], [lowest, 1], color="grey", linestyle="--", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("p said")
    axes.set_ylabel("share taken")
    axes.legend()
    return figure

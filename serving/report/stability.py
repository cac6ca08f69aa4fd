"""Does the gain hold with another training seed, in another week? The interval over users knows nothing of either."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from recsys import metrics
from recsys.config import ReportConfig
from serving.report.measures import Lists
from serving.report.statistics import Effect, paired_effect
from serving.report.world import Arm, World, counts, positive

N_PARTS = 3
SHARE_OF_WINDOWS = 2 / 3


@dataclass(frozen=True)
class Repetition:
    """The primary metric of both arms, made or judged another way.

    Args:
        kind: "seed", trained anew with another one; "window", trained anew to an earlier moment; "part", the same
            lists on a part of the test window.
        start, end: the labels' window.
    """

    kind: Literal["seed", "window", "part"]
    name: str
    start: str
    end: str
    effect: Effect


@dataclass(frozen=True)
class Stability:
    """What was run, and how much a promotion needs.

    Args:
        runs: seeds and windows, the comparison itself as the first of each, then parts of the window.
        min_seeds, min_windows: needed; 0 where arms are tables, which nobody can train again.
    """

    runs: tuple[Repetition, ...]
    min_seeds: int = 0
    min_windows: int = 0

    def of(self, kind: str) -> tuple[Repetition, ...]:
        """Runs of a kind with at least two users."""
        return tuple(run for run in self.runs if run.kind == kind and run.effect.n > 1)

    @property
    def shortfall(self) -> tuple[str, ...]:
        """What a promotion still needs to be run; empty where all was."""
        told = []
        for kind, needed in (("seed", self.min_seeds), ("window", self.min_windows)):
            if len(self.of(kind)) < needed:
                told.append(f"{len(self.of(kind))} of {needed} {kind}s were run (recsys compare --rerun)")
        return tuple(told)

    @property
    def objections(self) -> tuple[str, ...]:
        """What in the runs speaks against a promotion; too few of them does too."""
        told = list(self.shortfall)
        lost = [run.name for run in self.of("seed") if not run.effect.diff > 0]
        if lost:
            told.append(f"it is not positive with {', '.join(lost)}")
        # rolling windows say more than parts of one, so the parts count only where there are none, nor will be
        kind = "window" if max(self.min_windows, len(self.of("window"))) > 1 else "part"
        windows = self.of(kind)
        won = sum(run.effect.diff > 0 for run in windows)
        if won < SHARE_OF_WINDOWS * len(windows):
            told.append(
                f"it is positive in {won} of {len(windows)} {'windows' if kind == 'window' else 'parts of the window'}"
            )
        return tuple(told)


def on_lists(
    kind: Literal["seed", "window"],
    name: str,
    arms: tuple[Arm, Arm],
    labels: pd.DataFrame,
    items: pd.DataFrame,
    window: tuple[pd.Timestamp, pd.Timestamp],
    k: int,
    config: ReportConfig,
) -> Repetition:
    """A run over lists made another way, judged by the labels of their own window."""
    world = World.of(arms, labels, items, None, len(labels), np.random.default_rng(0))
    a, b = (Lists.of(world.lists(arm.table, k), world, k, ()) for arm in arms)
    start, end = (moment.isoformat() for moment in window)
    return Repetition(kind, name, start, end, paired_effect(a.values[a.primary], b.values[b.primary], config.alpha))


def over_parts(
    world: World,
    a: Lists,
    b: Lists,
    events: pd.DataFrame,
    window: tuple[pd.Timestamp, pd.Timestamp],
    k: int,
    config: ReportConfig,
) -> tuple[Repetition, ...]:
    """The same lists on the labels of each third of the window where anybody acted.

    However few they were: if small parts did not count, more data on a loss would be what keeps an arm out.
    """
    if "timestamp" not in events:
        return ()
    start, end = window
    events = positive(events)
    cuts = [start + i * (end - start) / N_PARTS for i in range(N_PARTS + 1)]
    runs = []
    for i, (low, high) in enumerate(pairwise(cuts), 1):
        labels = counts(events[(events["timestamp"] >= low) & (events["timestamp"] < high)], world.users, world.items)
        effect = paired_effect(_ndcg(a, labels, k), _ndcg(b, labels, k), config.alpha)
        runs.append(Repetition("part", f"part {i} of {N_PARTS}", low.isoformat(), high.isoformat(), effect))
    return tuple(runs)


def _ndcg(lists: Lists, labels: sp.csr_matrix, k: int) -> np.ndarray:
    """By some of the labels: what hits one of them is among what hits any, so only hits are looked up again."""
    hits = lists.hits[:, :k].copy()
    user, slot = np.nonzero(hits)
    if len(user):  # scipy cannot look up nothing
        hits[user, slot] = np.asarray(labels[user, lists.ranked[user, slot]]).ravel() > 0
    return metrics.ndcg(hits, np.diff(labels.indptr), k)

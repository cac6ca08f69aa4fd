"""Side by side: about twenty users drawn by seed, what they did, and what each arm gave them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys.types import FloatArray, IntArray
from serving.report.measures import Lists
from serving.report.world import MAX_TITLE, Arm, World

PER_KIND = 5
MAX_HISTORY = 10
MAX_TAKEN = 15
MAX_ROWS = 10


@dataclass(frozen=True)
class Row:
    """One recommendation as the user would have seen it; `reason` and `source` are empty where unknown."""

    rank: int
    item_id: object
    title: str
    is_hit: bool
    reason: str
    source: str


@dataclass(frozen=True)
class Sample:
    """One user: titles of the latest history (newest first, where it has times) and of what was taken, and both lists."""

    kind: str
    user_id: object
    score_a: float
    score_b: float
    n_history: int
    history: tuple[str, ...]
    n_taken: int
    taken: tuple[str, ...]
    a: tuple[Row, ...]
    b: tuple[Row, ...]


def draw(
    world: World,
    arms: tuple[Arm, Arm],
    lists: tuple[Lists, Lists],
    history: pd.DataFrame | None,
    k: int,
    rng: np.random.Generator,
) -> tuple[Sample, ...]:
    """Five users each of the largest wins and losses of B, without a history, and at random; fewer where few are."""
    primary = lists[0].primary
    score_a, score_b = (own.values[primary] for own in lists)
    chosen = list(_choose(score_b - score_a, world, rng))
    users = np.array([user for _, user in chosen], dtype=np.int64)
    ids = world.users.values(users)
    past = history[history["user_id"].isin(ids)] if history is not None else None
    rows = [arm.table[arm.table["user_id"].isin(ids)] for arm in arms]
    samples = []
    for (kind, user), user_id in zip(chosen, ids.tolist(), strict=True):
        taken = world.relevant[user].indices
        events = _latest(past[past["user_id"] == user_id]) if past is not None else pd.Series(dtype=object)
        shown = [
            _rows(world, own.ranked[user], own.hits[user], table[table["user_id"] == user_id], min(k, MAX_ROWS))
            for own, table in zip(lists, rows, strict=True)
        ]
        samples.append(
            Sample(
                kind=kind,
                user_id=user_id,
                score_a=float(score_a[user]),
                score_b=float(score_b[user]),
                n_history=len(events),
                history=_titles(
                    world, world.items.positions(events[:MAX_HISTORY]) if len(events) else np.empty(0, dtype=np.int64)
                ),
                n_taken=len(taken),
                taken=_titles(world, np.sort(taken)[:MAX_TAKEN]),
                a=shown[0],
                b=shown[1],
            )
        )
    return tuple(samples)


def _choose(gain: FloatArray, world: World, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """(kind, position of a user), nobody twice; ties fall by chance, so by the seed."""
    order = rng.permutation(len(gain))
    by_gain = order[np.argsort(gain[order], kind="stable")]
    is_cold = world.n_history == 0 if world.n_history is not None else np.zeros(len(gain), dtype=bool)
    kinds = (
        ("largest win of B", by_gain[::-1][gain[by_gain[::-1]] > 0]),
        ("largest loss of B", by_gain[gain[by_gain] < 0]),
        ("no history", order[is_cold[order]]),
        ("at random", order),
    )
    used: set[int] = set()
    for kind, candidates in kinds:
        fresh = [int(user) for user in candidates[: 5 * PER_KIND].tolist() if user not in used][:PER_KIND]
        used.update(fresh)
        yield from ((kind, user) for user in fresh)


def _latest(events: pd.DataFrame) -> pd.Series:
    """Item ids of one user's events, newest first; by id where they have no times."""
    by = ["timestamp", "item_id"] if "timestamp" in events else ["item_id"]
    return events.sort_values(by, ascending=[False, True][: len(by)])["item_id"]


def _titles(world: World, positions: IntArray) -> tuple[str, ...]:
    return tuple(world.titles[p] if p >= 0 else "" for p in positions)


def _rows(world: World, ranked: IntArray, hits: np.ndarray, table: pd.DataFrame, k: int) -> tuple[Row, ...]:
    beside = table.drop_duplicates("item_id").set_index("item_id")
    ids = world.items.values(np.maximum(ranked, 0)).tolist() if len(world.items) else []
    return tuple(
        Row(
            rank=slot + 1,
            item_id=ids[slot],
            title=world.titles[ranked[slot]],
            is_hit=bool(hits[slot]),
            reason=_text(beside, ids[slot], "reason"),
            source=_text(beside, ids[slot], "source"),
        )
        for slot in range(min(k, len(ranked)))
        if ranked[slot] >= 0
    )


def _text(beside: pd.DataFrame, item_id: object, column: str) -> str:
    if column not in beside:
        return ""
    value = beside.loc[[item_id], column].iloc[0]
    return "" if pd.isna(value) else str(value)[:MAX_TITLE]

"""Why an item is in a list: its source, one plain sentence, and the item of the history it points to."""

import numpy as np
import pandas as pd

from features.candidates import Candidates
from features.pairs import PairTable
from features.snapshot import Snapshot
from recsys.types import IntArray

MAX_TITLE = 80
STRONG = 20  # a place among a source's first items makes it a source of the entry


def sources(candidates: Candidates, rows: IntArray) -> np.ndarray:
    """The source that put each pair in, (n,) strings.

    `repeat` (taken before), `both` (text and behaviour), `text`, `cf`, `new`, `recent` (popular this week),
    `popular` (this month, or of all time).
    """
    ranks = {name: np.nan_to_num(rank[rows], nan=np.inf) for name, rank in candidates.ranks.items()}
    behaviour = np.minimum.reduce([ranks["cf"], ranks["item_item"], ranks["ease"]])
    conditions = [
        np.isfinite(ranks["repeat"]),
        (ranks["text"] < STRONG) & (behaviour < STRONG),
        np.isfinite(ranks["text"]) & (ranks["text"] <= behaviour),
        np.isfinite(behaviour),
        np.isfinite(ranks["new"]),
        np.isfinite(ranks["recent"]),
    ]
    return np.select(conditions, ["repeat", "both", "text", "cf", "new", "recent"], "popular")


def reasons(
    snapshot: Snapshot, titles: pd.Series, candidates: Candidates, table: PairTable, rows: IntArray
) -> pd.DataFrame:
    """Columns source, reason and reason_pos (item position, -1 for none), one row per pair in `rows`."""
    source = sources(candidates, rows)
    # only text points to an item: what behaviour rests on is the whole history
    nearest = np.where(np.isin(source, ["repeat", "recent", "popular", "cf"]), -1, table.nearest(rows))
    near_title = titles.iloc[np.maximum(nearest, 0)].reset_index(drop=True)
    near_title = near_title.str.slice(0, MAX_TITLE).replace("", "an untitled item")
    quoted = "“" + near_title + "”"
    taken = np.flatnonzero(source == "repeat")
    times, days = (
        np.nan_to_num(table.column(name)[rows[taken]]).astype(int) for name in ("times_taken", "days_since_taken")
    )
    again = np.full(len(rows), "", dtype=object)
    again[taken] = [_again(t, d) for t, d in zip(times, days, strict=True)]
    sentences = {
        "repeat": pd.Series(again, dtype="str"),
        "both": "Close to " + quoted + " in its text, and taken by people with a similar history",
        "text": "Its text is close to " + quoted,
        "new": "New, and its text is close to " + quoted,
    }
    is_monthly = np.isfinite(candidates.ranks["popular"][rows])
    listed = np.where(is_monthly, "Popular in the last 30 days", "Popular")
    sentence = pd.Series(np.where(source == "recent", "Popular in the last 7 days", listed), dtype="str")
    for name, values in sentences.items():
        chosen = (source == name) & ((nearest >= 0) | (name == "repeat"))
        sentence = sentence.mask(pd.Series(chosen), values)
    sentence = sentence.mask(pd.Series(source == "cf"), "Taken by people with a history like yours")
    no_history = (nearest < 0) & np.isin(source, ["both", "text", "new"])
    sentence = sentence.mask(pd.Series(no_history), "Fits the little we know of you")
    return pd.DataFrame({"source": source, "reason": sentence, "reason_pos": nearest})


def _again(times: int, days: int) -> str:
    when = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
    return f"You took it {times} times, last {when}" if times > 1 else f"You took it once, {when}"

"""Why an item is in a list: its source, one plain sentence, and the item of the history it points to."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.candidates import Candidates
from features.pairs import NAMES, PairTable
from recsys.ranker import POPULAR
from recsys.types import BoolArray, IntArray

MAX_TITLE = 80
SOURCES = ("repeat", "both", "text", "cf", "new", "recent", "popular")
POINTING = ("both", "text", "new")
SENTENCES = {  # what stands before and behind the title that a reason points to; the sources first, in their order
    "repeat": ("", ""),  # says how often, see `_again`
    "both": ("Close to ", " in its text, and taken by people with a similar history"),
    "text": ("Its text is close to ", ""),
    "cf": ("Taken by people with a history like yours", ""),
    "new": ("New, and its text is close to ", ""),
    "recent": ("Popular in the last 7 days", ""),
    "popular": ("Popular", ""),
    "this month": ("Popular in the last 30 days", ""),
    "little": ("Fits the little we know of you", ""),
    "untaken": ("Not taken by anyone yet, and its text is close to ", ""),
    "both, far": ("Its text fits what you took, and people with a similar history took it", ""),
    "text, far": ("Its text fits what you took", ""),
    "new, far": ("New, and its text fits what you took", ""),
    "untaken, far": ("Not taken by anyone yet, and its text fits what you took", ""),
}
CODE = {name: code for code, name in enumerate(SENTENCES)}
FAR = {
    CODE[name]: CODE[f"{name}, far"] for name in ("both", "text", "new", "untaken")
}  # instead, where no item is near
STRONG = 20  # a place among a source's first items makes it a source of the entry
NEW_DAYS = 90  # a season; nobody calls new what has been on the shelf for longer, or for who knows how long
NEAR_SHARE = 0.01  # of the popular items, which stand for any item, may be as near to what a reason points to
NEAR_ITEMS = 20  # or the share that so many are of a small catalogue; docs/experiments.md


def sources(candidates: Candidates, table: PairTable, rows: IntArray) -> IntArray:
    """The source that put each pair in, (n,) codes, which are positions in `SOURCES`.

    `repeat` (taken before), `both` (text and behaviour), `text`, `cf`, `new`, `recent` (popular this week),
    `popular` (this month, or of all time). What nobody took yet has no behaviour but what it borrowed by its text: it
    is `text` or `new`.
    """
    ranks = {name: np.nan_to_num(rank[rows], nan=np.inf) for name, rank in candidates.ranks.items()}
    behaviour = np.minimum.reduce([ranks["cf"], ranks["item_item"], ranks["ease"]])
    is_cold = table.features[rows, NAMES.index("count_all")] == 0
    behaviour = np.where(is_cold, np.inf, behaviour)
    conditions = [
        ~np.isnan(table.features[rows, NAMES.index("times_taken")]),  # its list ends long before some histories do
        (ranks["text"] < STRONG) & (behaviour < STRONG),
        np.isfinite(ranks["text"]) & (ranks["text"] <= behaviour),
        np.isfinite(behaviour),
        np.isfinite(ranks["new"]) | is_cold,
        np.isfinite(ranks["recent"]),
    ]
    return np.select(conditions, range(len(conditions)), CODE["popular"])


def quoted(titles: pd.Series) -> pa.Array:
    """Titles as sentences quote them, (n_items,); made once for all users."""
    short = titles.fillna("").astype("str").str.slice(0, MAX_TITLE).replace("", "an untitled item")
    return pa.array("“" + short + "”", pa.string())


def reasons(quotes: pa.Array, candidates: Candidates, table: PairTable, rows: IntArray) -> dict[str, pa.Array]:
    """Columns source, reason and reason_pos (item position, -1 for none), one value per pair in `rows`.

    Args:
        quotes: see `quoted`.
    """
    source = sources(candidates, table, rows)
    is_pointing = np.isin(source, [CODE[name] for name in POINTING])
    # only text points to an item: what behaviour rests on is the whole history
    nearest = np.where(is_pointing, table.nearest(rows), -1)
    said = source.copy()
    is_young = table.column("age_days")[rows] <= NEW_DAYS
    said[(source == CODE["new"]) & ~is_young] = CODE["untaken"]
    said[is_pointing & (nearest < 0)] = CODE["little"]
    said[(source == CODE["popular"]) & np.isfinite(candidates.ranks["popular"][rows])] = CODE["this month"]
    pointing = np.flatnonzero(nearest >= 0)
    far = pointing[~_is_near(candidates, table, rows[pointing], len(quotes))]
    for near, instead in FAR.items():
        said[far[said[far] == near]] = instead
    nearest[far] = -1
    quote = quotes.take(pa.array(nearest, mask=nearest < 0)).fill_null("")
    before, behind = (pa.array(words).take(pa.array(said)) for words in zip(*SENTENCES.values(), strict=True))
    sentence = pc.binary_join_element_wise(before, quote, behind, "")
    is_taken = source == CODE["repeat"]
    times, days = (
        np.nan_to_num(table.column(name)[rows[is_taken]]).astype(int) for name in ("times_taken", "days_since_taken")
    )
    again = pa.array([_again(t, d) for t, d in zip(times, days, strict=True)], sentence.type)
    sentence = pc.replace_with_mask(sentence, pa.array(is_taken), again)
    return {"source": pa.array(SOURCES).take(pa.array(source)), "reason": sentence, "reason_pos": pa.array(nearest)}


def _is_near(candidates: Candidates, table: PairTable, rows: IntArray, n_items: int) -> BoolArray:
    """Whether the item of the history most like each candidate is really near it, (n,).

    There is always a most like one. It is near where hardly any popular item is as near to it: they are the same for
    everybody, so they stand for any item, and in the space of the towers at hand, whose cosines differ in scale.
    """
    is_popular = np.logical_or.reduce([np.isfinite(candidates.ranks[name]) for name in POPULAR])
    popular = np.append(np.flatnonzero(is_popular), 0)  # which ends a row below
    bounds = np.searchsorted(table.user_row[popular[:-1]], np.arange(candidates.n_users + 1))
    user, likeness = table.user_row[rows], table.likeness[:, rows]
    sizes, place = np.diff(bounds), np.arange(np.diff(bounds).max(initial=0))
    of_user = popular[np.minimum(bounds[:-1, None] + place, len(popular) - 1)]  # (n_users, most popular items of one)
    pairs = (likeness.argmax(axis=0) * table.likeness.shape[1])[:, None] + of_user[user]
    as_near = table.likeness.ravel().take(pairs) >= likeness.max(axis=0)[:, None]
    as_near &= (place < sizes[:, None])[user]
    n_as_near = as_near.sum(axis=1) - is_popular[rows]  # a popular one is as near as itself
    return np.asarray(n_as_near <= max(NEAR_SHARE, NEAR_ITEMS / n_items) * (sizes[user] - is_popular[rows]))


def _again(times: int, days: int) -> str:
    when = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
    return f"In your history {times} times, last {when}" if times > 1 else f"In your history once, {when}"  # clicks too

"""Reasons of hand-made pairs: an item of the history is named only where it is near."""

import numpy as np
import pandas as pd
import pytest

from features.candidates import LISTED, SCORED, Candidates
from features.pairs import N_RECENT, NAMES, NOTHING, PairTable
from features.reasons import quoted, reasons
from recsys.types import FloatArray, IntArray

N_POPULAR = 100


def made(
    likeness: float, popular: FloatArray, places: dict[str, float], facts: dict[str, float], n_users: int = 1
) -> tuple[Candidates, PairTable, IntArray]:
    """Users who took item 500: the first pair of each is the one to explain, the others are the popular items.

    Args:
        likeness: of the item to explain with the one taken; popular: the same of the popular items.
        places: of the item to explain in the lists of sources; facts: features of it.
    """
    size = 1 + len(popular)
    user, item = np.repeat(np.arange(n_users), size), np.tile(np.arange(size), n_users)
    ranks = {name: np.full(len(item), np.nan, dtype=np.float32) for name in (*SCORED, *LISTED)}
    for name, place in places.items():
        ranks[name][item == 0] = place
    ranks["all_time"][item > 0] = item[item > 0]
    alike = np.full((N_RECENT, len(item)), NOTHING, dtype=np.float32)
    alike[0] = np.tile(np.append(np.float32(likeness), popular), n_users)
    features = np.full((len(item), len(NAMES)), np.nan, dtype=np.float32)
    features[:, NAMES.index("count_all")] = 1
    for name, value in facts.items():
        features[item == 0, NAMES.index(name)] = value
    recent = np.full((n_users, N_RECENT), -1)
    recent[:, 0] = 500
    table = PairTable(features, alike, recent, user)
    candidates = Candidates(user, item, {}, ranks, np.zeros((n_users, 2), np.float32), n_users)
    return candidates, table, np.flatnonzero(item == 0)


def said(pairs: tuple[Candidates, PairTable, IntArray], n_items: int = 5000) -> list[tuple[str, str, int]]:
    titles = pd.Series([f"t{i}" for i in range(n_items)], dtype="str")
    why = reasons(quoted(titles), *pairs)
    return list(zip(*(why[name].to_pylist() for name in ("source", "reason", "reason_pos")), strict=True))


SPREAD = np.linspace(-0.2, 0.4, N_POPULAR, dtype=np.float32)


def test_an_item_nearer_than_popular_ones_is_named() -> None:
    assert said(made(0.45, SPREAD, {"text": 0}, {})) == [("text", "Its text is close to “t500”", 500)]


@pytest.mark.parametrize(
    ("places", "facts", "reason"),
    [
        ({"text": 0}, {}, "Its text fits what you took"),
        ({"text": 0, "cf": 0}, {}, "Its text fits what you took, and people with a similar history took it"),
        ({"new": 0}, {"count_all": 0, "age_days": 3}, "New, and its text fits what you took"),
    ],
)
def test_an_item_that_popular_ones_are_as_near_to_is_not_named(
    places: dict[str, float], facts: dict[str, float], reason: str
) -> None:
    ((_, sentence, pos),) = said(made(0.3, SPREAD, places, facts))
    assert (sentence, pos) == (reason, -1)


def test_one_popular_item_in_a_hundred_may_be_as_near_and_not_two() -> None:
    one, two = SPREAD.copy(), SPREAD.copy()
    one[7] = two[7] = two[8] = 0.5
    assert [said(made(0.45, some, {"text": 0}, {}))[0][2] for some in (one, two)] == [500, -1]


def test_a_popular_item_is_not_held_against_itself() -> None:
    one = SPREAD.copy()
    one[7] = 0.5
    assert said(made(0.45, one, {"text": 0, "all_time": 0}, {}))[0][2] == 500


def test_the_scale_of_the_space_does_not_matter() -> None:
    for scale in (0.1, 1.0, 2.0):
        for likeness, pos in ((0.45, 500), (0.3, -1)):
            pairs = made(scale * likeness, scale * SPREAD, {"text": 0}, {})
            assert said(pairs)[0][2] == pos


def test_of_a_small_catalogue_twenty_items_may_be_near() -> None:
    assert said(made(0.3, SPREAD, {"text": 0}, {}), n_items=600)[0][2] == -1  # 16 are as near, 3 of a hundred may be
    assert said(made(0.39, SPREAD, {"text": 0}, {}), n_items=600)[0][2] == 500


def test_without_popular_items_the_nearest_is_named_and_others_change_nothing() -> None:
    assert said(made(0.1, SPREAD[:0], {"text": 0}, {}))[0][2] == 500
    assert said(made(0.3, SPREAD, {"text": 0}, {}, n_users=3)) == 3 * said(made(0.3, SPREAD, {"text": 0}, {}))


def test_who_has_nothing_with_a_text_is_told_that_little_is_known() -> None:
    pairs = made(NOTHING, SPREAD, {"text": 0}, {})
    assert said(pairs) == [("text", "Fits the little we know of you", -1)]


def test_what_was_taken_is_a_repeat_wherever_it_is_listed() -> None:
    facts = {"times_taken": 2.0, "days_since_taken": 30.5}
    for places in ({"repeat": 0.0}, {"cf": 0.0}, {"text": 0.0, "cf": 0.0}, {"all_time": 0.0}):
        assert said(made(0.45, SPREAD, places, facts)) == [("repeat", "In your history 2 times, last 30 days ago", -1)]


@pytest.mark.parametrize(
    ("age_days", "opening"),
    [
        (3, "New"),
        (90, "New"),
        (91, "Not taken by anyone yet"),
        (1800, "Not taken by anyone yet"),
        (np.nan, "Not taken by anyone yet"),
    ],
)
def test_new_is_only_what_is_known_to_be_young(age_days: float, opening: str) -> None:
    facts = {"count_all": 0, "age_days": age_days}
    assert said(made(0.45, SPREAD, {"new": 0}, facts)) == [("new", f"{opening}, and its text is close to “t500”", 500)]
    assert said(made(0.3, SPREAD, {"new": 0}, facts)) == [("new", f"{opening}, and its text fits what you took", -1)]
    assert said(made(NOTHING, SPREAD, {"new": 0}, facts)) == [("new", "Fits the little we know of you", -1)]

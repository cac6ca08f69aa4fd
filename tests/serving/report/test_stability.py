from typing import Literal

import numpy as np
import pandas as pd
import pytest

from recsys.config import ReportConfig
from serving.report.compare import compare
from serving.report.stability import Repetition, Stability, on_lists
from serving.report.statistics import paired_effect
from serving.report.world import Arm

START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-31", tz="UTC")


def run(kind: Literal["seed", "window", "part"], gain: float, name: str = "x") -> Repetition:
    a = np.array([0.1, 0.2, 0.3])
    return Repetition(kind, name, "2024-01-01", "2024-02-01", paired_effect(a, a + gain))


def test_a_seed_that_loses_objects_and_so_do_too_few() -> None:
    enough = Stability((run("seed", 0.1), run("seed", 0.1), run("window", 0.1)), 2, 1)
    assert enough.objections == ()
    for gain in (-0.1, 0.0):
        lost = Stability((run("seed", 0.1), run("seed", gain, "seed 4"), run("window", 0.1)), 2, 1)
        assert lost.objections == ("it is not positive with seed 4",)
    few = Stability((run("seed", 0.1), run("window", 0.1)), 3, 1)
    assert few.objections == few.shortfall == ("1 of 3 seeds were run (recsys compare --rerun)",)


@pytest.mark.parametrize("gains, is_fine", [((1, 1, -1), True), ((1, -1, -1), False), ((1, 1), True), ((1, 0), False)])
def test_two_thirds_of_the_windows_must_be_positive(gains: tuple[float, ...], is_fine: bool) -> None:
    stability = Stability(tuple(run("window", gain) for gain in gains), 0, 1)
    assert (stability.objections == ()) is is_fine


def test_parts_of_the_window_speak_only_where_no_other_window_was_run() -> None:
    parts = tuple(run("part", gain) for gain in (-1, -1, 1))
    assert "1 of 3 parts" in Stability(parts).objections[0]
    assert Stability((run("window", 1), run("window", 1), *parts)).objections == ()


def test_parts_are_silent_where_windows_will_be_run() -> None:
    """Else nothing would be run again: only missing runs may stand between an arm and its promotion."""
    parts = tuple(run("part", gain) for gain in (-1, -1, 1))
    awaiting = Stability((run("seed", 1), run("window", 1), *parts), 3, 3)
    assert awaiting.objections == awaiting.shortfall != ()


@pytest.fixture
def shop() -> tuple[pd.DataFrame, pd.DataFrame, Arm, Arm]:
    """B wins for the labels of the last third of the window alone, by far; A for the others, by little."""
    n = 300
    events = pd.DataFrame({"user_id": np.arange(n), "item_id": 0})
    events["timestamp"] = START + pd.to_timedelta(np.arange(n) / 10, "D")
    items = pd.DataFrame({"item_id": np.arange(12), "title": "x"})
    place_a, place_b = np.full(n, 3), np.where(np.arange(n) < 200, 4, 0)

    def arm(name: str, place: np.ndarray) -> Arm:
        ranked = np.stack([np.insert(np.arange(1, 10), p, 0) for p in place])
        users = np.repeat(np.arange(n), 10)
        ranks = np.tile(np.arange(1, 11), n)
        return Arm(name, pd.DataFrame({"user_id": users, "item_id": ranked.ravel(), "rank": ranks}))

    return events, items, arm("A", place_a), arm("B", place_b)


def test_a_gain_of_one_third_of_the_window_holds(shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm]) -> None:
    events, items, a, b = shop
    report = compare(a, b, events, items, ReportConfig(), test_start=START, test_end=END, now=END)
    parts = report.stability.of("part")
    assert [part.effect.n for part in parts] == [100, 100, 100]
    assert [part.effect.diff > 0 for part in parts] == [False, False, True]
    assert report.relevance[0].effect.low > 0
    assert report.verdict == "HOLD"
    assert "1 of 3 parts of the window" in report.reason


def test_a_part_of_few_users_counts_like_the_others(shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm]) -> None:
    events, items, a, b = shop
    window = {"test_start": START, "test_end": END, "now": END}
    few = events[(events["user_id"] >= 200) | (events["user_id"] % 100 < 50)]
    report = compare(a, b, few, items, ReportConfig(), **window)  # type: ignore[arg-type]
    assert [part.effect.n for part in report.stability.of("part")] == [50, 50, 100]
    assert (report.verdict, "1 of 3 parts of the window" in report.reason) == ("HOLD", True)


def test_parts_are_judged_by_their_own_labels_and_none_of_weight_0(
    shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm],
) -> None:
    """Each part of the window alone gives what its labels alone give; labels of weight 0 change nothing.

    Users take item 0 in one part and item 5 in the next, or in the first after the last.
    """
    events, items, a, b = shop
    later = events.assign(item_id=5, timestamp=events["timestamp"].to_numpy()[np.arange(100, 400) % 300])
    events = pd.concat([events, later]).sort_values("timestamp", kind="stable")
    window = {"test_start": START, "test_end": END, "now": END}
    parts = compare(a, b, events, items, ReportConfig(), **window).stability.of("part")  # type: ignore[arg-type]
    for number, part in enumerate(parts):
        alone = on_lists(
            "seed", "x", (a, b), events.iloc[200 * number : 200 * (number + 1)], items, (START, END), 10, ReportConfig()
        )
        assert part.effect == alone.effect
        assert part.effect.n == 200
    more = pd.concat([events.assign(weight=1.0), events.assign(item_id=7, weight=0.0)])
    again = compare(a, b, more, items, ReportConfig(), **window).stability.of("part")  # type: ignore[arg-type]
    assert [part.effect for part in again] == [part.effect for part in parts]


def test_a_version_waits_for_its_seeds_and_windows(shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm]) -> None:
    events, items, a, b = shop
    needs = {"test_start": START, "test_end": END, "now": END, "min_seeds": 2, "min_windows": 2}
    waiting = compare(a, b, events.iloc[200:], items, ReportConfig(), **needs)  # type: ignore[arg-type]
    assert (waiting.verdict, waiting.awaits_runs) == ("HOLD", True)
    good = (run("seed", 0.1), run("window", 0.1))
    done = compare(a, b, events.iloc[200:], items, ReportConfig(), reruns=good, **needs)  # type: ignore[arg-type]
    assert (done.verdict, done.awaits_runs) == ("PROMOTE", False)
    bad = (run("seed", -0.1, "seed 1"), run("window", 0.1))
    held = compare(a, b, events.iloc[200:], items, ReportConfig(), reruns=bad, **needs)  # type: ignore[arg-type]
    assert (held.verdict, held.awaits_runs) == ("HOLD", False)


def test_lists_made_another_way_are_judged_by_their_own_labels(
    shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm],
) -> None:
    events, items, a, b = shop
    found = on_lists("seed", "seed 1", (a, b), events, items, (START, END), 10, ReportConfig())
    whole = compare(a, b, events, items, ReportConfig(), test_start=START, test_end=END, now=END).relevance[0].effect
    assert found.effect == whole


def test_lists_that_hit_nothing_have_parts_too(shop: tuple[pd.DataFrame, pd.DataFrame, Arm, Arm]) -> None:
    events, items, a, _ = shop
    missed = Arm("A", a.table[a.table["item_id"] != 0].assign(rank=lambda t: t.groupby("user_id").cumcount() + 1))
    report = compare(missed, missed, events, items, ReportConfig(), test_start=START, test_end=END, now=END)
    assert [part.effect.a for part in report.stability.of("part")] == [0, 0, 0]

from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.config import FloorsConfig, ReportConfig
from serving.report.compare import compare
from serving.report.guardrails import SMOOTHING, Guardrail, word_vectors
from serving.report.world import Arm, Cost

DAY = pd.Timestamp("2024-03-01", tz="UTC")
ITEMS = pd.DataFrame(
    {
        "item_id": [1, 2, 3, 4],
        "title": ["green tea", "black tea", "oil paint", "red bike"],
        "category": ["tea", "tea", "paint", "bike"],
    }
)
HISTORY = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 3]})
EVENTS = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 4]})


def table(rows: dict[int, list[int]]) -> pd.DataFrame:
    long = [(user, item, rank) for user, items in rows.items() for rank, item in enumerate(items, 1)]
    return pd.DataFrame(long, columns=["user_id", "item_id", "rank"])


def found(a: Arm, b: Arm, **changes: Any) -> dict[str, Guardrail]:
    arguments = {"test_start": DAY, "test_end": DAY, "now": DAY, "k": 2, "history": HISTORY, **changes}
    config = arguments.pop("config", ReportConfig())
    return {row.metric: row for row in compare(a, b, EVENTS, ITEMS, config, **arguments).guardrails}


@pytest.fixture(scope="module")
def rows() -> dict[str, Guardrail]:
    a, b = Arm("A", table({1: [1, 2], 2: [1, 3]})), Arm("B", table({1: [3, 4], 2: [2, 4]}))
    return found(a, b)


def test_diversity_is_one_less_the_mean_cosine_of_pairs(rows: dict[str, Guardrail]) -> None:
    vectors = word_vectors(["green tea tea green", *(ITEMS["title"] + " " + ITEMS["category"])])[1:].toarray()
    texts = [f"{title}. {category}" for title, category in zip(ITEMS["title"], ITEMS["category"], strict=True)]
    vectors = word_vectors(texts).toarray()
    by_hand = [1 - vectors[i] @ vectors[j] for i, j in ((0, 1), (0, 2))]
    assert rows["Intra-list diversity"].a == pytest.approx(np.mean(by_hand))
    assert rows["Intra-list diversity"].b == pytest.approx(1)


def test_miscalibration_is_the_divergence_from_the_history(rows: dict[str, Guardrail]) -> None:
    def divergence(taste: dict[str, float], shown: dict[str, float]) -> float:
        mixed = {g: (1 - SMOOTHING) * shown.get(g, 0) + SMOOTHING * p for g, p in taste.items()}
        return sum(p * np.log(p / mixed[g]) for g, p in taste.items())

    first, second = {"tea": 1.0}, {"tea": 0.5, "paint": 0.5}
    assert rows["Miscalibration (nats)"].a == pytest.approx(
        (divergence(first, {"tea": 1}) + divergence(second, {"tea": 0.5, "paint": 0.5})) / 2, abs=1e-12
    )
    assert rows["Miscalibration (nats)"].b == pytest.approx(
        (divergence(first, {"paint": 0.5, "bike": 0.5}) + divergence(second, {"tea": 0.5, "bike": 0.5})) / 2
    )
    assert not rows["Miscalibration (nats)"].is_higher_better


def test_serendipity_counts_hits_that_popularity_does_not_show(rows: dict[str, Guardrail]) -> None:
    # popular and not yet taken: 3 for user 1, 2 for user 2; so of B's three hits one was to be expected
    assert rows["Serendipity"].a == 0
    assert rows["Serendipity"].b == pytest.approx((1 / 2 + 1 / 1) / 2)


def test_cold_items_and_novelty_follow_the_history(rows: dict[str, Guardrail]) -> None:
    assert rows["Share of cold items"].b == pytest.approx(0.5)
    surprise = -np.log2(np.array([3, 2, 2, 1]) / 8)
    assert rows["Novelty (bits)"].a == pytest.approx(np.mean([surprise[[0, 1]].mean(), surprise[[0, 2]].mean()]))


def test_fewer_items_shown_are_less_coverage_and_more_inequality() -> None:
    wide, narrow = Arm("A", table({1: [1, 2], 2: [3, 4]})), Arm("B", table({1: [1, 2], 2: [1, 2]}))
    there, back = found(wide, narrow), found(narrow, wide)
    coverage, gini = there["Catalogue coverage"], there["Exposure Gini"]
    assert (coverage.a, coverage.b, coverage.diff, coverage.relative) == (1, 0.5, -0.5, -0.5)
    assert (gini.a, gini.b, gini.diff) == (0, 0.5, 0.5)  # counts 1, 1, 1, 1 and 0, 0, 2, 2
    assert coverage.judged.is_harmed
    assert gini.judged.is_harmed
    assert back["Catalogue coverage"].judged.is_non_inferior
    assert back["Exposure Gini"].judged.is_non_inferior


@pytest.mark.parametrize(("a", "is_higher_better", "can_fall"), [(0, True, False), (1, True, True), (0, False, True)])
def test_only_what_is_at_its_floor_cannot_get_worse(a: float, is_higher_better: bool, can_fall: bool) -> None:
    row = Guardrail("share", {}, a, a, 0.0, 0.0, -0.2, 0.1, 0.0, is_higher_better)
    assert row.judged.can_fall == can_fall
    assert (row.judged.low, row.judged.high) == ((-0.2, 0.1) if is_higher_better else (-0.1, 0.2))


def test_words_that_are_everywhere_count_less() -> None:
    vectors = word_vectors(["tea green", "tea black", "tea"]).toarray()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0] @ vectors[1] < 0.5
    assert word_vectors(["", "a"]).sum() == 0


def test_margins_are_relative_and_never_under_their_floor() -> None:
    a = Arm("A", table({1: [1, 2], 2: [1, 3]}))
    floors = FloorsConfig(novelty=0.0, cold=0.3)
    rows = found(a, a, config=ReportConfig(guardrail_margin=0.5, guardrail_floors=floors))
    assert rows["Novelty (bits)"].margin == pytest.approx(0.5 * rows["Novelty (bits)"].a)
    assert rows["Share of cold items"].margin == 0.3


def test_scoring_cost_is_judged_where_both_arms_know_it() -> None:
    lists = table({1: [1, 2], 2: [1, 3]})
    slow, quick = (Arm("A", lists, cost=Cost(ms_per_user=ms)) for ms in (30.0, 3.0))
    assert found(quick, slow)["Scoring (ms a user)"].judged.is_harmed
    assert found(slow, quick)["Scoring (ms a user)"].judged.is_non_inferior
    assert "Scoring (ms a user)" not in found(quick, Arm("B", lists))


def test_an_even_exposure_and_a_tiny_cold_share_do_not_block_a_planted_winner() -> None:
    """A's lists turn evenly over all items, so its Gini is near 0; B finds every label, and so shows them unevenly."""
    n_users, n_items, k = 600, 60, 10
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_items, n_users)
    even = (np.arange(n_users)[:, None] + np.arange(k)) % n_items
    better = even.copy()
    is_in = (even == labels[:, None]).any(1)
    better[~is_in, -1] = labels[~is_in]
    events = pd.DataFrame({"user_id": np.arange(n_users), "item_id": labels})
    history = pd.DataFrame({"user_id": np.arange(n_users), "item_id": np.arange(n_users) % (n_items - 1)})
    items = pd.DataFrame({"item_id": np.arange(n_items), "title": [f"thing {i}" for i in range(n_items)]})
    arms = [Arm(name, table(dict(enumerate(ranked.tolist())))) for name, ranked in (("A", even), ("B", better))]
    report = compare(
        arms[0], arms[1], events, items, ReportConfig(), test_start=DAY, test_end=DAY, now=DAY, history=history
    )
    rows = {row.metric: row for row in report.guardrails}
    assert rows["Exposure Gini"].a == 0
    assert rows["Exposure Gini"].low > 0
    assert report.verdict == "PROMOTE", report.reason


def test_what_can_be_measured_of_nobody_stands_in_nobodys_way() -> None:
    one = found(Arm("A", table({1: [1], 2: [1]})), Arm("B", table({1: [3], 2: [2]})), k=1)
    assert "Intra-list diversity" not in one
    assert "Catalogue coverage" in one

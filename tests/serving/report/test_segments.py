from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from recsys.config import ReportConfig
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.measures import Lists
from serving.report.segments import Segment, _on_items
from serving.report.world import Arm, World

START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-08", tz="UTC")
N = 240


@pytest.fixture(scope="module")
def report() -> Report:
    """Each user takes the item of their number mod 6; A always has it second, B first for items 0 and 1 alone."""
    item = np.arange(N) % 6
    events = pd.DataFrame({"user_id": np.arange(N), "item_id": item, "timestamp": START})
    items = pd.DataFrame(
        {
            "item_id": np.arange(7),
            "title": ["one", "two words", "three little words", "x", "y", "z", "never"],
            "category": ["a", "a", "b", "b", "", None, "c"],
            "language": ["en", "fr", "en", "fr", "en", "fr", "en"],
            "description": ["", "", "", "word " * 20, "", "", ""],
        }
    )
    ages = pd.Series([10, 50, 200, 500]).repeat(N // 4).to_numpy()
    history = pd.DataFrame({"user_id": np.arange(N), "item_id": 6, "timestamp": START - pd.to_timedelta(ages, "D")})
    other = (item + 1) % 6
    first, second = np.where(item < 2, item, other), np.where(item < 2, other, item)

    def arm(name: str, top: np.ndarray, next_: np.ndarray) -> Arm:
        users = np.tile(np.arange(N), 2)
        return Arm(
            name,
            pd.DataFrame({"user_id": users, "item_id": np.r_[top, next_], "rank": np.repeat([1, 2], N)}),
        )

    users = pd.DataFrame(
        {
            "user_id": np.arange(N),
            "age": np.arange(N) / 3,
            "plan": np.where(np.arange(N) % 2, "free", "paid"),
            "comment": [f"no {i}" for i in range(N)],
            "interests": [["tea", "bikes"]] * N,
        }
    )
    config = ReportConfig(min_segment_users=30)
    return compare(
        arm("A", other, item), arm("B", first, second), events, items, config,
        test_start=START, test_end=END, now=END, k=2, users=users, history=history,
    )  # fmt: skip


def test_every_kind_of_group_is_there_and_free_text_is_not(report: Report) -> None:
    kinds = {segment.kind for segment in report.segments}
    assert kinds == {"history", "tenure", "age", "plan", "items", "category", "language", "text"}


def test_groups_count_their_users(report: Report) -> None:
    found = {(s.kind, s.name): s.n for s in report.segments}
    assert [found["tenure", name] for name in ("under 30 days", "90-364 days", "a year and more")] == [60, 60, 60]
    assert [s.n for s in report.segments if s.kind == "age"] == [60, 60, 60, 60]
    assert (found["plan", "free"], found["plan", "paid"]) == (120, 120)
    assert (found["category", "a"], found["category", "b"]) == (80, 80)
    assert (found["language", "en"], found["language", "fr"]) == (120, 120)
    assert (found["text", "1-4 words"], found["text", "15+ words"]) == (200, 40)


def test_an_effect_on_items_counts_only_their_labels(report: Report) -> None:
    found: dict[tuple[str, str], Segment] = {(s.kind, s.name): s for s in report.segments}
    gain, none = found["category", "a"].effect, found["category", "b"].effect
    assert gain is not None
    assert none is not None
    assert gain.diff == pytest.approx(1 - 1 / np.log2(3))
    assert (none.diff, none.p) == (0, 1)


def test_on_some_items_hits_of_other_labels_and_users_without_a_label_do_not_count() -> None:
    """User 0 took items 0 and 2, user 1 item 2; item 0 alone counts."""
    world = cast(World, SimpleNamespace(relevant=sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 1]]))))
    a, b = (
        cast(Lists, SimpleNamespace(ranked=np.array([top, [2, 1]]), hits=np.array([[True, True], [True, False]])))
        for top in ([2, 0], [0, 2])
    )
    in_a, in_b = _on_items(world, a, b, np.array([True, False, False]), 2)
    assert (in_a.tolist(), in_b.tolist()) == ([pytest.approx(1 / np.log2(3))], [1])


def test_adjusted_p_values_are_never_below_the_raw_ones(report: Report) -> None:
    judged = [(s.p_adjusted, s.effect.p) for s in report.segments if s.effect]
    assert all(adjusted >= p - 1e-12 for adjusted, p in judged)


def test_a_column_that_bears_the_name_of_a_protected_group_is_not_protected() -> None:
    """B loses in every group: only the divisions by what was bought before may reject it for that."""
    labels = pd.DataFrame({"user_id": np.arange(N), "item_id": np.arange(N) % 6, "timestamp": START})
    items = pd.DataFrame({"item_id": np.arange(7), "title": "x"})
    past = pd.DataFrame({"user_id": np.arange(N), "item_id": 6, "timestamp": START - pd.Timedelta(days=9)})
    hit, miss = (Arm(name, labels.assign(item_id=top, rank=1)) for name, top in (("A", labels["item_id"]), ("B", 6)))
    halves = np.where(np.arange(N) % 2, "0", "tail")
    users = pd.DataFrame({"user_id": np.arange(N), "history": halves, "items": halves, "plan": halves})
    config = ReportConfig(min_segment_users=30)
    arguments = {"test_start": START, "test_end": END, "now": END, "k": 1, "history": past, "users": users}
    found = compare(hit, miss, labels, items, config, **arguments).segments  # type: ignore[arg-type]
    assert {(s.kind, s.name) for s in found if s.is_protected} == {("history", "0"), ("items", "tail")}
    told = [(s.kind, s.name, s.n) for s in found if s.name in {"0", "tail"}]
    for kind in ("users.history", "users.items", "plan"):
        assert {(kind, "0", N // 2), (kind, "tail", N // 2)} <= set(told)
    assert [n for kind, name, n in told if (kind, name) == ("history", "0")] == [0]

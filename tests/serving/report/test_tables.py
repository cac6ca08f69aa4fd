"""`compare` on tables as notebooks hold them: the same report, whatever the types."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.config import ReportConfig
from recsys.errors import ConfigError, DataError
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.world import Arm

N = 40
START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-08", tz="UTC")


def tables() -> dict[str, Any]:
    """Each user takes the item of their own number; arm b lists it first for two of three, arm a for none."""
    users = np.arange(N)
    ranked = (users[:, None] + np.where(users % 3 == 0, 2, 0)[:, None] + np.arange(5)) % N
    lists = [
        pd.DataFrame({"user_id": np.repeat(users, 5), "item_id": items.ravel(), "rank": np.tile(range(1, 6), N)})
        for items in ((ranked + 1) % N, ranked)
    ]
    items = pd.DataFrame({"item_id": users, "title": [f"Thing {n}" for n in users], "category": users % 3})
    return {
        "a": Arm("a", lists[0]),
        "b": Arm("b", lists[1]),
        "events": pd.DataFrame({"user_id": users, "item_id": users, "timestamp": START + pd.Timedelta(days=1)}),
        "items": items.assign(created_at=START - pd.Timedelta(days=9)),
        "history": pd.DataFrame({"user_id": users, "item_id": users[::-1], "timestamp": START - pd.Timedelta(days=3)}),
        "users": pd.DataFrame({"user_id": users, "plan": users % 2}),
        "config": ReportConfig(min_segment_users=2),
        "test_start": START,
        "test_end": END,
        "now": END,
        "k": 5,
    }


def told(report: Report) -> str:
    """What a report found; nan is not nan, so as text."""
    checks = [(check.name, check.status) for check in report.checks]
    return repr((report.verdict, checks, report.relevance, report.guardrails, report.segments))


def with_ids(given: dict[str, Any], change: Callable[[pd.DataFrame], pd.DataFrame]) -> dict[str, Any]:
    frames = {name: change(table) for name, table in given.items() if isinstance(table, pd.DataFrame)}
    arms = {name: Arm(name, change(given[name].table)) for name in ("a", "b")}
    return given | frames | arms


def as_kind(kind: str | type[object]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.astype({c: kind for c in ("user_id", "item_id") if c in table})


@pytest.mark.parametrize("kind", ["category", object])
def test_integers_in_categories_or_objects_are_integers(kind: str | type[object]) -> None:
    given = tables()
    change = as_kind(kind)
    assert told(compare(**with_ids(given, change))) == told(compare(**given))
    assert told(compare(**given | {"a": Arm("a", change(given["a"].table))})) == told(compare(**given))


def test_floats_are_called_what_they_are() -> None:
    given = tables()
    with pytest.raises(DataError, match=r"user_id: .*arm 'a' holds floating-point numbers, arm 'b' holds integers"):
        compare(**given | {"a": Arm("a", as_kind("float64")(given["a"].table))})


def test_categories_of_texts_may_have_gaps_and_miss_an_item() -> None:
    given = tables()
    items = given["items"].astype({"category": "str"})[1:]
    items = items.assign(
        title=items["title"].mask(items["item_id"] == 2), category=items["category"].mask(items["item_id"] == 3)
    )
    kinds = {"title": "category", "category": "category"}
    assert told(compare(**given | {"items": items.astype(kinds)})) == told(compare(**given | {"items": items}))


def test_columns_named_by_numbers_are_carried() -> None:
    given = tables()
    named = {name: given[name].assign(**{"0": 1.0}).rename(columns={"0": 0}) for name in ("events", "items", "history")}
    users = given["users"].rename(columns={"plan": 0})
    report = compare(**given | named | {"users": users})
    assert "0" in {segment.kind for segment in report.segments}


def without_zone(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{c: table[c].dt.tz_localize(None) for c in ("timestamp", "created_at") if c in table})


def test_moments_may_have_no_zone_or_be_texts_or_dates() -> None:
    given = tables()
    naive = {name: without_zone(given[name]) for name in ("events", "items", "history")}
    dated = {"a": Arm("a", given["a"].table, info={"trained_until": "2024-03-01"})}
    expected = told(compare(**given | dated))
    texts = {"events": given["events"].astype({"timestamp": str}), "items": naive["items"].astype({"created_at": str})}
    windows: list[dict[str, Any]] = [
        {},
        {"test_start": START.tz_localize(None), "test_end": END.tz_localize(None)},
        {"test_start": "2024-03-01", "test_end": END.date(), "now": "2024-03-08"},
    ]
    for window in windows:
        for changed in ({}, naive, texts, {"history": naive["history"]}):
            report = compare(**given | dated | changed | window)
            assert told(report) == expected
            assert report.header.test_start == "2024-03-01T00:00:00+00:00"


def test_what_is_no_moment_is_refused_or_outside_the_window() -> None:
    given = tables()
    with pytest.raises(ConfigError, match="test_end: '8 March' is no date or moment"):
        compare(**given | {"test_end": "8 March"})
    with pytest.raises(DataError, match="history: timestamp holds numbers"):
        compare(**given | {"history": given["history"].assign(timestamp=1.5)})
    events = given["events"].astype({"timestamp": str})
    events.loc[0, "timestamp"] = "yesterday"
    failed = [check.detail for check in compare(**given | {"events": events}).checks if check.status == "fail"]
    assert failed[0].startswith("1 labels outside the window")


@pytest.mark.parametrize("kind", ["Int64", "object", "category"])
def test_labels_without_an_id_are_left_out_and_counted(kind: str) -> None:
    given = tables()
    nobody = pd.DataFrame({"user_id": [1, None], "item_id": [None, 2], "timestamp": START}, dtype=object)
    events = pd.concat([given["events"].astype(object), nobody], ignore_index=True)
    events = as_kind(kind)(events.astype({"timestamp": "datetime64[us, UTC]"}))
    report, plain = compare(**given | {"events": events}), compare(**given)
    assert told(report) == told(plain)
    assert set(report.limits) - set(plain.limits) == {"2 labels without a user_id or item_id were left out."}


class Model:
    """Recommends what a table holds."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self.asked: list[tuple[list[object], int]] = []

    def recommend(self, users: list[object], k: int = 10) -> pd.DataFrame:
        self.asked.append((users, k))
        return self.table


def test_a_table_or_what_recommends_one_is_an_arm() -> None:
    given = tables()
    model = Model(given["b"].table)
    report = compare(**given | {"a": given["a"].table, "b": model})
    assert told(report) == told(compare(**given))
    assert (report.header.a.name, report.header.b.name) == ("a", "b")
    assert model.asked == [(list(range(N)), 50)]


def test_a_table_of_scores_alone_is_ranked_by_them() -> None:
    given = tables()
    scores = given["b"].table.assign(score=lambda table: 1 / table["rank"]).drop(columns="rank")
    for arm in (Arm("b", scores), scores.sample(frac=1, random_state=0), Model(scores)):
        report = compare(**given | {"b": arm})
        assert told(report) == told(compare(**given))
    assert repr(report) == f"Report({report.verdict}: {report.reason} The page: write(folder))"


def test_what_is_no_arm_is_refused_with_the_way_to_make_one() -> None:
    given = tables()
    for none in ([1, 2], Model, Model(None)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"b: .* is no arm; give Arm\(name, table\)"):
            compare(**given | {"b": none})
    with pytest.raises(DataError, match="events: column 'user_id' is missing; found 'item_id', 'timestamp'; rename"):
        compare(**given | {"b": Model(given["b"].table), "events": given["events"].drop(columns="user_id")})


def test_moments_that_an_arm_tells_are_written(tmp_path: Path) -> None:
    given = tables()
    compare(**given | {"a": Arm("a", given["a"].table, info={"trained_until": START})}).write(tmp_path)  # type: ignore[dict-item]
    assert json.loads((tmp_path / "report.json").read_text())["header"]["a"]["info"]["trained_until"] == str(START)

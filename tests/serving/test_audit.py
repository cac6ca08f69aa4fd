import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.caps import Cap
from features.dataset import Dataset
from recsys.config import AuditConfig
from recsys.errors import AuditError
from serving import releases
from serving.audit import AuditContext, LastRelease, audit, refuse_old_data
from serving.batch import _last_release
from serving.publish import ReleaseStore


def table(**columns: object) -> pa.Table:
    """Ten users, two items each."""
    user = np.repeat(np.arange(10), 2)
    base = {
        "user_id": user,
        "item_id": (user + np.tile([0, 1], 10)) % 12,
        "rank": np.tile([1, 2], 10),
        "score": np.tile([2.0, 1.0], 10),
        "p": pa.array([0.2, None] * 10, pa.float32()),
        "source": ["text"] * 20,
    }
    return pa.table(base | columns)


CONTEXT = AuditContext(10, 2, pa.array(range(12)), None, 1.0, 1.0, AuditConfig(max_gini=0.9))


def served(last: pa.Table | None) -> LastRelease | None:
    return None if last is None else LastRelease(last.num_rows, lambda _: last)


def failed(found: pa.Table, context: AuditContext = CONTEXT) -> list[str]:
    return [gate.name for gate in audit([found], context).failed]


def test_sound_lists_pass() -> None:
    assert failed(table()) == []


@pytest.mark.parametrize(
    ("columns", "gate"),
    [
        ({"score": np.tile([2.0, np.nan], 10)}, "scores not finite"),
        ({"score": np.tile([1.0, 2.0], 10)}, "scores out of order"),
        ({"score": np.ones(20)}, "spread of scores"),
        ({"item_id": np.repeat(np.arange(10), 2)}, "item twice in a list"),
        ({"item_id": np.arange(20)}, "items that may not be shown"),
        ({"source": ["popular"] * 20}, "users served a popularity list, share"),
        ({"source": ["recent", "popular"] + ["text"] * 18}, "users served a popularity list, share"),
        ({"score": pa.array([None] * 20, pa.float32())}, "scores not finite"),
        ({"score": np.tile([np.inf, 1.0], 10)}, "scores not finite"),
        ({"score": np.repeat(np.arange(10.0), 2)}, "lists with one score, share"),
        ({"rank": np.tile([1, 1], 10)}, "ranks out of order"),
        ({"rank": np.tile([0, 1], 10)}, "ranks out of order"),
        ({"user_id": np.tile(np.arange(10), 2), "item_id": np.repeat([0, 1], 10)}, "ranks out of order"),
        ({"user_id": pa.array([None] + [0] * 19)}, "rows without an id"),
        ({"item_id": pa.array([None] + [0] * 19)}, "rows without an id"),
        ({"user_id": np.repeat([0, 1], 10)}, "longest list"),
        ({"item_id": np.zeros(20, int)}, "exposure Gini"),
        ({"p": np.tile([1.1, 0.5], 10)}, "p outside 0 to 1"),
        ({"p": np.tile([0.5, -0.1], 10)}, "p outside 0 to 1"),
        ({"p": pa.array([np.nan] * 20, from_pandas=False)}, "p outside 0 to 1"),
        ({"p": np.tile([0.1, 0.2], 10)}, "p out of order"),
    ],
)
def test_a_broken_list_fails_the_gate_made_for_it(columns: dict[str, object], gate: str) -> None:
    assert gate in failed(table(**columns))


def test_one_too_many_of_a_kind_is_refused_and_lists_that_caps_keep_short_are_not() -> None:
    halves, each = np.repeat([0, 1], 6), np.where(np.arange(12) < 11, np.arange(12), -1)
    context = replace(CONTEXT, caps=(Cap("category", halves, 1),))
    result = audit([table()], context)  # user 5 has one item of each half, the others both of one
    assert [gate.name for gate in result.failed] == ["too many of a kind in a list"]
    assert [gate.number for gate in result.failed] == [9]
    assert failed(table(), replace(CONTEXT, caps=(Cap("category", halves, 2), Cap("brand", each, 1)))) == []
    short = table(score=np.arange(20.0, 0, -1)).take(np.arange(0, 20, 2))
    assert "short lists, share" in failed(short)
    assert failed(short, replace(CONTEXT, length=1, caps=(Cap("category", np.zeros(12, int), 1),))) == []


def test_missing_users_short_lists_and_old_data_are_refused_with_number_and_remedy() -> None:
    context = replace(CONTEXT, eligible_users=20, k=3, data_age_hours=100.0)
    result = audit([table()], context)
    with pytest.raises(
        AuditError, match=r"(?s)users covered: 0.5, limit >= 0.995; .*short lists.*newest event, hours: 100"
    ):
        result.raise_if_refused()


def test_a_changed_row_count_and_no_overlap_are_refused() -> None:
    last = table(item_id=(np.arange(20) + 5) % 12).slice(0, 10)
    assert failed(table(), replace(CONTEXT, last_release=served(last))) == [
        "rows against last release",
        "overlap with last release",
    ]


def test_an_ageing_model_warns_before_it_fails() -> None:
    aging = audit([table()], replace(CONTEXT, model_age_days=20.0))
    assert [g.name for g in aging.warnings] == ["model age, days"]
    assert (
        aging.growing == "model age, days: 20, limit 14 warns, 30 fails; recsys train, then recsys promote challenger"
    )
    assert failed(table(), replace(CONTEXT, model_age_days=31.0)) == ["model age, days"]


def number(found: pa.Table, context: AuditContext, name: str) -> tuple[float, str]:
    (gate,) = [g for g in audit([found], context).gates if g.name == name]
    return gate.number, gate.outcome


def test_numbers_are_those_worked_out_by_hand() -> None:
    found = table(source=["popular", "text"] * 9 + ["popular", "recent"])
    # user u has items u and u + 1: items 0 to 10 of 12; only the last user has no source of their own
    assert number(found, CONTEXT, "catalogue coverage") == (11 / 12, "pass")
    assert number(found, CONTEXT, "users served a popularity list, share") == (0.1, "fail")
    # yesterday each of users 0 to 4 had items u + 1 and u + 2, so one of two is kept; the others had no list
    last = pa.table({"user_id": np.repeat(np.arange(5), 2), "item_id": np.arange(10) // 2 + np.tile([1, 2], 5)})
    context = replace(CONTEXT, last_release=served(last))
    assert number(table(), context, "overlap with last release") == (0.5, "pass")
    assert number(table(), context, "rows against last release") == (1.0, "fail")


def test_lists_of_one_item_are_not_flat() -> None:
    found = table(score=np.r_[np.tile([2.0, 1.0], 9), 1, 1])
    some = found.filter(pa.array((np.arange(20) % 2 == 0) | (np.arange(20) >= 16)))  # of two lists of two, one is flat
    assert number(some, CONTEXT, "lists with one score, share") == (0.5, "pass")


def test_a_number_at_its_limit_passes() -> None:
    found = table(source=["popular", "text"] * 9 + ["popular", "recent"])
    context = replace(CONTEXT, last_release=served(table(item_id=np.arange(20) % 12).slice(0, 18)), eligible_users=11)
    number_of = {gate.name: gate.number for gate in audit([found], context).gates}
    limits = AuditConfig(
        min_users_covered=number_of["users covered"],
        min_coverage=number_of["catalogue coverage"],
        max_gini=number_of["exposure Gini"],
        max_fallback_share=number_of["users served a popularity list, share"],
        max_rows_change=number_of["rows against last release"],
        min_overlap=number_of["overlap with last release"],
        max_overlap=number_of["overlap with last release"],
        model_warn_days=1,
        data_warn_hours=1,
    )
    assert {gate.outcome for gate in audit([found], replace(context, config=limits)).gates} == {"pass"}
    newest = audit([found], replace(context, config=limits, model_age_days=0.0, data_age_hours=72.0))
    assert [(gate.name, gate.outcome) for gate in newest.gates if gate.outcome != "pass"] == [
        ("newest event, hours", "warn")
    ]


def test_unchanged_lists_warn_and_strangers_are_refused() -> None:
    same = replace(CONTEXT, last_release=served(table()))
    assert number(table(), same, "overlap with last release") == (1.0, "warn")
    strangers = replace(CONTEXT, last_release=served(table(user_id=np.repeat(np.arange(10), 2) + 100)))
    assert number(table(), strangers, "overlap with last release") == (0.0, "fail")


def test_without_a_last_release_nothing_is_compared() -> None:
    names = {
        g.name
        for last in (None, table().slice(0, 0))
        for g in audit([table()], replace(CONTEXT, last_release=served(last))).gates
    }
    assert not {n for n in names if "last release" in n}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_ids_of_any_type_are_judged_alike(kind: pa.DataType) -> None:
    huge = 2**53 + np.arange(12)  # through float, neighbours would be one
    text = table(item_id=pa.array(huge.take(table()["item_id"].to_numpy()).astype(str), pa.string()))
    whole = table(item_id=huge.take(table()["item_id"].to_numpy()))
    context = replace(CONTEXT, catalogue=pa.array(huge.astype(str), kind), last_release=served(text))
    assert number(text, context, "overlap with last release") == (1.0, "warn")
    assert failed(text, context) == []
    as_numbers = replace(CONTEXT, catalogue=pa.array(huge), last_release=served(text))
    assert failed(whole, as_numbers) == []
    assert number(whole, as_numbers, "overlap with last release") == (1.0, "warn")


def test_parts_are_judged_as_the_whole() -> None:
    found, last = table(source=["popular", "text"] * 9 + ["popular", "recent"]), table().slice(4)
    context = replace(CONTEXT, last_release=served(last))
    assert audit([found[:6], found[6:8], found[8:]], context) == audit([found], context)


def test_a_user_in_two_parts_and_parts_out_of_order_are_refused() -> None:
    found = table()
    assert "ranks out of order" in [g.name for g in audit([found[:5], found[5:]], CONTEXT).failed]
    assert [g.name for g in audit([found[10:], found[:10]], CONTEXT).failed] == ["ranks out of order"]


def test_an_empty_table_is_refused_with_words() -> None:
    empty = table().slice(0, 0)
    assert {"users covered", "spread of scores", "users served a popularity list, share"} <= set(failed(empty))


def test_an_unknown_age_is_refused_and_a_model_from_the_future_warns() -> None:
    assert failed(table(), replace(CONTEXT, data_age_hours=float("nan"))) == ["newest event, hours"]
    (warning,) = audit([table()], replace(CONTEXT, model_age_days=-3.0)).warnings
    assert (warning.name, warning.number) == ("model age, days", -3.0)
    assert "--as-of" in warning.remedy


def test_a_million_rows_take_seconds() -> None:
    n_users, k = 50_000, 20
    user = np.repeat(np.arange(n_users), k)
    found = pa.table(
        {
            "user_id": user,
            "item_id": (user * 7 + np.tile(np.arange(k), n_users)) % 5000,
            "rank": np.tile(np.arange(1, k + 1), n_users),
            "score": np.tile(np.arange(k, 0, -1.0), n_users),
            "p": pa.nulls(n_users * k, pa.float32()),
            "source": pa.array(["text"]).take(pa.array(np.zeros(n_users * k, int))),
        }
    )
    began = time.process_time()
    assert failed(found, AuditContext(n_users, k, pa.array(range(5000)), served(found), 1.0, 1.0, AuditConfig())) == []
    assert time.process_time() - began < 10  # about 1.5 on an idle core; a loop over users takes minutes


def test_where_nearly_all_is_taken_already_short_lists_are_no_fault() -> None:
    small = replace(CONTEXT, k=20)
    assert "short lists, share" in failed(table(), small)
    assert "short lists, share" not in failed(table(), replace(small, length=2))
    assert "short lists, share" in failed(table(), replace(small, length=3))


def test_data_too_old_to_publish_are_refused_before_a_training() -> None:
    refuse_old_data(71.0, AuditConfig())
    with pytest.raises(
        AuditError, match=r"(?s)nothing was trained; what was served stays.*newest event, hours: 73.*--as-of"
    ):
        refuse_old_data(73.0, AuditConfig())


@pytest.mark.parametrize(
    ("k", "before", "rows"),
    [(2, 2, 8), (1, 2, 4), (3, 2, 12), (9, 2, 12), (1, 9, 3), (2, None, 8)],  # three items: no list is longer
)
def test_rows_are_held_against_as_many_as_lists_of_the_length_asked_for(
    tmp_path: Path, k: int, before: int | None, rows: int
) -> None:
    when = pd.Timestamp("2024-01-01", tz="UTC")
    events = pd.DataFrame({"user_id": range(4), "item_id": 1, "event_type": "buy", "timestamp": when})
    dataset = Dataset.from_frames(events, pd.DataFrame({"item_id": [1, 2, 3], "title": "x"}))
    store = ReleaseStore(tmp_path)
    with store.lock():
        staging = store.begin("2024-01-02", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [0] * 8, "item_id": range(8)}))
        facts = {"key": {}, "run_date": "2024-01-02", "model": {"version": "1"}} | ({"k": before} if before else {})
        store.publish(store.finish(staging, facts))
        last = _last_release(store, store.begin("2024-01-03", "b"), len(dataset.users), k, dataset)
    assert last is not None
    assert last.n_rows == rows

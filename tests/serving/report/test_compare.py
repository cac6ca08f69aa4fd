import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys import metrics
from recsys.config import ReportConfig
from recsys.errors import DataError, ResourceError
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.world import Arm, World

N_USERS, N_ITEMS, DEPTH = 400, 80, 20
START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-08", tz="UTC")


def shop(seed: int = 0) -> dict[str, Any]:
    """Two labels per user in the window; the first 100 users have no history, the others five events each."""
    rng = np.random.default_rng(seed)
    labels = np.argsort(rng.random((N_USERS, N_ITEMS)), axis=1)[:, :2]
    events = pd.DataFrame({"user_id": np.repeat(np.arange(N_USERS), 2), "item_id": labels.ravel()})
    events["timestamp"] = START + pd.Timedelta(days=1)
    past = pd.DataFrame({"user_id": np.repeat(np.arange(100, N_USERS), 5)})
    past["item_id"] = (rng.random(len(past)) ** 3 * N_ITEMS).astype(np.int64)
    past["timestamp"] = START - pd.to_timedelta(rng.integers(1, 1_000, len(past)), unit="h")
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": [f"Thing {i}" for i in range(N_ITEMS)]})
    return {"events": events, "history": past, "items": items}


def arm(name: str, skill: float, world: dict[str, Any], seed: int, **info: str) -> Arm:
    """Random lists that favour high item numbers; a label moves to the front by as much as `skill` says."""
    score = np.random.default_rng(seed).random((N_USERS, N_ITEMS)) + np.linspace(0, 1, N_ITEMS)
    score[world["events"]["user_id"], world["events"]["item_id"]] += skill
    ranked = np.argsort(-score, axis=1)[:, :DEPTH]
    table = pd.DataFrame({"user_id": np.repeat(np.arange(N_USERS), DEPTH), "item_id": ranked.ravel()})
    table["rank"] = np.tile(np.arange(1, DEPTH + 1), N_USERS)
    table["reason"] = "Because you took Thing 1"
    return Arm(name, table, "7", dict(info))


def judged(a: Arm, b: Arm, world: dict[str, Any], **changes: Any) -> Report:
    arguments = {"test_start": START, "test_end": END, "now": END, "history": world["history"]} | changes
    config = arguments.pop("config", ReportConfig(min_segment_users=20))
    return compare(a, b, world["events"], world["items"], config, **arguments)


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    return shop()


def test_an_arm_against_itself_holds_with_a_difference_of_exactly_zero(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1)
    report = judged(a, a, world)
    assert (report.verdict, report.exit_code, report.rule) == ("HOLD", 10, 4)
    effects = [(e.diff, e.low, e.high) for e in (row.effect for row in report.relevance)]
    assert set(effects + [(row.diff, row.low, row.high) for row in report.guardrails]) == {(0, 0, 0)}
    assert {row.p_sign_flip for row in report.relevance} == {1}
    assert (report.overlap.jaccard, report.overlap.rbo, report.overlap.same) == pytest.approx((1, 1, 1))


def test_a_planted_better_arm_is_promoted(world: dict[str, Any]) -> None:
    report = judged(arm("A", 0.1, world, 1), arm("B", 0.5, world, 2), world)
    assert (report.verdict, report.exit_code, report.rule) == ("PROMOTE", 0, 3)
    assert report.relevance[0].effect.low > 0
    assert report.numbers[0].value == report.relevance[0].effect.relative


@pytest.mark.parametrize("n_users", [2, 5, 99])
def test_a_handful_of_users_promotes_nobody(n_users: int) -> None:
    """B hits and A misses for each of them: all differences are the same."""
    events = pd.DataFrame({"user_id": range(n_users), "item_id": 9})
    items = pd.DataFrame({"item_id": range(10), "title": "x"})
    a, b = (
        pd.DataFrame({"user_id": np.repeat(range(n_users), 2), "item_id": two * n_users, "rank": [1, 2] * n_users})
        for two in ([0, 1], [9, 0])
    )
    window = {"test_start": START, "test_end": END, "now": END, "k": 2}
    report = compare(Arm("A", a), Arm("B", b), events, items, ReportConfig(), **window)  # type: ignore[arg-type]
    assert report.verdict == "HOLD"
    assert f"{n_users} users are too few to promote by, 100 are needed" in report.unmet
    back = compare(Arm("A", b), Arm("B", a), events, items, ReportConfig(), **window)  # type: ignore[arg-type]
    assert back.verdict == ("REJECT" if n_users > 5 else "HOLD")  # of five signs alike, chance makes 1 in 16


def test_the_same_arms_the_other_way_round_are_rejected(world: dict[str, Any]) -> None:
    report = judged(arm("A", 0.5, world, 2), arm("B", 0.1, world, 1), world)
    assert (report.verdict, report.exit_code, report.rule) == ("REJECT", 20, 2)


def test_a_better_arm_that_shows_everyone_the_same_items_is_rejected_for_coverage(world: dict[str, Any]) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.6, world, 2)
    narrow = b.table.copy()
    narrow.loc[narrow["rank"] > 3, "item_id"] = narrow["rank"] + 2  # items 6 and up, the same for all
    narrow = narrow.drop_duplicates(["user_id", "item_id"])
    narrow["rank"] = narrow.groupby("user_id").cumcount() + 1
    report = judged(a, Arm("B", narrow), world)
    assert report.relevance[0].effect.low > 0
    assert report.verdict == "REJECT"
    assert "Exposure Gini" in report.reason


def test_users_without_a_list_score_zero_and_are_not_dropped(world: dict[str, Any]) -> None:
    a = arm("A", 0.5, world, 1)
    half = Arm("B", a.table[a.table["user_id"] >= N_USERS // 2])
    effect = judged(a, half, world).relevance[0].effect
    assert effect.n == N_USERS
    assert effect.won == 0
    values = judged(a, half, world).per_user
    assert (values["ndcg_10_b"][: N_USERS // 2] == 0).all()


def duplicated(a: Arm) -> Arm:
    return Arm("B", pd.concat([a.table, a.table.iloc[[3]]]))


def unranked(a: Arm) -> Arm:
    return Arm("B", a.table.assign(rank=a.table["rank"].astype(float).where(a.table.index != 5)))


def gapped(a: Arm) -> Arm:
    return Arm("B", a.table.drop(index=5))


def unlisted(a: Arm) -> Arm:
    return Arm("B", a.table.assign(item_id=a.table["item_id"].where(a.table.index != 5, 4_711)))


def leaked(a: Arm) -> Arm:
    return Arm("B", a.table, "8", {"trained_until": "2024-03-02"})


def unread(a: Arm) -> Arm:
    return Arm("B", a.table, "8", {"trained_until": "soon"})


def strangers(a: Arm) -> Arm:
    return Arm("B", a.table.assign(user_id=a.table["user_id"] + 10_000))


@pytest.mark.parametrize(
    "spoil, told",
    [
        (duplicated, "1 repeated (user, item)"),
        (unranked, "1 ranks are no whole number"),
        (gapped, "1 lists have gaps"),
        (unlisted, "4711"),
        (leaked, "trained until 2024-03-02"),
        (unread, "'soon'"),
        (strangers, "without any list"),
    ],
)
def test_a_spoilt_arm_makes_the_comparison_invalid(world: dict[str, Any], spoil: Any, told: str) -> None:
    a = arm("A", 0.3, world, 1)
    report = judged(a, spoil(a), world)
    assert (report.verdict, report.exit_code, report.rule) == ("INVALID", 30, 1)
    assert told in report.reason


def test_scoring_that_hits_whatever_the_labels_are_is_invalid(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "hits_of", lambda ranked, relevant: ranked >= 0)
    a = arm("A", 0.3, world, 1)
    failed = {check.name for check in judged(a, a, world).checks if check.status == "fail"}
    assert "Shuffled labels fall to chance" in failed


def test_popularity_and_the_champion_stand_beside_the_arms(world: dict[str, Any]) -> None:
    a, b, best = arm("A", 0.1, world, 1), arm("B", 0.2, world, 2), arm("champion", 0.5, world, 3)
    report = judged(a, b, world, champion=best)
    alone = judged(a, best, world)
    for row, theirs in zip(report.relevance, alone.relevance, strict=True):
        assert list(row.beside) == ["Popularity", "Champion"]
        assert row.beside["Champion"] == theirs.effect.b
        assert row.beside["Popularity"] == theirs.beside["Popularity"]
    gini = {row.metric: row for row in report.guardrails}["Exposure Gini"]
    assert gini.beside["Champion"] == {row.metric: row for row in alone.guardrails}["Exposure Gini"].b


def test_the_header_says_how_to_make_the_report_again(world: dict[str, Any]) -> None:
    a = arm("A", 0.1, world, 1, run_seed="3", artifact_sha256="ab")
    words = {"command": "recsys compare 1 2", "code_revision": "abc+changes", "filters": ("no repeats",)}
    header = judged(a, a, world, settings_sha256="cd", **words).header
    assert {name: getattr(header, name) for name in words} == words
    assert (header.settings_sha256, header.a.info) == ("cd", {"run_seed": "3", "artifact_sha256": "ab"})
    assert {"python", "numpy", "scipy", "torch"} <= header.packages.keys()


def test_without_filters_the_header_counts_the_labels_that_repeat(world: dict[str, Any]) -> None:
    a = arm("A", 0.1, world, 1)
    repeated = world["events"].merge(world["history"][["user_id", "item_id"]].drop_duplicates())
    assert judged(a, a, world).header.filters == (f"{len(repeated)} labels repeat what their user took before",)
    assert len(repeated) > 0
    assert "unknown" in judged(a, a, world, history=None).header.filters[0]


@pytest.mark.parametrize("name, column", [("events", "item_id"), ("history", "user_id"), ("items", "title")])
def test_other_data_have_another_hash(world: dict[str, Any], name: str, column: str) -> None:
    a = arm("A", 0.1, world, 1)
    before = judged(a, a, world).header.data_sha256
    table = world[name].copy()
    table.loc[0, column] = table[column].iloc[-1] if name != "items" else "Another"
    after = judged(a, a, world | {name: table}).header.data_sha256
    assert {key for key in before if before[key] != after[key]} == {"events": {"labels"}}.get(name, {name})


def test_a_protected_group_too_small_to_judge_is_named(world: dict[str, Any]) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    told = "history: 0 is protected, but 100 users are too few to judge it."
    assert told in judged(a, b, world, config=ReportConfig(min_segment_users=150)).limits
    assert told not in judged(a, b, world).limits


def test_labels_of_items_that_the_table_alone_gives_away_are_counted(world: dict[str, Any]) -> None:
    """Of items 0-2 the history has the first, a date of entry the second; each is what three users took, one label is no item's."""
    events = pd.DataFrame({"user_id": range(10), "item_id": [0] * 3 + [1] * 3 + [2] * 3 + [9], "timestamp": START})
    items = pd.DataFrame({"item_id": range(3), "title": "x", "created_at": [None, "2023-01-01", None]})
    history = pd.DataFrame({"user_id": [0], "item_id": [0], "timestamp": START - pd.Timedelta(days=1)})
    a = Arm("A", pd.DataFrame({"user_id": range(10), "item_id": 0, "rank": 1}))
    tables = {"events": events, "items": items, "history": history}
    told = [limit for limit in judged(a, a, tables).limits if "created_at" in limit]
    assert [limit[:44] for limit in told] == ["3 of 10 labels are of items that nobody had "]
    undated = judged(a, a, tables | {"items": items.drop(columns="created_at")}).limits
    assert any(limit.startswith("6 of 10 labels") for limit in undated)
    dated = items.assign(created_at="2023-01-01")
    assert not any("created_at" in limit for limit in judged(a, a, tables | {"items": dated}).limits)


def test_a_t_test_that_sign_flips_do_not_bear_out_is_named(world: dict[str, Any]) -> None:
    """Five wins, nearly equal: t is certain, but all signs are equal in 2 of 32 flips."""
    events = pd.DataFrame({"user_id": range(5), "item_id": 1})
    items = pd.DataFrame({"item_id": [0, 1, 2], "title": "x"})
    tables = [
        pd.DataFrame({"user_id": np.repeat(range(5), 3), "item_id": all_items, "rank": [1, 2, 3] * 5})
        for all_items in ([0, 1, 2] * 4 + [0, 2, 1], [1, 0, 2] * 5)
    ]
    report = compare(
        Arm("A", tables[0]),
        Arm("B", tables[1]),
        events,
        items,
        ReportConfig(),
        test_start=START,
        test_end=END,
        now=END,
        k=3,
    )
    assert report.relevance[0].effect.p < 1e-3
    assert report.relevance[0].p_sign_flip == pytest.approx(2 / 32, abs=0.02)
    assert any("disagree about NDCG@3" in limit for limit in report.limits)
    assert not any(
        "disagree" in limit for limit in judged(arm("A", 0.1, world, 1), arm("B", 0.5, world, 2), world).limits
    )


def test_a_model_trained_until_the_window_is_valid(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1, trained_until="2024-03-01")
    assert judged(a, a, world).verdict == "HOLD"


def test_an_item_made_after_the_start_of_the_window_is_invalid(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1)
    items = world["items"].assign(created_at=START + pd.Timedelta(days=1))
    past = world["history"][world["history"]["item_id"] < N_ITEMS - 10]  # the last ten never sold before
    assert "later knowledge" in judged(a, a, world | {"items": items, "history": past}).reason


def test_labels_from_before_the_window_are_invalid(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1)
    assert "800 labels outside" in judged(a, a, world, test_start=START + pd.Timedelta(days=2)).reason


def test_no_labels_at_all_are_invalid_and_still_written(world: dict[str, Any], tmp_path: Path) -> None:
    a = arm("A", 0.3, world, 1)
    report = judged(a, a, world | {"events": world["events"].iloc[:0]})
    assert report.verdict == "INVALID"
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["relevance"][0]["effect"]["diff"] is None


def test_ids_of_another_type_are_refused_at_the_door(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1)
    b = Arm("B", a.table.astype({"user_id": "str"}))
    with pytest.raises(DataError, match=r"user_id: .*arm 'B' holds text"):
        judged(a, b, world)
    with pytest.raises(DataError, match=r"arm 'B': column 'rank' is missing"):
        judged(a, Arm("B", a.table.drop(columns="rank")), world)


def test_text_ids_give_the_verdict_that_integer_ids_give(world: dict[str, Any]) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    ids = {"user_id": "str", "item_id": "str"}
    texts = {name: t.astype({c: d for c, d in ids.items() if c in t}) for name, t in world.items()}
    report = judged(Arm("A", a.table.astype(ids)), Arm("B", b.table.astype(ids)), texts)
    assert report.relevance[0].effect.diff == pytest.approx(judged(a, b, world).relevance[0].effect.diff)


def test_shuffled_rows_give_the_same_bytes(world: dict[str, Any], tmp_path: Path) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    mixed = {name: table.sample(frac=1, random_state=3) for name, table in world.items()}
    judged(a, b, world).write(tmp_path / "one")
    judged(Arm("A", a.table.sample(frac=1, random_state=1), "7"), b, mixed).write(tmp_path / "two")
    names = {"report.json", "report.html", "report.md", "per_user.parquet"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_inputs_are_left_as_they_were(world: dict[str, Any]) -> None:
    before = {name: table.copy() for name, table in world.items()}
    a = arm("A", 0.1, world, 1)
    table = a.table.copy()
    judged(a, arm("B", 0.5, world, 2), world)
    pd.testing.assert_frame_equal(a.table, table)
    for name, was in before.items():
        pd.testing.assert_frame_equal(world[name], was)


def test_a_folder_that_cannot_be_written_is_named(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    a = arm("A", 0.3, world, 1)
    with pytest.raises(ResourceError, match="cannot be written"):
        judged(a, a, world).write(tmp_path / "file")


def test_segments_count_users_and_items_and_say_too_few(world: dict[str, Any]) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    people = pd.DataFrame({"user_id": np.arange(N_USERS), "town": ["x", "y"] * (N_USERS // 2)})
    report = judged(a, b, world, users=people, config=ReportConfig(min_segment_users=150))
    found = {(s.kind, s.name): s for s in report.segments}
    assert (found["history", "0"].n, found["history", "5-19"].n, found["history", "20+"].n) == (100, 300, 0)
    assert found["history", "0"].effect is None
    assert found["history", "0"].is_protected
    assert found["town", "x"].n == 200
    assert found["history", "5-19"].effect is not None
    taken = world["history"]["item_id"].value_counts()
    is_new = ~world["events"]["item_id"].isin(taken.index)
    assert found["items", "cold"].n == world["events"][is_new]["user_id"].nunique()
    in_class = sum(found["items", name].n for name in ("head", "torso", "tail"))
    assert N_USERS <= in_class <= 2 * N_USERS


def test_the_worked_example_of_three_users() -> None:
    """A hits for the first user alone and gives the third no list; B hits for all."""
    events = pd.DataFrame({"user_id": [1, 2, 3], "item_id": [10, 20, 30]})
    items = pd.DataFrame({"item_id": [10, 20, 30], "title": ["p", "q", "r"]})
    a = Arm("A", pd.DataFrame({"user_id": [1, 2], "item_id": [10, 10], "rank": [1, 1]}))
    b = Arm("B", pd.DataFrame({"user_id": [1, 2, 3], "item_id": [10, 20, 30], "rank": [1, 1, 1]}))
    report = compare(a, b, events, items, ReportConfig(), test_start=START, test_end=END, now=END, k=1)
    effect = report.relevance[0].effect
    assert (effect.won, effect.tied, effect.lost) == (2, 1, 0)
    assert [effect.a, effect.b] == pytest.approx([1 / 3, 1])
    fill = {row.metric: row for row in report.guardrails}
    assert [fill["List fill"].a, fill["List fill"].b] == pytest.approx([2 / 3, 1])
    assert [fill["Catalogue coverage"].a, fill["Catalogue coverage"].b] == pytest.approx([1 / 3, 1])


def test_the_popularity_baseline_leaves_out_what_a_user_took_where_no_label_repeats() -> None:
    history = pd.DataFrame({"user_id": [1, 2, 3, 3], "item_id": [10, 10, 10, 20]})
    events = pd.DataFrame({"user_id": [1, 4], "item_id": [30, 30]})
    items = pd.DataFrame({"item_id": [10, 20, 30], "title": ["p", "q", "r"]})
    empty = Arm("A", pd.DataFrame({"user_id": [1], "item_id": [10], "rank": [1]}))
    rng = np.random.default_rng(0)
    world = World.of((empty, empty), events, items, history, 10, rng)
    popular = world.popular_lists(2)
    assert popular is not None
    assert popular.tolist() == [[1, -1], [0, 1]]
    again = World.of((empty, empty), events.assign(item_id=10), items, history, 10, rng).popular_lists(2)
    assert again is not None
    assert again.tolist() == [[0, 1], [0, 1]]


def test_what_is_withdrawn_is_in_no_popular_list_and_no_list_is_short_for_want_of_it() -> None:
    """Item 10 sold most and is withdrawn; so is 20, which somebody took in the window."""
    history = pd.DataFrame({"user_id": [1, 2, 3, 3, 3], "item_id": [10, 10, 10, 20, 30]})
    events = pd.DataFrame({"user_id": [8, 9], "item_id": [20, 30]})
    items = pd.DataFrame({"item_id": [10, 20, 30], "title": "x", "available": [False, False, True]})
    arm = Arm("A", pd.DataFrame({"user_id": [8, 8, 9, 9], "item_id": [20, 30] * 2, "rank": [1, 2] * 2}))
    world = World.of((arm, arm), events, items, history, 10, np.random.default_rng(0))
    popular = world.popular_lists(3)
    assert popular is not None
    assert popular.tolist() == [[1, 2, -1]] * 2
    report = compare(arm, arm, events, items, ReportConfig(), test_start=START, test_end=END, now=END, history=history)
    assert [check.status for check in report.checks if "no short lists" in check.name] == ["pass", "pass"]
    report = compare(
        arm, arm, events, items.drop(columns="available"), ReportConfig(), test_start=START, test_end=END, now=END
    )
    assert [check.status for check in report.checks if "no short lists" in check.name] == ["fail", "fail"]


def test_what_a_user_hid_is_not_listed_to_them_as_popular_and_their_lists_may_be_as_much_shorter() -> None:
    history = pd.DataFrame({"user_id": [1, 2, 3, 3], "item_id": [10, 10, 20, 30]})
    events = pd.DataFrame({"user_id": [8, 9, 9], "item_id": [20, 10, 30]})
    items = pd.DataFrame({"item_id": [10, 20, 30], "title": "x"})
    hidden = pd.DataFrame({"user_id": [8, 8, 7], "item_id": [10, 10, 20]})
    table = pd.DataFrame({"user_id": [8, 8, 9, 9, 9], "item_id": [20, 30, 10, 20, 30], "rank": [1, 2, 1, 2, 3]})
    arm = Arm("A", table)
    world = World.of((arm, arm), events, items, history, 10, np.random.default_rng(0), hidden=hidden)
    popular = world.popular_lists(3)
    assert popular is not None
    assert popular.tolist() == [[1, 2, -1], [0, 1, 2]]
    for left_out, status in ((hidden, "pass"), (None, "fail")):
        report = compare(
            arm,
            arm,
            events,
            items,
            ReportConfig(),
            test_start=START,
            test_end=END,
            now=END,
            history=history,
            hidden=left_out,
        )
        assert [check.status for check in report.checks if "no short lists" in check.name] == [status] * 2


def test_events_of_weight_0_are_no_history(world: dict[str, Any]) -> None:
    nothing = world["history"].assign(user_id=0, item_id=np.arange(len(world["history"])) % N_ITEMS, weight=0.0)
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    plain = judged(a, b, world)
    more = judged(a, b, world, history=pd.concat([world["history"].assign(weight=1.0), nothing]))
    assert repr(more.segments) == repr(plain.segments)  # nan is not nan
    assert repr(more.guardrails) == repr(plain.guardrails)


def test_integers_among_objects_are_integers_and_users_meet_their_text(world: dict[str, Any]) -> None:
    a, b = arm("A", 0.1, world, 1), arm("B", 0.5, world, 2)
    users = pd.DataFrame({"user_id": np.arange(N_USERS), "plan": np.arange(N_USERS) % 2})
    plain = judged(a, b, world, users=users)
    assert any(segment.kind == "plan" for segment in plain.segments)
    objects = {name: table.astype({"item_id": object}) for name, table in world.items()}
    a, b = (Arm(one.name, one.table.astype({"user_id": object, "item_id": object}), one.version) for one in (a, b))
    again = judged(a, b, objects, users=users.astype({"user_id": str}))
    assert repr(again.segments) == repr(plain.segments)


def test_an_item_without_an_id_is_no_item(world: dict[str, Any]) -> None:
    items = world["items"].astype({"item_id": "Int64"})
    nobody = pd.DataFrame({"item_id": pd.array([None], dtype="Int64"), "title": ["nobody's"]})
    with_null = World.of((), world["events"], pd.concat([items, nobody]), None, 10**6, np.random.default_rng(0))
    assert with_null.titles.tolist() == world["items"]["title"].tolist()


def test_ties_stand_in_the_middle_of_the_histogram(world: dict[str, Any]) -> None:
    a = arm("A", 0.3, world, 1)
    counts = judged(a, a, world).histogram.counts
    assert (len(counts), counts[20], sum(counts)) == (41, N_USERS, N_USERS)


@pytest.mark.parametrize(("factor", "names"), [(1.0, {"0.0", "1.0"}), (np.nan, set())])
def test_categories_may_be_numbers_or_all_empty(world: dict[str, Any], factor: float, names: set[str]) -> None:
    """Pandas warned of a text that fills a column of numbers, and is going to refuse it."""
    a, items = arm("A", 0.3, world, 1), world["items"]
    report = judged(a, a, world | {"items": items.assign(category=items["item_id"] % 2 * factor)})
    assert {group.name for group in report.segments if group.kind == "category"} == names

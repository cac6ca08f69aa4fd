import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from recsys.bundle import BundleInfo
from recsys.cli import cli
from recsys.config import RulesConfig, load_config, parse_config
from recsys.copies import Fetched
from recsys.errors import ConfigError, DataError
from recsys.progress import Reporter
from recsys.registry import ModelVersion, Registry
from serving import releases
from serving.arms import Sides, _same_window, _told_apart, _unblocked, sides, table_arm, with_ids_like, with_rules
from serving.labels import Judges, Window, judges
from serving.publish import ReleaseStore
from serving.report.world import Arm

START, END = "2024-03-20", "2024-04-11"


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_shop: Callable[[Path, pd.DataFrame, pd.DataFrame], None],
    shop: tuple[pd.DataFrame, pd.DataFrame],
) -> Path:
    """The shop beside two tables: `good` knows each user's taste, `bad` picks at random."""
    folder = tmp_path_factory.mktemp("arms")
    make_shop(folder, *shop)
    events, items = shop
    rng = np.random.default_rng(0)
    users = sorted(events["user_id"].unique())
    before = events[events["timestamp"] < pd.Timestamp(START, tz="UTC")]
    seen = before.groupby("user_id")["item_id"].agg(set)
    for name in ("good", "bad"):
        rows = []
        for user in users:
            taste = list(items["item_id"])
            if name == "good":
                taste.sort(key=lambda i: int(i[1:]) % 4 != int(user[1:]) % 4)
            new = [i for i in taste if i not in seen.get(user, set())]
            picked = new[:10] if name == "good" else rng.choice(new, 10, replace=False)
            rows += [(user, item, rank) for rank, item in enumerate(picked, 1)]
        pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).to_parquet(folder / f"{name}.parquet")
    return folder


def run(folder: Path, a: str, b: str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["compare", a, b, "-c", str(folder / "recsys.toml"), "--as-of", END, *words])


def test_tables_that_know_the_taste_win_and_random_ones_are_rejected(folder: Path) -> None:
    good, bad = str(folder / "good.parquet"), str(folder / "bad.parquet")
    words = ("--test-start", START, "--json")
    up, down = (json.loads(run(folder, *arms, *words).stdout) for arms in ((bad, good), (good, bad)))
    assert up["relevance"][0]["effect"]["diff"] == pytest.approx(-down["relevance"][0]["effect"]["diff"])
    assert up["relevance"][0]["effect"]["low"] > 0
    assert down["verdict"] == "REJECT"


def test_users_and_impressions_of_the_config_reach_the_report(folder: Path, tmp_path: Path) -> None:
    users = [f"u{n:03d}" for n in range(120)]
    pd.DataFrame({"user_id": users, "plan": ["free", "paid"] * 60}).to_csv(tmp_path / "users.csv", index=False)
    rows = {"impression_id": range(120), "user_id": users, "item_id": "i00", "position": 1, "clicked": False}
    pd.DataFrame(rows).assign(timestamp=pd.Timestamp(START, tz="UTC")).to_parquet(tmp_path / "log.parquet")
    good, bad = str(folder / "good.parquet"), str(folder / "bad.parquet")
    words = ("--set", f"data.users={tmp_path / 'users.csv'}", "--set", f"data.impressions={tmp_path / 'log.parquet'}")
    report = json.loads(run(folder, bad, good, "--test-start", START, "--json", *words).stdout)
    assert {s["name"] for s in report["segments"] if s["kind"] == "plan"} == {"free", "paid"}
    assert report["counterfactual"]["refused"] == ["the log has no column propensity"]


def test_the_exit_code_follows_the_verdict_and_the_page_is_written(folder: Path) -> None:
    good = str(folder / "good.parquet")
    result = run(folder, good, good, "--test-start", START, "-o", str(folder / "same"), "-k", "5")
    assert json.loads((folder / "same" / "report.json").read_text())["relevance"][0]["metric"] == "NDCG@5"
    assert (result.exit_code, result.stdout.split(":")[0]) == (10, "HOLD")
    assert {p.name for p in (folder / "same").iterdir()} == {
        "report.html",
        "report.json",
        "report.md",
        "per_user.parquet",
    }


def test_the_same_command_twice_writes_the_same_bytes_but_for_the_date(folder: Path) -> None:
    """In all four files: the moment of making is the only thing that differs."""
    written = []
    for name in ("once", "twice"):
        arms = str(folder / "bad.parquet"), str(folder / "good.parquet")
        run(folder, *arms, "--test-start", START, "-o", str(folder / name))
        made_at = json.loads((folder / name / "report.json").read_text())["made_at"]
        shown = f"{made_at[:19].replace('T', ' ')} UTC"
        texts = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        assert len(texts) == 4
        written.append({n: b.replace(made_at.encode(), b"").replace(shown.encode(), b"") for n, b in texts.items()})
    assert written[0] == written[1]


def test_tables_of_unknown_age_need_a_start(folder: Path) -> None:
    good = str(folder / "good.parquet")
    assert isinstance(run(folder, good, good).exception, ConfigError)


def test_a_table_and_a_model_do_not_mix_and_a_table_without_ranks_is_named(folder: Path) -> None:
    assert isinstance(run(folder, str(folder / "good.parquet"), "champion").exception, ConfigError)
    pd.read_parquet(folder / "good.parquet").drop(columns="rank").to_parquet(folder / "flat.parquet")
    error = run(folder, str(folder / "flat.parquet"), str(folder / "flat.parquet"), "--test-start", START).exception
    assert isinstance(error, DataError)
    assert "rank" in str(error)


def test_a_table_of_another_library_needs_no_ranks_and_may_come_as_csv(folder: Path) -> None:
    """Scores alone, in any order, ids that look like numbers: the same verdict as with ranks."""
    good = pd.read_parquet(folder / "good.parquet")
    scored = good.assign(score=1.0 / good["rank"]).drop(columns="rank").sample(frac=1, random_state=0)
    scored.to_csv(folder / "scored.csv", index=False)
    words = ("--test-start", START, "--json")
    report = json.loads(run(folder, str(folder / "good.parquet"), str(folder / "scored.csv"), *words).stdout)
    assert report["header"]["a"]["sha256"] == report["header"]["b"]["sha256"]
    assert report["header"]["b"]["info"]["ranks"].startswith("by score")


def test_scores_rank_from_the_highest_ties_by_item_and_no_number_last(tmp_path: Path) -> None:
    """Whether a table is CSV, whose ids are texts until they meet the data's, or Parquet."""
    rows = {"user_id": [1, 1, 1, 1, 2], "item_id": [10, 4, 3, 2, 9], "score": ["0.5", "0.5", "0.9", "?", "0.1"]}
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "scored.csv", index=False)
    table.to_parquet(tmp_path / "scored.parquet")
    both = table_arm(tmp_path / "scored.csv"), table_arm(tmp_path / "scored.parquet")
    window = Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"))
    for arm in with_ids_like(Sides(both, window), table).arms:
        ranks = list(zip(arm.table["item_id"], arm.table["rank"], strict=True))
        assert ranks == [(3, 1), (4, 2), (10, 3), (2, 4), (9, 1)]


@pytest.mark.parametrize(
    ("trained", "tells"), [("2024-01-09", "2024-01-09"), ("2023-12-30", "2024-01-02"), (None, "2024-01-02")]
)
def test_a_release_of_a_past_date_tells_what_its_model_saw(tmp_path: Path, trained: str | None, tells: str) -> None:
    store = ReleaseStore(tmp_path)
    model = {"name": "m", "version": "1"} | ({"trained_until": f"{trained}T00:00:00+00:00"} if trained else {})
    facts = {"key": {"run": "a"}, "run_date": "2024-01-02", "model": model, "timings": {"scoring": 3.0}}
    with store.lock():
        staging = store.begin("2024-01-02", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [1], "item_id": [2], "rank": [1]}))
        done = store.finish(staging, facts | {"data": {"until": "2024-01-02T00:00:00+00:00"}})
    arm = table_arm(done)
    assert arm.info["trained_until"] == f"{tells}T00:00:00+00:00"
    # by the clock: told, but nothing that a verdict may hang on
    assert (arm.cost.score_s, arm.cost.ms_per_user) == (3.0, None)
    assert (arm.asked, arm.longest) == (None, None)  # one made before manifests said so


def test_a_release_tells_how_long_its_lists_were_to_be(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    facts = {"key": {}, "run_date": "2024-01-02", "data": {"until": "2024-01-02T00:00Z"}, "k": 5, "longest": 3}
    with store.lock():
        staging = store.begin("2024-01-02", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [1], "item_id": [2], "rank": [1]}))
        arm = table_arm(store.finish(staging, facts))
    assert (arm.asked, arm.longest) == (5, 3)


def test_tables_get_the_ids_of_the_data_and_versions_keep_theirs() -> None:
    table = pd.DataFrame({"user_id": ["7", "x"], "item_id": [1, 2], "rank": 1})
    labels = pd.DataFrame({"user_id": [7], "item_id": ["1"]})
    window = Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"))
    typed = with_ids_like(Sides((Arm("A", table), Arm("B", table)), window), labels).arms[1].table
    assert typed["user_id"].tolist() == [7, 8]  # 8 is nobody known
    assert typed["item_id"].tolist() == ["1", "2"]
    with pytest.raises(DataError, match="lose digits"):
        with_ids_like(Sides((Arm("A", table.astype({"item_id": float})), Arm("B", table)), window), labels)


def test_tables_of_one_name_bear_those_of_their_folders_too(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lists.csv").write_text("user_id,item_id,rank\nu,i,1\n")
    (tmp_path / "other.csv").write_text("user_id,item_id,rank\nu,i,1\n")
    old, new, other = tmp_path / "old" / "lists.csv", tmp_path / "new" / "lists.csv", tmp_path / "other.csv"
    assert [arm.name for arm in _told_apart(old, new)] == ["old/lists.csv", "new/lists.csv"]
    assert [arm.name for arm in _told_apart(old, other)] == ["lists.csv", "other.csv"]
    assert [arm.name for arm in _told_apart(old, old)] == ["lists.csv", "lists.csv"]


def test_ids_of_a_csv_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_text("user_id,item_id,score\nNA,007,1.5\nnull,nan,\n")
    table = table_arm(tmp_path / "lists.csv").table
    assert table["user_id"].tolist() == ["NA", "null"]
    assert table["item_id"].tolist() == ["007", "nan"]
    assert table["score"].isna().tolist() == [False, True]


@pytest.mark.parametrize("name", ["lists.csv.gz", "LISTS.CSV", "Lists.CSV.GZ"])
def test_a_csv_may_be_packed_and_named_in_capitals(tmp_path: Path, name: str) -> None:
    rows = b"user_id,item_id,rank\nu,007,1\n"
    (tmp_path / name).write_bytes(gzip.compress(rows) if name.lower().endswith(".gz") else rows)
    assert table_arm(tmp_path / name).table["item_id"].tolist() == ["007"]


def test_what_may_be_a_label_is_counted_and_said(folder: Path, shop: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    events, items = shop
    created = items["item_id"].map(lambda i: pd.Timestamp("2024-04-01" if int(i[1:]) >= 60 else "2023-01-01", tz="UTC"))
    is_unsold = events["item_id"].between("i60", "i66") & (events["timestamp"] < pd.Timestamp(START, tz="UTC"))
    events = events[~is_unsold]  # the others of 60 and up were imported anew
    items.assign(created_at=created).to_parquet(folder / "dated.parquet")
    events.to_parquet(folder / "thinned.parquet")
    changes = (f"data.items={folder / 'dated.parquet'}", f"data.events={folder / 'thinned.parquet'}")
    config = load_config(folder / "recsys.toml", changes)
    window = Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"))
    found = judges(config, window)
    before, inside = (events[m] for m in (events["timestamp"] < window.start, events["timestamp"] >= window.start))
    pairs = set(zip(before["user_id"], before["item_id"], strict=True))
    is_new = np.array([pair not in pairs for pair in zip(inside["user_id"], inside["item_id"], strict=True)])
    sold = set(before["item_id"])  # what sold was there, whatever the catalogue says
    is_late = inside["item_id"].str[1:].astype(int) >= 60
    is_young = is_late & ~inside["item_id"].isin(sold)
    assert len(found.labels) == (is_new & ~is_young).sum() > 0
    assert f"({(~is_new).sum()} events left out)" in found.filters[1]
    assert f"({(is_new & is_young).sum()} left out)" in found.filters[2]
    assert (is_new & is_late).sum() > (is_new & is_young).sum() > 0
    repeats = judges(config.model_copy(update={"rules": RulesConfig(exclude_seen=False)}), window)
    assert len(repeats.labels) == (~is_young).sum()
    clicked = config.model_copy(update={"rules": RulesConfig(seen_by=("click",))})  # of which there are none
    told = judges(clicked, window)
    assert len(told.labels) == (~is_young).sum()
    assert "what a user acted on before by click is no label (0 events left out)" in told.filters


def test_what_a_user_hid_before_the_window_is_no_label_of_theirs(folder: Path) -> None:
    window = Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"))
    free = judges(load_config(folder / "recsys.toml"), window).labels
    user, item = free.iloc[0][["user_id", "item_id"]]
    events = pd.read_parquet(folder / "events.parquet")
    n_took = int(((free["user_id"] == user) & (free["item_id"] == item)).sum())
    for moment, n_left_out in ((window.start, 0), (window.start - pd.Timedelta("1s"), n_took)):
        hide = pd.DataFrame({"user_id": [user], "item_id": [item], "event_type": ["hide"], "timestamp": [moment]})
        hide["timestamp"] = pd.to_datetime(hide["timestamp"], utc=True).astype(events["timestamp"].dtype)
        pd.concat([events, hide]).to_parquet(folder / "events.parquet")
        told = judges(load_config(folder / "recsys.toml", ('rules.hidden_by=["hide"]',)), window)
        assert len(told.labels) == len(free) - n_left_out
        assert f"what a user hid before the window is no label ({n_left_out} events left out)" in told.filters
        assert len(told.hidden) == (n_left_out > 0)


def test_what_a_user_hid_is_of_the_part_that_a_column_names_as_it_is_to_evaluations(tmp_path: Path) -> None:
    rows = [
        ("u", "i", "buy", 1, "train"), ("u", "i", "hide", 2, "test"), ("u", "j", "hide", 3, "train"),
        ("u", "k", "hide", 4, ""), ("u", "i", "buy", 5, "test"), ("u", "j", "buy", 6, "test"), ("v", "i", "buy", 3, "valid"),
    ]  # fmt: skip
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event_type", "day", "part"])
    events["timestamp"] = pd.Timestamp(START, tz="UTC") + pd.to_timedelta(events.pop("day"), unit="D")
    events.to_parquet(tmp_path / "events.parquet")
    pd.DataFrame({"item_id": ["i", "j", "k"], "title": "x"}).to_parquet(tmp_path / "items.parquet")
    places = {"events": str(tmp_path / "events.parquet"), "items": str(tmp_path / "items.parquet")}
    data = places | {"event_weights": {"buy": 1}, "split_column": "part"}
    config = parse_config({"data": data, "rules": {"hidden_by": ["hide"], "exclude_seen": False}})
    told = judges(config, Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"), by_column=True))
    assert told.hidden["item_id"].tolist() == ["j"]  # k after all that is known, on day 3
    assert told.labels["item_id"].tolist() == ["i"]


def test_what_is_blocked_is_no_label_and_the_page_says_so_only_then(folder: Path) -> None:
    window = Window(pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC"))
    free = judges(load_config(folder / "recsys.toml"), window)
    out = judges(load_config(folder / "recsys.toml", ('rules.blocked=["i00", "no such"]',)), window)
    is_recalled = free.labels["item_id"] == "i00"
    assert is_recalled.any()
    pd.testing.assert_frame_equal(out.labels, free.labels[~is_recalled])
    assert [told for told in out.filters if told not in free.filters] == [
        f"an item that rules.blocked names is no label ({is_recalled.sum()} left out)"
    ]
    pd.testing.assert_frame_equal(out.history, free.history)  # it was bought all the same


def test_what_is_withdrawn_is_no_label_of_versions_as_in_their_evaluations(
    folder: Path, shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    shop[1].assign(available=shop[1]["item_id"] != "i00").to_parquet(folder / "withdrawn.parquet")
    start, end = pd.Timestamp(START, tz="UTC"), pd.Timestamp(END, tz="UTC")
    config = load_config(folder / "recsys.toml", (f"data.items={folder / 'withdrawn.parquet'}",))
    tables = judges(config, Window(start, end))
    is_gone = tables.labels["item_id"] == "i00"
    assert is_gone.any()
    versions = judges(config, Window(start, end, users=pd.Index(shop[0]["user_id"].unique())))
    pd.testing.assert_frame_equal(versions.labels, tables.labels[~is_gone])
    assert versions.filters[-1] == f"an item that is withdrawn by now is no label ({is_gone.sum()} left out)"


def test_rows_of_blocked_items_leave_lists_without_gaps_whatever_the_type_of_their_ids() -> None:
    table = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [7, 8, 9, 8], "rank": [3, 1, 2, 1]})
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    kinds: list[list[str | int]] = [[8, 5], ["8"], [8, "x"]]
    for blocked in kinds:
        rules = RulesConfig(blocked=blocked)
        arm = _unblocked(Arm("A", table), config.model_copy(update={"rules": rules}))
        assert arm.table.to_numpy().tolist() == [[1, 7, 2], [1, 9, 1]]
        assert arm.table.dtypes["rank"] == table.dtypes["rank"]
        assert arm.info["blocked"].startswith("2 rows")
    assert _unblocked(Arm("A", table), config).info == {}


def test_versions_of_the_same_data_share_a_window_though_one_was_trained_later(tmp_path: Path) -> None:
    """Nothing came between: neither has to be trained again on the data of the other."""

    def version(name: str, data: str, start: str, end: str) -> Fetched:
        told = tmp_path / name / "evaluation"
        told.mkdir(parents=True)
        (told / "evaluation.json").write_text(json.dumps({"test_start": start, "test_end": end}))
        found = ModelVersion(name, "", "", pd.Timestamp(END), (), {"data_sha256": data})
        return Fetched(BundleInfo(tmp_path / name, "", {}), found, stale=False)

    first = version("1", "a", "2024-03-20", "2024-04-11")
    assert _same_window(first, version("2", "a", "2024-03-20", "2024-04-12"))
    assert not _same_window(first, version("3", "b", "2024-03-20", "2024-04-11"))
    assert not _same_window(first, version("4", "a", "2024-03-21", "2024-04-11"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Versions 1 (without text) and 2 on the same data, 3 on less."""
    for words in (("--as-of", END, "--set", "text.fields=[]"), ("--as-of", END), ("--as-of", "2024-04-05")):
        done = CliRunner().invoke(cli, ["train", "-c", str(folder / "recsys.toml"), *words])
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_versions_are_not_judged_by_what_comes_after_as_of(trained: Path) -> None:
    done = run(trained, "1", "2", "--as-of", "2024-02-01")
    assert isinstance(done.exception, ConfigError)
    assert "leave --as-of out" in str(done.exception)


def test_no_more_items_count_than_versions_have_listed(folder: Path) -> None:
    """Said before the versions are so much as looked for."""
    done = run(folder, "98", "99", "-k", "60")
    assert isinstance(done.exception, ConfigError)
    assert "hold 50 items" in str(done.exception)


@pytest.mark.slow
def test_two_versions_are_compared_on_their_evaluation_window(trained: Path) -> None:
    report = json.loads(run(trained, "1", "2", "--json").stdout)
    assert report["verdict"] in {"HOLD", "PROMOTE", "REJECT"}
    assert all(check["status"] != "fail" for check in report["checks"])
    assert report["candidate_recall"]["n"] == report["header"]["users"]
    cost = report["header"]["a"]["cost"]
    assert min(cost[name] for name in ("train_s", "ms_per_user", "peak_memory_mib", "model_bytes")) > 0
    assert "Scoring (ms a user)" in {row["metric"] for row in report["guardrails"]}
    info = report["header"]["a"]["info"]
    assert (info["seed"], info["registry"]) == ("0", "models:/recsys/1")
    assert info["learned_from"] < info["ranker_from"] < info["latest_training_event"] < info["trained_until"]
    assert len(report["header"]["settings_sha256"]) == 64
    assert "labels are events of type purchase" in report["header"]["filters"]
    shown = [row for sample in report["samples"] for row in sample["b"]]
    assert all(row["source"] and row["reason"] for row in shown)
    assert len(shown) > 50
    assert [run["kind"] for run in report["stability"]["runs"]][:2] == ["seed", "window"]


@pytest.mark.slow
def test_a_version_of_other_data_is_trained_again_on_those_of_the_later_one(trained: Path) -> None:
    report = json.loads(run(trained, "3", "2", "--json").stdout)
    assert "trained again on the data of version 2" in report["header"]["a"]["info"]["lists"]
    # the same recipe on the same data with the same seed gives the same lists
    assert report["header"]["a"]["sha256"] == report["header"]["b"]["sha256"]


@pytest.mark.slow
def test_the_champion_stands_beside_two_others_of_its_window_or_the_page_says_why(trained: Path) -> None:
    """Version 1 is the champion; 2 is of its window, 3 of an earlier one."""
    beside = json.loads(run(trained, "2", "2", "--json").stdout)
    assert list(beside["relevance"][0]["beside"]) == ["Popularity", "Champion"]
    earlier = json.loads(run(trained, "3", "3", "--json").stdout)
    assert list(earlier["relevance"][0]["beside"]) == ["Popularity"]
    assert any("The present champion, version 1, was evaluated on another" in told for told in earlier["limits"])


@pytest.mark.slow
def test_a_version_that_saw_nothing_of_the_window_is_scored_as_it_is(trained: Path) -> None:
    done = CliRunner().invoke(cli, ["train", "-c", str(trained / "recsys.toml"), "--as-of", "2024-03-20"])
    assert done.exit_code == 0, done.output
    report = json.loads(run(trained, "4", "2", "--json").stdout)
    assert report["header"]["a"]["info"]["lists"] == "of the version as it is"
    assert all(check["status"] != "fail" for check in report["checks"])


@pytest.mark.slow
def test_an_older_version_of_another_window_is_compared_as_it_is_but_never_trained_again(trained: Path) -> None:
    """Its recipe would cut a window of its own; `promote` asks for reruns, so it says so before it trains anything."""
    config = ["-c", str(trained / "recsys.toml")]
    words = ("--as-of", "2024-03-18", "--set", "data.window_days=14")
    done = CliRunner().invoke(cli, ["train", *config, *words])
    assert done.exit_code == 0, done.output
    old = Registry(load_config(trained / "recsys.toml").mlflow).versions()[0].version
    report = json.loads(run(trained, old, "2", "--json").stdout)
    assert report["header"]["a"]["info"]["lists"] == "of the version as it is"
    kept = trained / "out" / "compare" / "reruns"
    before = set(kept.glob("*"))
    for asked in (run(trained, old, "2", "--rerun"), CliRunner().invoke(cli, ["promote", old, *config])):
        assert isinstance(asked.exception, ConfigError), asked.output
        assert "cuts another window than version" in str(asked.exception)
        assert "window_days is " in str(asked.exception)
        assert "training again" not in asked.stderr
    assert set(kept.glob("*")) == before


def test_versions_lists_are_cut_to_todays_caps_and_tables_are_not() -> None:
    """Items 7 and 8 are teas, in lists in the order 8, 7, 9; a list with no more than one tea stays as it is."""
    table = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [7, 8, 9, 7], "rank": [2, 1, 3, 1]})
    items = pd.DataFrame({"item_id": [9, 8, 7], "category": ["oil", "tea", "tea"]})
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    one_each = config.model_copy(update={"rules": RulesConfig(max_per_category=1)})
    window = Window(pd.Timestamp(START), pd.Timestamp(END))
    none = Fetched(BundleInfo(Path(), "", {}), ModelVersion("1", "", "", pd.Timestamp(END), (), {}), stale=False)
    versions = Sides(
        (Arm("A", table), Arm("B", table.astype({"item_id": "str"}))), window, (none, none), Arm("C", table)
    )
    sold = pd.DataFrame({"item_id": [7, 8, 8]})
    hidden = pd.DataFrame({"user_id": [2, 1], "item_id": [8, 9]})
    told = Judges(sold, sold, hidden.head(0), items, None, None, ())
    cut = with_rules(versions, told, one_each)
    assert cut.champion is not None
    for arm in (*cut.arms, cut.champion):
        assert arm.table.astype(int).to_numpy().tolist() == [[1, 8, 1], [1, 9, 2], [2, 7, 1]]
        assert arm.info["caps"] == "1 rows beyond rules.max_per_category = 1 taken out, ranks closed up"
        assert arm.longest == 1  # of what sold; oil did not
    assert with_rules(versions, told, config).arms[0] is versions.arms[0]
    tables = Sides(versions.arms, window)
    assert with_rules(tables, told, one_each) is tables
    shown = with_rules(replace(versions, arms=(versions.arms[0],) * 2), replace(told, hidden=hidden), config).arms[0]
    assert shown.table.to_numpy().tolist() == [[1, 7, 2], [1, 8, 1], [2, 7, 1]]  # user 1 hid the oil
    assert shown.info["hidden"].startswith("1 rows of items that their users hid")


@pytest.mark.slow
def test_no_list_of_versions_holds_what_is_blocked_today(trained: Path) -> None:
    """Version 3 is trained again, one of before the window scored as it is, 2 and the champion have stored lists."""
    done = CliRunner().invoke(cli, ["train", "-c", str(trained / "recsys.toml"), "--as-of", "2024-03-20"])
    assert done.exit_code == 0, done.output
    old = Registry(load_config(trained / "recsys.toml").mlflow).versions()[0].version
    for names in (("3", "2"), (old, "2"), ("2", "2")):
        with_it, without = (
            sides(load_config(trained / "recsys.toml", words), *names, pd.Timestamp(END, tz="UTC"), None, Reporter())
            for words in ((), ('rules.blocked=["i00"]',))
        )
        for both, has_it in ((with_it, True), (without, False)):
            arms = [*both.arms, *([both.champion] if both.champion else [])]
            assert [bool((arm.table["item_id"] == "i00").any()) for arm in arms] == [has_it] * len(arms)
        for arm in without.arms:
            lengths = arm.table.groupby("user_id")["rank"].agg(["max", "size", "nunique"])
            assert (lengths["max"] == lengths["size"]).all()
            assert (lengths["max"] == lengths["nunique"]).all()
    assert without.champion is not None


@pytest.mark.slow
def test_seeds_and_windows_are_run_and_kept(trained: Path) -> None:
    words = ("--json", "--rerun", "--set", "report.min_seeds=2", "--set", "report.min_windows=2")
    runs = json.loads(run(trained, "1", "2", *words).stdout)["stability"]["runs"]
    names = [(run["kind"], run["name"]) for run in runs if run["kind"] != "part"]
    expected = [
        ("seed", "the seed compared"),
        ("window", "the window compared"),
        ("seed", "seed 1"),
        ("window", "1 before"),
    ]
    assert names == expected
    assert runs[3]["end"] == runs[1]["start"]
    kept = {path: path.stat().st_mtime_ns for path in (trained / "out" / "compare" / "reruns").iterdir()}
    again = json.loads(run(trained, "1", "2", *words).stdout)["stability"]["runs"]
    assert again == runs
    assert kept == {path: path.stat().st_mtime_ns for path in (trained / "out" / "compare" / "reruns").iterdir()}


@pytest.mark.slow
def test_promote_and_the_night_go_through_the_report(trained: Path) -> None:
    words = ["-c", str(trained / "recsys.toml"), "--set", "report.min_seeds=1", "--set", "report.min_windows=1"]
    asked = CliRunner().invoke(cli, ["promote", "2", *words])
    verdict = json.loads((trained / "out" / "compare" / "1-2" / "report.json").read_text())["verdict"]
    assert asked.exit_code == {"PROMOTE": 0, "HOLD": 10, "REJECT": 20}[verdict], asked.output
    forced = CliRunner().invoke(cli, ["promote", "2", *words, "--force", "--why", "the test says so"])
    assert forced.exit_code == 0
    assert "version 2" in forced.output
    night = CliRunner().invoke(cli, ["nightly", *words, "--as-of", END, "--train", "always", "--promote"])
    assert night.exit_code == 0, night.output
    assert "stays out: HOLD" in night.stderr  # the champion's recipe on the champion's data


@pytest.mark.slow
def test_items_made_during_the_window_are_in_no_list_and_the_comparison_is_valid(
    tmp_path: Path,
    make_shop: Callable[[Path, pd.DataFrame, pd.DataFrame], None],
    shop: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """A quarter of the items is made a week before the end, inside the last window, and then sells as ever."""
    events, items = shop
    moment = pd.Timestamp("2024-04-04", tz="UTC")
    is_young = items["item_id"].str[1:].astype(int) % 20 >= 15
    items = items.assign(created_at=is_young.map({True: moment, False: pd.Timestamp("2023-01-01", tz="UTC")}))
    young = items["item_id"][is_young]
    make_shop(tmp_path, events[~events["item_id"].isin(young) | (events["timestamp"] >= moment)], items)
    done = CliRunner().invoke(cli, ["train", "-c", str(tmp_path / "recsys.toml"), "--as-of", END])
    assert done.exit_code == 0, done.output
    report = json.loads(run(tmp_path, "1", "champion", "--json").stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert pd.Timestamp(report["header"]["test_start"]) < moment
    assert report["verdict"] == "HOLD"
    assert checks["'1' recommends nothing before it existed"]["status"] == "pass"
    assert checks["'1' recommends nothing before it existed"]["detail"].startswith(f"{len(young)} items are younger")
    assert report["candidate_recall"]["n"] == report["header"]["users"]
    left_out = next(told for told in report["header"]["filters"] if "made in the window" in told)
    assert "(0 left out)" not in left_out
    # the night after, they are served
    model_lists = CliRunner().invoke(cli, ["score", "-c", str(tmp_path / "recsys.toml"), "--as-of", END])
    assert model_lists.exit_code == 0, model_lists.output
    table = pd.concat(pd.read_parquet(part) for part in (tmp_path / "out" / "current").glob("part-*.parquet"))
    assert table["item_id"].isin(young).any()


def test_a_path_that_is_not_there_is_no_version(tmp_path: Path) -> None:
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    now = pd.Timestamp(END, tz="UTC")
    (tmp_path / "a.csv").write_text("user_id,item_id,rank\n1,1,1\n")
    for gone in (f"{tmp_path}/b", "nothere.parquet"):
        with pytest.raises(ConfigError, match="no such file or folder; give a table, a release's folder, or a version"):
            sides(config, f"{tmp_path}/a.csv", gone, now, None, Reporter())
    with pytest.raises(ConfigError, match="--test-start is for tables"):
        sides(config, "1", "2", now, now, Reporter())

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from recsys.cli import cli
from recsys.errors import ConfigError, DataError

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


def test_the_exit_code_follows_the_verdict_and_the_page_is_written(folder: Path) -> None:
    good = str(folder / "good.parquet")
    result = run(folder, good, good, "--test-start", START, "-o", str(folder / "same"))
    assert (result.exit_code, result.stdout.split(":")[0]) == (10, "HOLD")
    assert {p.name for p in (folder / "same").iterdir()} == {
        "report.html",
        "report.json",
        "report.md",
        "per_user.parquet",
    }


def test_tables_of_unknown_age_need_a_start(folder: Path) -> None:
    good = str(folder / "good.parquet")
    assert isinstance(run(folder, good, good).exception, ConfigError)


def test_a_table_and_a_model_do_not_mix_and_a_table_without_ranks_is_named(folder: Path) -> None:
    assert isinstance(run(folder, str(folder / "good.parquet"), "champion").exception, ConfigError)
    pd.read_parquet(folder / "good.parquet").drop(columns="rank").to_parquet(folder / "flat.parquet")
    error = run(folder, str(folder / "flat.parquet"), str(folder / "flat.parquet"), "--test-start", START).exception
    assert isinstance(error, DataError)
    assert "rank" in str(error)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Versions 1 (without text) and 2 on the same data, 3 on less."""
    for words in (("--as-of", END, "--set", 'text.fields=["language"]'), ("--as-of", END), ("--as-of", "2024-04-05")):
        done = CliRunner().invoke(cli, ["train", "-c", str(folder / "recsys.toml"), *words])
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.slow
def test_two_versions_are_compared_on_their_evaluation_window(trained: Path) -> None:
    report = json.loads(run(trained, "1", "2", "--json").stdout)
    assert report["verdict"] in {"HOLD", "PROMOTE", "REJECT"}
    assert all(check["status"] != "fail" for check in report["checks"])
    assert report["candidate_recall"]["n"] == report["header"]["users"]
    assert report["header"]["a"]["cost"]["train_s"] > 0
    assert report["header"]["a"]["info"]["seed"] == "0"
    assert [run["kind"] for run in report["stability"]["runs"]][:2] == ["seed", "window"]


@pytest.mark.slow
def test_a_version_of_other_data_is_trained_again_on_those_of_the_later_one(trained: Path) -> None:
    report = json.loads(run(trained, "3", "2", "--json").stdout)
    assert "trained again on the data of version 2" in report["header"]["a"]["info"]["lists"]
    # the same recipe on the same data with the same seed gives the same lists
    assert report["header"]["a"]["sha256"] == report["header"]["b"]["sha256"]


@pytest.mark.slow
def test_a_version_that_saw_nothing_of_the_window_is_scored_as_it_is(trained: Path) -> None:
    done = CliRunner().invoke(cli, ["train", "-c", str(trained / "recsys.toml"), "--as-of", "2024-03-20"])
    assert done.exit_code == 0, done.output
    report = json.loads(run(trained, "4", "2", "--json").stdout)
    assert report["header"]["a"]["info"]["lists"] == "of the version as it is"
    assert all(check["status"] != "fail" for check in report["checks"])


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

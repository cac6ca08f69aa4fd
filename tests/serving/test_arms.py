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


@pytest.mark.slow
def test_two_versions_are_compared_on_their_evaluation_window(folder: Path) -> None:
    for settings in ((), ("--set", "text.epochs=0")):
        trained = CliRunner().invoke(cli, ["train", "-c", str(folder / "recsys.toml"), "--as-of", END, *settings])
        assert trained.exit_code == 0, trained.output
    report = json.loads(run(folder, "1", "2", "--json").stdout)
    assert report["verdict"] in {"HOLD", "PROMOTE", "REJECT"}
    assert all(check["status"] != "fail" for check in report["checks"])
    other = CliRunner().invoke(cli, ["train", "-c", str(folder / "recsys.toml"), "--as-of", "2024-04-05"])
    assert other.exit_code == 0, other.output
    assert isinstance(run(folder, "1", "3").exception, ConfigError)

"""The main job as its user runs it: the command line on a small shop, with real files and a real registry."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from recsys.cli import cli
from recsys.config import load_config
from recsys.errors import DataError, ModelError
from recsys.registry import Registry
from serving.runs import last_runs

MakeShop = Callable[[Path, pd.DataFrame, pd.DataFrame], None]
pytestmark = pytest.mark.slow
AS_OF = "2024-04-11"


def run(folder: Path, command: str, *words: str) -> Result:
    return CliRunner().invoke(cli, [command, *words, "-c", str(folder / "recsys.toml")])


@pytest.fixture(scope="module")
def night(shop_folder: Path) -> dict[str, object]:
    """The first night of the shop."""
    result = run(shop_folder, "nightly", "--as-of", AS_OF, "--json")
    assert result.exit_code == 0, result.output
    outcome: dict[str, object] = json.loads(result.stdout)
    return outcome


def lists(folder: Path) -> pd.DataFrame:
    parts = sorted((folder / "out" / "current").glob("part-*.parquet"))
    return pd.concat([pd.read_parquet(p) for p in parts], ignore_index=True)


def test_first_night_publishes_k_unsold_items_for_every_user(
    shop_folder: Path, night: dict[str, object], shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    table = lists(shop_folder)
    assert table["user_id"].nunique() == 120
    assert (table.groupby("user_id").size() == 5).all()
    bought = shop[0].merge(table, on=["user_id", "item_id"])
    assert bought.empty
    assert table["score"].groupby(table["user_id"]).is_monotonic_decreasing.all()
    assert table["reason"].str.len().min() > 5


def test_p_is_a_probability_that_falls_down_the_list(shop_folder: Path, night: dict[str, object]) -> None:
    table = lists(shop_folder)
    assert table["p"].dtype == "float32"
    assert table["p"].between(0, 1).all()
    assert table["p"].groupby(table["user_id"]).is_monotonic_decreasing.all()
    assert table["p"].nunique() > 100
    evaluation = night["evaluation"]
    assert isinstance(evaluation, dict)
    found = evaluation["calibration"]["candidates"]
    assert found["error"] < found["base_rate"]
    assert sum(n for n, _, _ in found["bins"]) == found["n"] > 1000


def test_without_calibration_p_is_null(shop_folder: Path, night: dict[str, object], tmp_path: Path) -> None:
    words = ("--set", "ranker.calibrate=false", "--set", f"serving.output={tmp_path}", "--set", "text.epochs=0")
    uri = f"mlflow.tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    result = run(shop_folder, "nightly", "--as-of", AS_OF, "--json", *words, "--set", uri)
    assert result.exit_code == 0, result.output
    assert pd.read_parquet(tmp_path / "current" / "part-00000.parquet")["p"].isna().all()
    assert json.loads(result.stdout)["evaluation"]["calibration"] == {}


def test_lists_follow_the_planted_taste(shop_folder: Path, night: dict[str, object]) -> None:
    table = lists(shop_folder)
    taste = table["user_id"].str[1:].astype(int) % 4
    topic = table["item_id"].str[1:].astype(int) % 4
    assert (taste == topic).mean() > 0.7  # chance gives a quarter


def test_the_evaluation_names_every_source(night: dict[str, object]) -> None:
    evaluation = night["evaluation"]
    assert isinstance(evaluation, dict)
    rows = {row["source"]: row for row in evaluation["table"]}
    assert list(rows) == [
        "popular",
        "popular 7d",
        "frozen text",
        "text",
        "als",
        "item-item",
        "ease",
        "fusion",
        "ranker",
    ]
    assert rows["ranker"]["ndcg_10"] > rows["popular"]["ndcg_10"]


def test_the_same_night_again_does_nothing(shop_folder: Path, night: dict[str, object]) -> None:
    before = sorted((shop_folder / "out" / "releases").iterdir())
    again = json.loads(run(shop_folder, "nightly", "--as-of", AS_OF, "--json").stdout)
    assert again["released"]["is_new"] is False
    assert again["trained"] is False
    assert sorted((shop_folder / "out" / "releases").iterdir()) == before


def test_the_record_of_a_night_is_one_json_and_its_numbers_are_in_mlflow(
    shop_folder: Path, night: dict[str, object]
) -> None:
    record = last_runs(shop_folder / "out")[-1]
    assert (record["command"], record["outcome"], record["exit_code"]) == ("nightly", "done", 0)
    assert (record["rows"], record["users"], record["trained"]) == (600, 120, True)
    assert {"reading tables", "scoring"} <= record["stages"].keys()
    with Registry(load_config(shop_folder / "recsys.toml").mlflow).calls() as client:
        experiment = client.get_experiment_by_name("recsys").experiment_id
        runs = client.search_runs([experiment], filter_string=f"tags.`recsys.run` = '{record['run']}'")
    (logged,) = runs
    assert logged.info.run_name == f"nightly {AS_OF}"
    assert logged.data.metrics.items() >= {"rows": 600.0, "users": 120.0, "exit_code": 0.0}.items()
    assert logged.data.metrics["seconds scoring"] == record["stages"]["scoring"]


def test_bad_input_leaves_what_is_served(
    shop_folder: Path, night: dict[str, object], shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    before = lists(shop_folder)
    whole = (shop_folder / "events.parquet").read_bytes()
    try:
        (shop_folder / "events.parquet").write_bytes(whole[:100])
        result = run(shop_folder, "nightly", "--as-of", AS_OF)
        assert isinstance(result.exception, DataError)
        assert "events.parquet" in str(result.exception)
    finally:
        (shop_folder / "events.parquet").write_bytes(whole)
    pd.testing.assert_frame_equal(lists(shop_folder), before)


def test_people_can_look(shop_folder: Path, night: dict[str, object]) -> None:
    for command, words, expected in (
        ("show", ["u001"], "u001"),
        ("similar", ["i00"], "by text"),
        ("status", [], "champion"),
        ("validate", ["--as-of", AS_OF], "120 users"),
        ("evaluate", ["--as-of", AS_OF], "p of users with a history; candidates: said 0."),
        ("gc", [], "nothing to delete"),
    ):
        result = run(shop_folder, command, *words)
        assert result.exit_code == 0, (command, result.output, result.exception)
        assert expected in result.stdout


def test_a_notebook_that_loads_the_champion_sees_what_is_served(shop_folder: Path, night: dict[str, object]) -> None:
    from serving.recommender import Recommender

    model = Recommender.load(shop_folder / "recsys.toml", as_of=AS_OF)
    served = lists(shop_folder)
    columns = ["user_id", "item_id", "rank", "score", "p", "source", "reason"]
    found = model.recommend(served["user_id"].unique(), k=5)[columns]
    pd.testing.assert_frame_equal(found, served.sort_values(["user_id", "rank"], ignore_index=True)[columns])
    item = served["item_id"].iloc[0]
    assert len(model.similar(item, k=3)) == 3
    assert set(model.recommend(served["user_id"].iloc[:1], k=2)["model_version"]) == {"1"}
    with pytest.raises(ModelError, match="99"):
        Recommender.load(shop_folder / "recsys.toml", "99")


def test_p_is_no_number_where_a_notebook_counts_other_events_than_the_version_did(
    shop_folder: Path, night: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    from serving.recommender import Recommender

    other = shop_folder / "other.toml"
    text = (shop_folder / "recsys.toml").read_text()
    assert "purchase = " in text
    other.write_text(re.sub(r"purchase = [0-9.]+", "purchase = 3, view = 1", text))
    try:
        model = Recommender.load(other, as_of=AS_OF)
    finally:
        other.unlink()
    assert "learned with another data.event_weights" in capsys.readouterr().err
    assert model.recommend(lists(shop_folder)["user_id"].iloc[:1], k=3)["p"].isna().all()


def test_the_evaluation_of_a_night_is_not_made_again(shop_folder: Path, night: dict[str, object]) -> None:
    """Days later too, as long as no event came."""
    for when in (AS_OF, "2024-04-13"):
        found = run(shop_folder, "evaluate", "--as-of", when, "--json")
        assert "was trained on these data and settings: its evaluation" in found.stderr
        assert json.loads(found.stdout)["table"]


def test_the_report_fetches_a_copy_of_the_model_that_is_gone(shop_folder: Path, night: dict[str, object]) -> None:
    shutil.rmtree(shop_folder / ".recsys" / "models")
    result = run(shop_folder, "report")
    assert result.exit_code == 0, result.exception
    assert "published: 2024-04-11" in result.stdout


def test_later_events_change_nothing_of_a_backfill(
    tmp_path: Path, make_shop: MakeShop, shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    events, items = shop
    cut = pd.Timestamp("2024-03-20", tz="UTC")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    make_shop(tmp_path / "a", events, items)
    make_shop(tmp_path / "b", events[events["timestamp"] < cut].sample(frac=1, random_state=0), items)
    for name in ("a", "b"):
        result = run(tmp_path / name, "nightly", "--as-of", str(cut))
        assert result.exit_code == 0, (result.output, result.exception)
    a, b = (lists(tmp_path / n).drop(columns=["run_id"]) for n in ("a", "b"))
    pd.testing.assert_frame_equal(a, b)


def test_a_user_without_history_gets_the_popular_list_and_an_unavailable_item_is_never_shown(
    tmp_path: Path, make_shop: MakeShop, shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    from features.dataset import Dataset
    from serving.recommender import Recommender

    events, items = shop
    items = items.assign(available=items["item_id"] != "i00")
    make_shop(tmp_path, events, items)
    model = Recommender.from_config(tmp_path / "recsys.toml").fit(Dataset.from_frames(events, items))
    table = model.recommend(["u001", "nobody"], k=4)
    assert table["user_id"].tolist() == ["nobody"] * 4 + ["u001"] * 4
    assert set(table.loc[table["user_id"] == "nobody", "source"]) <= {"recent", "popular"}
    assert table.groupby("user_id")["p"].count().to_dict() == {"nobody": 0, "u001": 4}
    assert "i00" not in set(table["item_id"])
    assert model.similar(["i01"], k=3)["similar_item_id"].str[1:].astype(int).mod(4).eq(1).mean() > 0.5
    reason = model.explain("u001", table.loc[table["user_id"] == "u001", "item_id"].iloc[0])
    assert reason["reason"].str.len().iloc[0] > 5


def test_after_weeks_off_a_night_trains_promotes_and_publishes_by_itself(
    tmp_path: Path, make_shop: MakeShop, shop: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    make_shop(tmp_path, *shop)
    fast = ("--promote", "--set", "text.epochs=0", "--set", "text.head_steps=20")
    for moment, champion in (("2024-03-01", "1"), ("2024-04-11", "2")):
        result = run(tmp_path, "nightly", "--as-of", moment, *fast)
        assert result.exit_code == 0, (result.output, result.exception)
        assert set(lists(tmp_path)["model_version"]) == {champion}
        assert set(lists(tmp_path)["run_date"].astype(str)) == {moment}

"""Scores that are broken, tied or made for nobody; gates that refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.candidates import top_k
from recsys.bundle import load_arrays, save_arrays, seal
from recsys.config import load_config
from recsys.copies import Copies
from recsys.registry import Registry
from tests.faults.conftest import TODAY, Shop, dates
from tests.faults.matrix import fault


def champion_folder(shop: Shop) -> Path:
    """The verified copy of the champion."""
    registry = Registry(load_config(shop.config).mlflow)
    return Copies(registry, shop.folder / ".recsys" / "models").fetch("champion").bundle.folder


def register_changed(shop: Shop, change: Callable[[Path], None]) -> str:
    """Registers a changed copy of the champion, sealed as an honest trainer would, as champion; its sha256."""
    import shutil

    registry, copy = Registry(load_config(shop.config).mlflow), shop.folder / "changed"
    version = registry.resolve("champion")
    shutil.copytree(champion_folder(shop), copy)
    change(copy)
    info = seal(copy, {})
    tags = {key: version.tags[key] for key in ("data_until", "data_sha256")}
    with registry.run("train", {}, {}) as run:
        registry.promote(registry.register(run, copy, tags))
    return info.sha256


def spoil(file: str, array: str, value: float | None) -> Callable[[Path], None]:
    """Sets a number of an array, or of all in the file, to a value; None makes the whole array one number."""

    def change(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load_arrays(folder / file).items()}
        for name in arrays if array == "all" else [array]:
            if value is None:
                arrays[name][...] = 0.25
            else:
                arrays[name].flat[0] = value
        save_arrays(folder / file, **arrays)

    return change


@fault(20)
@pytest.mark.parametrize(
    ("file", "array", "tower", "value"),
    [
        ("text/head.safetensors", "projection", "text tower: item vectors", float("nan")),
        ("text/head.safetensors", "all", "text tower: item vectors", None),
        ("text/terms.safetensors", "directions", "text tower: item vectors", float("nan")),
        ("text/model.safetensors", "embeddings.LayerNorm.weight", "text tower: item vectors", float("inf")),
        ("cf.safetensors", "item_factors", "CF tower: item factors", float("nan")),
        ("cf.safetensors", "item_factors", "CF tower: item factors", None),
    ],
)
def test_a_broken_tower_is_named_and_refused(
    yesterday: Shop, file: str, array: str, tower: str, value: float | None
) -> None:
    register_changed(yesterday, spoil(file, array, value))
    ended = yesterday.tonight()
    assert ended.code == 6, ended.err
    assert "version 2 (sha256 " in ended.err
    assert tower in ended.err
    assert "rollback --model" in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
def test_a_text_tower_that_tells_nothing_apart_is_refused_beside_an_item_without_text(yesterday: Shop) -> None:
    items = yesterday.items()
    items.loc[3, [name for name in ("title", "description", "brand", "category") if name in items]] = ""
    yesterday.write_items(items)
    register_changed(yesterday, spoil("text/head.safetensors", "all", None))
    ended = yesterday.tonight()
    assert ended.code == 6, ended.err
    assert "text tower: item vectors are all the same" in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_of_the_fusion_are_refused(yesterday: Shop, value: float) -> None:
    def change(folder: Path) -> None:
        content = json.loads((folder / "ranker.json").read_text())
        content["fusion"]["weights"][0] = value
        (folder / "ranker.json").write_text(json.dumps(content))

    register_changed(yesterday, change)
    ended = yesterday.tonight()
    assert ended.code == 6, ended.err
    assert "ranker: fusion hold 1 numbers that are NaN or infinite" in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
def test_a_broken_calibration_is_refused_by_name(yesterday: Shop) -> None:
    def change(folder: Path) -> None:
        content = json.loads((folder / "calibration.json").read_text())
        content["pair"]["weights"][0] = float("nan")
        (folder / "calibration.json").write_text(json.dumps(content))

    register_changed(yesterday, change)
    ended = yesterday.tonight()
    assert ended.code == 6, ended.err
    assert "version 2 (sha256 " in ended.err
    assert "calibration.json: pair.weights[0] is 'nan', not a finite number" in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
@pytest.mark.parametrize("p", ["1.5", "numpy.nan"])
def test_an_impossible_p_is_refused_by_the_audit(yesterday: Shop, p: str) -> None:
    first = f"""
import numpy, pyarrow as pa, serving.batch
real = serving.batch.Scorer.score
def spoiled(self, users, k, progress=None):
    table = real(self, users, k, progress)
    broken = pa.array(numpy.full(len(table), {p}, numpy.float32))
    return table.set_column(table.schema.get_field_index("p"), "p", broken)
serving.batch.Scorer.score = spoiled
"""
    ended = yesterday.tonight(first=first)
    assert ended.code == 4, ended.err
    assert "p outside 0 to 1" in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
@pytest.mark.parametrize(
    ("scores", "code", "message"),
    [
        ("numpy.nan", 6, "scores not finite"),
        ("numpy.inf", 6, "scores not finite"),
        ("0.0", 4, "all scores are equal"),
    ],
)
def test_broken_scores_of_the_ranker_are_refused(yesterday: Shop, scores: str, code: int, message: str) -> None:
    first = f"""
import numpy
from recsys.ranker import Ranker
Ranker.score = lambda self, features, by=None, bounds=None: numpy.full(len(features), {scores})
"""
    ended = yesterday.tonight(first=first)
    assert ended.code == code, ended.err
    assert message in ended.err
    yesterday.assert_yesterday_served()


@fault(20)
def test_nan_never_ranks(yesterday: Shop) -> None:
    scores = np.array([[np.nan, 1.0, np.nan, 2.0], [np.nan] * 4, [np.inf, -np.inf, 3.0, np.nan]])
    assert top_k(scores, 3).tolist() == [[3, 1, -1], [-1, -1, -1], [2, -1, -1]]
    yesterday.assert_yesterday_served()


@fault(21)
def test_threads_and_batches_change_no_list(yesterday: Shop) -> None:
    tables = []
    for n, (threads, chunk) in enumerate([(1, 1), (1, 1000), (2, 7), (2, 1000)]):
        first = (
            f"import torch, threadpoolctl; torch.set_num_threads({threads}); threadpoolctl.threadpool_limits({threads})"
        )
        output = yesterday.folder / f"out{n}"
        words = ["--set", f"serving.chunk_users={chunk}", "--set", f"serving.output={output}"]
        ended = yesterday.tonight(*words, first=first)
        assert ended.code == 0, ended.err
        table = pd.read_parquet(output / "current" / "part-00000.parquet")
        tables.append(table[["user_id", "rank", "item_id", "source", "reason"]])
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    yesterday.assert_yesterday_served()


@fault(21)
def test_ties_go_to_the_smaller_item_id(yesterday: Shop) -> None:
    first = """
import numpy
from recsys.ranker import Ranker
Ranker.score = lambda self, features, by=None, bounds=None: numpy.arange(len(features)) // 2.0
"""
    ended = yesterday.tonight("--set", "serving.audit.min_overlap=0", first=first)
    assert ended.code == 0, ended.err
    table = yesterday.served().to_pandas()
    tied = table.groupby(["user_id", "score"])["item_id"]
    assert tied.size().max() > 1
    assert tied.apply(lambda ids: ids.is_monotonic_increasing).all()
    yesterday.assert_today_served()


@fault(22)
def test_cold_items_can_be_listed_and_withdrawn_ones_never_are(yesterday: Shop) -> None:
    gone = set(yesterday.served()["item_id"].to_pylist()[:3])
    items = yesterday.items()
    items = items.assign(available=~items["item_id"].isin(gone))
    new = items[:4].assign(item_id=["n0", "n1", "n2", "n3"], available=True)
    yesterday.write_items(pd.concat([items, new], ignore_index=True))
    assert yesterday.tonight().code == 0
    assert not set(yesterday.served()["item_id"].to_pylist()) & gone
    longer = yesterday.tonight("--set", "serving.k=60", "--set", f"serving.output={yesterday.folder}/longer")
    assert longer.code == 0, longer.err
    listed = set(pd.read_parquet(yesterday.folder / "longer" / "current" / "part-00000.parquet")["item_id"])
    assert listed >= {"n0", "n1", "n2", "n3"}
    assert not listed & gone
    yesterday.assert_today_served()


@fault(22)
def test_a_recalled_item_is_gone_at_once_without_a_training(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()
    recalled = yesterday.served()["item_id"].to_pylist()[0]
    ended = yesterday.tonight("--set", f'rules.blocked=["{recalled}", "no such"]', "--train", "never")
    assert ended.code == 0, ended.err
    assert "rules.blocked: 1 of 2 ids are not in the items table, such as 'no such'" in ended.err
    table = yesterday.served()
    assert recalled not in table["item_id"].to_pylist()
    assert set(table["model_version"].to_pylist()) == {"1"}
    yesterday.assert_today_served()


@fault(22)
def test_an_item_withdrawn_behind_the_back_of_scoring_is_refused_by_the_audit(yesterday: Shop) -> None:
    first = """
import serving.batch
real = serving.batch._audit
def withdrawn(staging, dataset, *rest):
    dataset.available[:40] = False
    return real(staging, dataset, *rest)
serving.batch._audit = withdrawn
"""
    ended = yesterday.tonight(first=first)
    assert ended.code == 4
    assert "items that may not be shown" in ended.err
    yesterday.assert_yesterday_served()


@fault(22)
def test_a_catalogue_smaller_than_k_is_listed_whole(yesterday: Shop) -> None:
    few = ["i00", "i04", "i08"]  # of one taste
    yesterday.write_items(yesterday.items().assign(available=lambda items: items["item_id"].isin(few)))
    words = ["--set", "rules.exclude_seen=false", "--set", "serving.audit.max_rows_change=1"]
    words += ["--set", "serving.audit.min_overlap=0"]
    ended = yesterday.tonight(*words)
    assert ended.code == 0, ended.err
    table = yesterday.served().to_pandas()
    assert (table.groupby("user_id").size() == 3).all()
    yesterday.assert_today_served()
    events = yesterday.events()
    taken = events[events["item_id"].isin(few)].groupby("user_id")["item_id"].nunique()
    have_all = set(taken[taken == 3].index)
    assert len(have_all) > 0.01 * events["user_id"].nunique()  # more than may go without a list for no reason
    ended = yesterday.run("nightly", "--as-of", f"{TODAY}T12:00", *words[2:])
    assert ended.code == 0, ended.err
    listed = set(yesterday.served()["user_id"].to_pylist())
    assert listed == set(events["user_id"]) - have_all


@fault(22)
def test_a_stranger_gets_the_popular_list_with_its_reason(yesterday: Shop) -> None:
    from features.dataset import Dataset
    from serving.recommender import Recommender

    dataset = Dataset.from_frames(yesterday.events(), yesterday.items())
    recommender = Recommender.from_config(yesterday.config).fit(dataset)
    table = recommender.recommend(["nobody", "u001"], k=3)
    stranger = table[table["user_id"] == "nobody"]
    assert set(stranger["source"]) <= {"recent", "popular"}
    assert stranger["reason"].str.len().min() > 5
    yesterday.assert_yesterday_served()


@fault(27)
def test_a_stale_model_warns_and_then_is_refused(yesterday: Shop) -> None:
    old = ["--train", "never", "--set", "serving.audit.data_max_hours=1e6"]
    warned = yesterday.run("nightly", "--as-of", "2024-04-28", *old)
    assert warned.code == 0, warned.err
    assert "audit warns: model age, days 17" in warned.err
    assert dates(yesterday.served()) == {"2024-04-28"}
    refused = yesterday.run("nightly", "--as-of", "2024-05-13", *old)
    assert refused.code == 4
    assert "model age, days: 32, limit 14 warns, 30 fails; recsys train, then recsys promote challenger" in refused.err
    assert dates(yesterday.served()) == {"2024-04-28"}


@fault(27)
def test_stale_data_warn_and_then_are_refused(yesterday: Shop) -> None:
    warned = yesterday.tonight()
    assert warned.code == 0
    assert "audit warns: newest event, hours 49" in warned.err
    refused = yesterday.run("nightly", "--as-of", "2024-04-14")
    assert refused.code == 4
    assert "newest event, hours: 97" in refused.err
    assert "check the events export" in refused.err
    yesterday.assert_today_served()


@fault(28)
@pytest.mark.parametrize(
    ("setting", "gate"),
    [
        ("min_coverage=1.0", "catalogue coverage"),
        ("max_gini=0.01", "exposure Gini"),
        ("min_overlap=1.0", "overlap with last release"),
    ],
)
def test_refused_lists_lie_in_quarantine_and_yesterday_is_served(yesterday: Shop, setting: str, gate: str) -> None:
    ended = yesterday.tonight("--set", f"serving.audit.{setting}")
    assert ended.code == 4
    assert gate in ended.err
    assert "limit" in ended.err
    run = yesterday.last_run()
    assert run["outcome"] == "refused"
    kept = Path(str(run["quarantine"]))
    assert len(pd.read_parquet(kept)) == 600
    assert kept.parent == yesterday.output / "quarantine"
    status = yesterday.run("status").out
    assert "yesterday's lists are served" in status
    assert "quarantine" in status
    yesterday.assert_yesterday_served()

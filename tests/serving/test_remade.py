"""Recipes of registered versions, without training any."""

import json
from pathlib import Path

import pandas as pd
import pytest

from recsys.bundle import BundleInfo
from recsys.config import Config, load_config
from recsys.registry import Fetched, ModelVersion
from serving.remade import _dataset, _key, recipe

END = pd.Timestamp("2024-04-10", tz="UTC")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A hundred days with an event an hour, of five users and seven items with numbers as ids."""
    folder = tmp_path_factory.mktemp("remade")
    hours = pd.date_range(END - pd.Timedelta(days=100), END, freq="h", inclusive="left", unit="us")
    events = pd.DataFrame({"timestamp": hours, "event_type": "buy"})
    events.assign(user_id=events.index % 5, item_id=events.index % 7).to_parquet(folder / "events.parquet")
    pd.DataFrame({"item_id": range(7), "title": "x"}).to_parquet(folder / "items.parquet")
    (folder / "recsys.toml").write_text(
        '[data]\nevents = "events.parquet"\nitems = "items.parquet"\nevent_weights = { buy = 1 }\n'
    )
    return load_config(folder / "recsys.toml")


def version(folder: Path, config: Config, name: str = "1") -> Fetched:
    """A version that was trained with these settings."""
    folder = folder / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    tags = {"data_until": END.isoformat()}
    return Fetched(BundleInfo(folder, "", {}), ModelVersion(name, "", "", END, (), tags), stale=False)


def blocking(config: Config, *items: str | int) -> Config:
    return config.model_copy(update={"rules": config.rules.model_copy(update={"blocked": list(items)})})


def test_what_is_blocked_is_this_runs_and_not_what_was_when_the_version_was_trained(
    config: Config, tmp_path: Path
) -> None:
    free, recalled = version(tmp_path, config, "1"), version(tmp_path, blocking(config, 1), "2")
    assert recipe(free, blocking(config, 3, "4")).rules.blocked == [3, "4"]
    assert recipe(recalled, config).rules.blocked == []
    dataset = _dataset(recipe(free, blocking(config, 3, "4")), END)
    assert [item for item, is_there in zip(dataset.items.ids, dataset.available, strict=True) if not is_there] == [3, 4]


def test_lists_are_kept_by_what_is_blocked_whatever_its_order(config: Config) -> None:
    dataset = _dataset(config, END)
    keys = [_key(dataset, blocking(config, *items)) for items in ((), (3,), (3, 4), (4, "3"))]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]

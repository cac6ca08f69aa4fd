"""Recipes of registered versions, without training any."""

import json
from pathlib import Path

import pandas as pd
import pytest

from recsys.bundle import BundleInfo
from recsys.config import Config, load_config
from recsys.copies import Fetched
from recsys.errors import ConfigError
from recsys.progress import Reporter
from recsys.registry import ModelVersion
from serving import comparison
from serving.comparison import Rerun, _n_windows, _run
from serving.door import dataset_of
from serving.remade import Remade, _key, _window, recipe, refuse_other_windows

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
    dataset = dataset_of(recipe(free, blocking(config, 3, "4")), END)
    assert [item for item, is_there in zip(dataset.items.ids, dataset.available, strict=True) if not is_there] == [3, 4]


def test_lists_are_kept_by_what_is_blocked_whatever_its_order(config: Config) -> None:
    dataset = dataset_of(config, END)
    keys = [_key(dataset, blocking(config, *items)) for items in ((), (3,), (3, 4), (4, "3"))]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


def test_lists_of_the_same_events_to_another_moment_are_others(config: Config) -> None:
    """Their window ends then, and so does that of the version they are held against."""
    one, other = (dataset_of(config, END + pd.Timedelta(days=days)) for days in (1, 2))
    assert one.sha256 == other.sha256
    assert _key(one, config) != _key(other, config)


def cutting(config: Config, **settings: float) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=settings)})


def test_recipes_that_cut_different_windows_are_refused_with_both_and_the_settings_that_differ(
    config: Config, tmp_path: Path
) -> None:
    pair = version(tmp_path, config, "1"), version(tmp_path, cutting(config, window_days=30.0), "2")
    with pytest.raises(ConfigError) as caught:
        refuse_other_windows(config, pair, END, 1)
    told = str(caught.value)
    assert "version 1 (2024-03-31 00:00:00+00:00 to 2024-04-10 00:00:00+00:00) cuts another window" in told
    assert "than version 2 (2024-03-10 23:00:00.000001+00:00 to 2024-04-10 00:00:00+00:00)" in told
    assert "window_days is None and 30.0" in told
    refuse_other_windows(config, pair, END, 0)  # nothing is to be trained again


def test_recipes_that_cut_the_last_windows_alike_may_part_before(config: Config, tmp_path: Path) -> None:
    """Of 2,400 and 2,160 events both shares leave 240 and 216; of 1,944 one leaves 194, the other 195."""
    pair = version(tmp_path, config, "1"), version(tmp_path, cutting(config, window_share=0.10035), "2")
    refuse_other_windows(config, pair, END, 2)
    with pytest.raises(ConfigError, match=r"window_share is 0\.1 and 0\.10035"):
        refuse_other_windows(config, pair, END, 3)


def test_recipes_with_the_same_data_settings_are_let_through_unread(config: Config, tmp_path: Path) -> None:
    gone = config.model_copy(update={"data": config.data.model_copy(update={"events": "no such file"})})
    pair = version(tmp_path, config, "1"), version(tmp_path, config.model_copy(update={"seed": 3}), "2")
    refuse_other_windows(gone, pair, END, 3)


def test_a_rerun_is_not_judged_by_what_one_arm_learned_from(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data may have changed since the recipes were looked at: what was trained has the last word."""
    pair = version(tmp_path, config, "1"), version(tmp_path, cutting(config, window_days=30.0), "2")

    def trained(own: Config, *_: object) -> Remade:
        return Remade(pd.DataFrame(), pd.Index([]), _window(own, END), {})

    monkeypatch.setattr(comparison, "train_again", trained)
    with pytest.raises(ConfigError, match="window_days is None and 30"):
        _run("seed", "seed 1", config, pair, 1, END, 10, Reporter())


@pytest.mark.parametrize(
    "rerun, seeds, windows, expected", [("never", 3, 3, 0), ("needed", 3, 2, 2), ("always", 2, 1, 1), ("needed", 1, 1, 0)]
)  # fmt: skip
def test_windows_are_looked_at_where_something_may_be_trained_again(
    config: Config, rerun: Rerun, seeds: int, windows: int, expected: int
) -> None:
    report = config.report.model_copy(update={"min_seeds": seeds, "min_windows": windows})
    assert _n_windows(config.model_copy(update={"report": report}), rerun) == expected

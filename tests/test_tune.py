"""`recsys tune` on the small shop: what it keeps, what it never sees, what it says."""

import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from features.dataset import Dataset
from features.events import EVENT
from features.ingest import load_tables
from recsys.cli import cli
from recsys.config import Config, RulesConfig, TextConfig, load_config, parse_config
from recsys.errors import AlreadyRunningError, ConfigError, StoppedError
from recsys.metrics import Interval
from recsys.progress import Reporter
from recsys.registry import Registry
from recsys.text_tower import TextTower
from training.dials import DIALS, GROUPS, free_dials, refuse_foreign, value_of, with_settings
from training.moments import Moment, cut
from training.pipeline import fit_towers, recency
from training.ranker import fit_ranker
from training.tune import Trial, Tuning, _locked, tune
from training.workbench import Quality, Workbench, encoded, without_report

AS_OF = pd.Timestamp("2024-04-11", tz="UTC")
FAST = ("text.epochs=0", "text.head_steps=20", "ranker.trees=5", "ranker.min_rows_per_leaf=10")
DATA = {"events": "e", "items": "i", "event_weights": {"buy": 1.0}}


@pytest.fixture
def config(
    tmp_path: Path,
    make_shop: Callable[[Path, pd.DataFrame, pd.DataFrame], None],
    shop: tuple[pd.DataFrame, pd.DataFrame],
) -> Config:
    make_shop(tmp_path, *shop)
    return load_config(tmp_path / "recsys.toml", FAST)


def data_of(config: Config) -> Dataset:
    return Dataset.from_tables(load_tables(config.data, AS_OF), AS_OF)


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO(), width=200))


def searched(config: Config, dataset: Dataset, n: int, groups: tuple[str, ...] = GROUPS) -> Tuning:
    return tune(dataset, config, quiet(), Registry(config.mlflow), n_trials=n, groups=groups)


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def told(found: Tuning) -> list[tuple[object, ...]]:
    return [(t.number, t.group, t.settings, t.ndcg_10, t.chosen) for t in found.trials]


def elsewhere(config: Config, folder: Path) -> Config:
    """The same settings with a cache of its own, so that nothing is known yet."""
    return config.model_copy(update={"text": config.text.model_copy(update={"cache": str(folder / "cache")})})


def bench_of(config: Config, dataset: Dataset, folder: Path) -> Workbench:
    known, windows = without_report(dataset, cut(dataset, config))
    return Workbench(known, windows, encoded(known, windows, config, quiet().stage, folder), config)


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_and_ends_like_one_that_was_not(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data_of(config)
    whole = searched(elsewhere(config, tmp_path / "whole"), dataset, 5)
    assert whole.trials[0].settings == {d.name: value_of(config, d.name) for d in free_dials(config)[0]}
    assert [t.group for t in whole.trials] == ["defaults", "ease", "ease", "ease", "ranker"]
    assert whole.trials[whole.best].ndcg_10 == max(t.ndcg_10 for t in whole.trials) >= whole.trials[0].ndcg_10

    assert len(searched(config, dataset, 2).trials) == 2
    judge = Workbench.judge
    calls = iter([True, False])

    def stopped_at_the_second(self: Workbench, settings: Config) -> Quality:
        if next(calls):
            return judge(self, settings)
        raise StoppedError(130)

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "judge", stopped_at_the_second)
        with pytest.raises(StoppedError):
            searched(config, dataset, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "judge", None)  # nothing is computed for what is there
        assert len(searched(config, dataset, 3).trials) == 3
    for name in ("ask", "tell"):  # as if killed while a trial waited to begin, and while it ran
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, name, killed)
            with pytest.raises(KeyboardInterrupt):
                searched(config, dataset, 5)
    again = searched(config, dataset, 5)
    assert told(again) == told(whole)
    assert (again.best, again.gain) == (whole.best, whole.gain)


@pytest.mark.slow
def test_garbage_in_the_report_window_changes_nothing(config: Config, tmp_path: Path) -> None:
    dataset = data_of(config)
    clean = searched(config, dataset, 3, ("ease",))
    rng = np.random.default_rng(0)
    is_report = cut(dataset, config).window == 2
    records = dataset.events()
    records["user"][is_report] = rng.integers(0, len(dataset.users), is_report.sum())
    records["item"][is_report] = 0
    records["weight"][is_report] = 1e6
    spoiled = dataset.with_events(records)
    assert told(searched(elsewhere(config, tmp_path / "b"), spoiled, 3, ("ease",))) == told(clean)


def test_users_of_the_report_window_alone_and_its_events_are_gone(config: Config) -> None:
    dataset = data_of(config)
    records = dataset.events()
    records["user"][(records["user"] == 3) & (cut(dataset, config).window < 2)] = 4  # u003 comes late now
    changed = dataset.with_events(records)
    windows = cut(changed, config)
    known, left = without_report(changed, windows)
    assert "u003" not in known.users.ids
    assert len(known.users) == len(dataset.users) - 1
    assert (left.window < 2).all()
    assert len(left.window) == len(known.timestamp) == (windows.window < 2).sum()
    before = changed.users.values(changed.user_pos[windows.window < 2])
    assert known.users.values(known.user_pos).tolist() == before.tolist()


def test_what_users_hid_before_the_report_window_stays_hidden(config: Config) -> None:
    dataset = data_of(config)
    windows = cut(dataset, config)
    hides = np.zeros(3, EVENT)
    hides["user"], hides["item"], hides["type"] = [4, 5, 5], [1, 2, 3], len(dataset.types)
    hides["timestamp"] = windows.starts[1] - np.array([1, 1, 0])
    changed = dataset.with_events(np.concatenate([dataset.events(), hides]))
    changed = replace(changed, types=(*dataset.types, "hide")).under(RulesConfig(hidden_by=("hide",)))
    known, left = without_report(changed, windows)
    assert known.users.values(known.hidden["user"]).tolist() == dataset.users.values(np.array([4, 5])).tolist()
    assert known.hidden["item"].tolist() == [1, 2]
    hidden = Moment.of(known, left, 1).histories.hidden
    assert hidden is not None
    assert len(hidden.user_pos) == 0  # not then yet


def test_recency_is_learned_as_training_would_learn_it(config: Config, tmp_path: Path) -> None:
    dataset = data_of(config)
    bench = bench_of(config, dataset, tmp_path)
    other = with_settings(config, {"cf.ease_text_share": 0.0})
    windows = cut(dataset, config)
    early = Moment.of(dataset, windows, 1)
    space = encoded(dataset, windows, config, quiet().stage, tmp_path).at(early.exists, config.seed)
    for settings in (config, other, config):
        assert bench._as_trained(settings) == recency(early, space, settings)
    assert bench.made["recency"] == 2


def test_only_what_a_setting_changes_is_made_again(config: Config, tmp_path: Path) -> None:
    config = with_settings(config, {"cf.learn_recency": False})
    bench = bench_of(config, data_of(config), tmp_path)
    first = bench.judge(config)
    once = {"text": 1, "confidence": 1, "als": 1, "item-item": 1, "ease": 1, "pairs": 1}
    assert bench.made == once
    bench.judge(with_settings(config, {"ranker.leaves": 7}))
    assert bench.made == once
    bench.judge(with_settings(config, {"cf.factors": 4}))
    assert bench.made == once | {"als": 2, "pairs": 2}
    bench.judge(with_settings(config, {"text.temperature": 0.2}))
    assert bench.made == once | {"als": 2, "text": 2, "pairs": 3}
    bench.judge(with_settings(config, {"cf.ease_text_share": 0.1}))
    assert bench.made == once | {"als": 2, "text": 2, "ease": 2, "pairs": 4}
    again = bench.judge(config)
    np.testing.assert_array_equal(again.ndcg, first.ndcg)
    assert bench.made == once | {"als": 2, "text": 2, "ease": 2, "pairs": 5}


def test_the_number_is_that_of_the_rankers_guard(config: Config, tmp_path: Path) -> None:
    dataset = data_of(config)
    windows = cut(dataset, config)
    early = Moment.of(dataset, windows, 1)
    space = encoded(dataset, windows, config, quiet().stage, tmp_path).at(early.exists, config.seed)
    learned = recency(early, space, config)
    snapshot = fit_towers(early, space, learned, quiet().stage)
    ranker = fit_ranker(snapshot, early.targets, learned, np.random.default_rng([config.seed, 3]))
    judged = bench_of(config, dataset, tmp_path).judge(config)
    assert judged.chosen == ranker.chosen
    assert judged.value == pytest.approx(ranker.guard[ranker.chosen])


def test_a_tuned_encoder_is_trained_once_and_its_vectors_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(tower: TextTower, *others: object, **_: object) -> None:  # real steps may not better so small a shop
        text = others[3]
        assert isinstance(text, TextConfig)
        epochs.append(text.epochs)
        if text.epochs:
            with torch.no_grad():
                for parameter in tower.encoder.parameters():
                    parameter.mul_(1.1)

    epochs: list[float] = []
    monkeypatch.setattr("training.pipeline.fit_encoder", moved)
    config = with_settings(config, {"text.epochs": 1.0})
    known, windows = without_report(data := data_of(config), cut(data, config))
    first, second = (encoded(known, windows, config, quiet().stage, tmp_path) for _ in range(2))
    assert epochs == [1.0, 0.0]
    np.testing.assert_array_equal(first.tuned, second.tuned)
    assert not np.allclose(first.tuned, first.frozen)


def run(folder: Path, *words: str) -> Result:
    sets = [word for setting in FAST for word in ("--set", setting)]
    command = ["tune", "--as-of", "2024-04-11", *words, *sets, "-c", str(folder / "recsys.toml")]
    return CliRunner().invoke(cli, command)


@pytest.mark.slow
def test_the_command_prints_settings_to_paste_writes_them_and_logs_trials(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "better.toml"
    words = ("--trials", "3", "--only", "ranker", "--write", str(path))
    result = run(tmp_path, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "3 of 3 trials" in result.stdout
    found = json.loads(run(tmp_path, *words, "--json").stdout)  # nothing left to do: the same outcome again
    assert found["finished"]
    assert len(found["trials"]) == 3
    assert found["trials"][0]["group"] == "defaults"
    settings = tomllib.loads(path.read_text())
    assert {f"{table}.{k}": v for table, keys in settings.items() for k, v in keys.items()} == found["settings"]
    assert {name.split(".")[0] for name in found["settings"]} <= {"ranker"}
    with Registry(config.mlflow).calls() as client:
        experiment = client.get_experiment_by_name("recsys").experiment_id
        runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    parent = runs["tune 2024-04-11"]
    assert len([r for r in runs.values() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]) == 3
    assert runs["trial 1"].data.metrics["ndcg_10"] == found["trials"][1]["ndcg_10"]
    assert runs["trial 1"].data.params["ranker.leaves"] == str(found["trials"][1]["settings"]["ranker.leaves"])


def test_a_timeout_keeps_what_is_done_and_says_how_to_go_on(config: Config, tmp_path: Path) -> None:
    result = run(tmp_path, "--timeout", "1ms", "--set", "mlflow.tracking_uri=http://127.0.0.1:9")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "1 of 30 trials" in result.stdout
    assert "not finished: the same command goes on" in result.stdout
    assert "the trials are not in MLflow" in result.stderr


def test_a_file_of_somebody_else_is_not_written_over(config: Config, tmp_path: Path) -> None:
    result = run(tmp_path, "--write", str(tmp_path / "recsys.toml"))
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert "not from recsys tune" in str(result.exception)
    refuse_foreign(tmp_path / "new.toml")


def test_a_second_search_of_the_same_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        _locked(tmp_path),
        pytest.raises(AlreadyRunningError, match=r"another search holds it \(pid \d+\)"),
        _locked(tmp_path),
    ):
        pass


def test_dials_are_settings_with_room_on_both_sides_and_one_set_beyond_is_left_alone() -> None:
    config = parse_config({"data": DATA, "cf": {"half_life_days": 10_000.0, "learn_recency": False}})
    free, fixed = free_dials(config)
    assert [dial.name for dial in fixed] == ["cf.half_life_days"]
    assert {*free, *fixed} == {*DIALS}
    for dial in free:
        assert dial.low < value_of(config, dial.name) < dial.high
        assert value_of(with_settings(config, {dial.name: dial.low}), dial.name) == dial.low


def test_what_training_learns_by_itself_is_no_dial() -> None:
    free, fixed = free_dials(parse_config({"data": DATA}))
    assert {d.name for d in DIALS} - {d.name for d in (*free, *fixed)} == {"cf.half_life_days", "cf.history_decay"}


def outcome(low: float) -> Tuning:
    trials = tuple(
        Trial(n, "cf", {"cf.alpha": 20.0 - n, "cf.factors": 64}, value, "trees", 1.0)
        for n, value in enumerate((0.1, 0.2))
    )
    return Tuning(trials, 1, Interval(0.1, low, 0.3, 50), 50, 2, Path("x"))


def test_a_difference_within_noise_is_said_to_be() -> None:
    noisy, sure = outcome(-0.1), outcome(0.1)
    assert "within noise" in "\n".join(noisy.sentences())
    assert "within noise" not in "\n".join(sure.sentences())
    assert noisy.toml() == ["[cf]", "alpha = 19.0"]

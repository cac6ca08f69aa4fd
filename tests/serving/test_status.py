"""What a person on call reads."""

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recsys.config import Config, parse_config
from recsys.errors import ResourceError
from serving.publish import ReleaseStore
from serving.status import Served, Standing, show_status, standing
from tests.faults.small import aged, damage, release


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}}
    return parse_config({"data": data, "serving": {"output": str(tmp_path)}, "mlflow": {"tracking_uri": "file:/none"}})


def record(
    output: Path, outcome: str, exit_code: int | None = 0, error: str | None = None, hours: float = 0, **facts: object
) -> None:
    """A run that began so many hours ago."""
    began = datetime.now(UTC) - timedelta(hours=hours)
    fields: dict[str, Any] = {
        "run": "r", "command": "nightly", "as_of": "2024-01-02T00:00:00+00:00", "began": began.isoformat(), "pid": 1,
        "outcome": outcome, "exit_code": exit_code, "error": error, "stage": "scoring", **facts,
    }  # fmt: skip
    (output / "runs").mkdir(exist_ok=True)
    (output / "runs" / f"{began:%Y-%m-%dT%H%M%S.%fZ}.r.json").write_text(json.dumps(fields))


def test_before_the_first_night_it_says_how_to_begin(config: Config) -> None:
    state = standing(config)
    assert (state.verdict, state.next) == ("nothing is published yet", "run: recsys nightly")
    assert state.aliases is None
    assert "file:/none" in dict(state.lines())["models"]  # which registry, and why it does not work


def test_what_is_served_how_old_and_what_came_before(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-01", "a")
    done, _ = release(tmp_path, "2024-01-02", "b")
    aged(done, 2)
    os.utime(done / "manifest.json")  # as a copy may do
    record(tmp_path, "done")
    state = standing(config)
    assert (state.verdict, state.next, state.previous, state.pinned) == ("ok", "nothing to do", "2024-01-01.a", False)
    assert state.served is not None
    assert vars(state.served) == {
        "release": "2024-01-02.b", "run_date": "2024-01-02", "age_hours": 2.0, "rows": 6, "users": 2,
        "model_version": "1", "damage": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "code", "verdict", "todo"),
    [
        ("failed", 3, "FAILED", "mend what the error names"),
        ("refused", 4, "FAILED", "quarantine"),
        ("failed", 5, "FAILED", "gc --delete"),
        ("failed", 6, "FAILED", "registry"),
        ("failed", 7, "published, but the report failed", "recsys report"),
        ("stopped", 124, "FAILED", "--deadline"),
        ("failed", 1, "FAILED", "look at the error"),
        ("running", None, "LATE: the last run was killed", "goes on where it stopped"),
    ],
)
def test_each_end_of_a_run_says_what_to_do(
    config: Config, tmp_path: Path, outcome: str, code: int | None, verdict: str, todo: str
) -> None:
    release(tmp_path, "2024-01-01", "a")
    record(tmp_path, outcome, code, "events.parquet: [red]\x1b is bad")
    state = standing(config)
    assert state.verdict.startswith(verdict)
    assert todo in state.next
    console = Console(file=io.StringIO(), width=60)
    show_status(config, console, as_json=False)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "events.parquet: [red]  is bad\n" in printed
    assert printed.splitlines()[0].startswith("state")


def test_a_run_at_work_is_no_dead_one(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-01", "a")
    with ReleaseStore(tmp_path).lock():
        record(tmp_path, "running", None)
        assert "at work" in standing(config).verdict


def test_pinned_damaged_and_late_are_said_first(config: Config, tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    release(tmp_path, "2024-01-02", "b")
    record(tmp_path, "done")
    ReleaseStore(tmp_path).rollback()
    assert "rollback --unpin" in standing(config).next
    ReleaseStore(tmp_path).unpin()
    aged(first, 5 * 24)
    assert standing(config).verdict == "LATE: no new release for 5.0 days"
    damage(first / "part-00000.parquet")
    state = standing(config)
    assert state.verdict.startswith("BROKEN")
    assert "recsys nightly" in state.next
    (first / "manifest.json").unlink()
    assert json.loads(json.dumps(standing(config).to_dict()))["served"]["age_hours"] is None


def test_lists_that_are_out_are_not_called_failed(config: Config, tmp_path: Path) -> None:
    """The comparison of a new version comes after them, and may meet the deadline."""
    release(tmp_path, "2024-01-01", "a")
    record(tmp_path, "stopped", 124, "the deadline passed", release="2024-01-01.a")
    assert standing(config).verdict == "published, but stopped before its end"
    record(tmp_path, "failed", 5, "out/current: Input/output error", release="2024-01-01.a")
    assert standing(config).verdict == "published, but failed before its end"
    record(tmp_path, "running", None, release="2024-01-01.a")  # and no lock is held
    assert standing(config).verdict == "published, but killed before its end"


def test_a_clock_that_was_ahead_hides_no_run(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-01", "a")
    record(tmp_path, "done", hours=-5000)
    record(tmp_path, "failed", 3, "events.parquet: gone", hours=1)
    assert standing(config).verdict.startswith("FAILED")


def test_lists_of_some_users_hide_no_night_that_failed(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-01", "a")
    record(tmp_path, "failed", 3, "events.parquet: gone", hours=1)
    record(tmp_path, "done", is_part=True)
    assert standing(config).verdict.startswith("FAILED")


@pytest.mark.parametrize("ended", [("done", 0), ("refused", 4), ("running", None)])
def test_a_backfill_hides_no_night_that_failed_and_is_none(
    config: Config, tmp_path: Path, ended: tuple[str, int]
) -> None:
    release(tmp_path, "2024-01-02", "a")
    record(tmp_path, "done", hours=25)
    record(tmp_path, *ended, hours=24, as_of="2023-12-01T00:00:00+00:00")
    assert standing(config).verdict == "ok"
    record(tmp_path, "failed", 3, "bad rows", hours=2, as_of="2024-01-03T00:00:00+00:00")
    record(tmp_path, *ended, hours=1, as_of="2023-12-01T00:00:00+00:00")
    record(tmp_path, "done", as_of="2024-02-01T00:00:00+00:00", moved=False, is_pinned=False)  # of a day to come
    assert standing(config).verdict.startswith("FAILED")


@pytest.mark.parametrize(
    "facts", [{"as_of": "2023-12-01T00:00:00+00:00"}, {"as_of": "2093-01-01T00:00:00+00:00"}, {"is_part": True}]
)
def test_a_run_that_was_to_move_current_all_the_same_counts(
    config: Config, tmp_path: Path, facts: dict[str, Any]
) -> None:
    release(tmp_path, "2024-01-02", "b")
    record(tmp_path, "done", hours=2)
    record(tmp_path, "failed", 5, "the disk is full", **facts)
    assert standing(config).verdict == "ok"
    record(tmp_path, "failed", 5, "the disk is full", move_current=True, **facts)
    assert standing(config).verdict.startswith("FAILED")


def test_a_second_run_of_the_same_day_that_fails_is_told(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-02", "a")
    record(tmp_path, "done", hours=2)
    record(tmp_path, "failed", 5, "the disk is full", as_of="2024-01-02T05:00:00+00:00")
    assert standing(config).verdict.startswith("FAILED")


def test_each_line_says_what_there_is_or_that_there_is_none() -> None:
    bare = Standing("ok", "nothing to do", None, None, False, None, {}, "out")
    assert dict(bare.lines()) == {
        "state": "ok", "next": "nothing to do", "served": "nothing", "pinned": "no", "before it": "none",
        "last run": "none", "models": "none registered", "folder": "out",
    }  # fmt: skip
    served = Served("2024-01-02.a", "2024-01-02", 2.0, 6000, 2, "7", "part-00000.parquet: missing")
    run = {
        "command": "nightly", "as_of": "2024-01-02T05:00:00+00:00", "began": datetime.now(UTC).isoformat(), "pid": 1,
        "outcome": "failed", "exit_code": 5, "stage": "scoring", "error": "the disk is full",
    }  # fmt: skip
    aliases = {"previous": "6", "champion": "7"}
    said = dict(replace(bare, served=served, previous="2024-01-01.a", last_run=run, aliases=aliases).lines())
    assert said["served"].endswith("old: 6,000 rows for 2 users, model version 7")
    assert (said["damage"], said["its error"]) == ("part-00000.parquet: missing", "the disk is full")
    assert said["last run"].startswith("nightly as of 2024-01-02T05:00, began ")
    assert said["last run"].endswith(" ago, failed with exit code 5 in scoring")
    assert (said["before it"], said["models"]) == ("2024-01-01.a", "champion is version 7, previous is version 6")
    down = replace(bare, aliases=None, registry_error="no store")
    assert dict(down.lines())["models"] == "the registry does not answer: no store"


def test_a_run_that_hangs_is_late(config: Config, tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    aged(done, 80)
    record(tmp_path, "running", None, hours=72)
    with ReleaseStore(tmp_path).lock():
        state = standing(config)
    assert state.verdict.startswith("LATE")
    assert "kill 1" in state.next


def test_what_is_pinned_is_not_late_while_nights_go_on(config: Config, tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    release(tmp_path, "2024-01-02", "b")
    ReleaseStore(tmp_path).rollback()
    aged(first, 80)
    record(tmp_path, "done", hours=3)
    assert standing(config).verdict == "ok, pinned by a rollback"
    (tmp_path / "runs" / next(os.walk(tmp_path / "runs"))[2][0]).unlink()
    record(tmp_path, "done", hours=60)
    assert standing(config).verdict.startswith("LATE")


def test_advice_about_damaged_lists_can_be_followed(config: Config, tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    store.rollback()
    damage(first / "part-00000.parquet")
    with pytest.raises(ResourceError, match="part-00000"):  # it said that all was done
        store.rollback()
    assert standing(config).next == (
        "make it anew at once: recsys rollback --unpin, then recsys nightly; "
        "or serve what the rollback took away: recsys rollback --undo"
    )
    store.undo()
    damage(second / "part-00001.parquet")  # and what came before it is damaged, too
    assert standing(config).next == "make it anew at once: recsys nightly"


def test_lists_of_a_day_to_come_are_a_warning(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2093-01-01", "a")
    record(tmp_path, "done")
    assert standing(config).verdict == "WARNING: lists of a day to come are served, 2093-01-01"


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("training_error", "no new model"),
        ("stale_model", "last verified copy"),
        ("lost_registry", "begins anew"),
        ("promotion_error", "could not be judged"),
        ("audit_warning", "grow too old"),
    ],
)
def test_a_night_that_ended_well_may_have_warned(config: Config, tmp_path: Path, fact: str, words: str) -> None:
    release(tmp_path, "2024-01-01", "a")
    record(tmp_path, "done", 0, None, 0, **{fact: True if fact == "stale_model" else "it broke"})
    state = standing(config)
    assert state.verdict.startswith("WARNING")
    assert words in state.verdict
    assert ("it warned", "it broke") in state.lines() or fact == "stale_model"

"""What a person on call reads."""

import io
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recsys.config import Config, parse_config
from serving.publish import ReleaseStore
from serving.status import show_status, standing
from tests.faults.small import damage, release


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}}
    return parse_config({"data": data, "serving": {"output": str(tmp_path)}, "mlflow": {"tracking_uri": "file:/none"}})


def record(output: Path, outcome: str, exit_code: int | None = 0, error: str | None = None) -> None:
    began = datetime.now(UTC)
    fields: dict[str, Any] = {
        "run": "r", "command": "nightly", "as_of": "2024-01-02T00:00:00+00:00", "began": began.isoformat(), "pid": 1,
        "outcome": outcome, "exit_code": exit_code, "error": error, "stage": "scoring",
    }  # fmt: skip
    (output / "runs").mkdir(exist_ok=True)
    (output / "runs" / f"{began:%Y-%m-%dT%H%M%S.%fZ}.r.json").write_text(json.dumps(fields))


def test_before_the_first_night_it_says_how_to_begin(config: Config) -> None:
    state = standing(config)
    assert (state.verdict, state.next) == ("nothing is published yet", "run: recsys nightly")
    assert state.aliases is None


def test_what_is_served_how_old_and_what_came_before(config: Config, tmp_path: Path) -> None:
    release(tmp_path, "2024-01-01", "a")
    done, _ = release(tmp_path, "2024-01-02", "b")
    two_hours_ago = time.time() - 7200
    os.utime(done / "manifest.json", (two_hours_ago, two_hours_ago))
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
        ("failed", 3, "FAILED", "mend the export"),
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
    days_ago = time.time() - 5 * 86_400
    os.utime(first / "manifest.json", (days_ago, days_ago))
    assert standing(config).verdict == "LATE: no new release for 5.0 days"
    damage(first / "part-00000.parquet")
    state = standing(config)
    assert state.verdict.startswith("BROKEN")
    assert state.next.startswith("go back at once: recsys rollback")
    (first / "manifest.json").unlink()
    assert json.loads(json.dumps(standing(config).to_dict()))["served"]["age_hours"] is None

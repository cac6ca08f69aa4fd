"""The files of docs/deploy are what they say: they parse, name commands that exist, and retry what a retry can mend."""

import ast
import configparser
import re
import runpy
import shutil
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from recsys import errors
from recsys.cli import cli

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Commands of recsys and their options."""
    found = re.findall(r"bin/recsys (\w+)([^|>\n]*)", text)
    return [(name, re.findall(r"--[\w-]+", rest)) for name, rest in found]


@pytest.mark.parametrize("file", ["crontab", "recsys.service"])
def test_every_command_and_option_exists(file: str) -> None:
    commands = commands_in((DEPLOY / file).read_text())
    assert commands
    for name, options in commands:
        known = {word for parameter in cli.commands[name].params for word in parameter.opts}
        assert set(options) <= known


def test_cron_lines_have_five_fields_and_no_bare_percent() -> None:
    lines = [x for x in (DEPLOY / "crontab").read_text().splitlines() if x and x[0] not in "#M"]
    assert lines
    for line in lines:
        assert re.match(r"([\d*/,-]+ ){5} ?/", line)
        assert "%" not in line  # cron reads it as a newline


def test_systemd_reads_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    for name in ("recsys.service", "recsys.timer"):
        text = (DEPLOY / name).read_text().replace("/srv/shop/.venv/bin/recsys", shutil.which("true") or "/bin/true")
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("recsys.service", "recsys.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_tries_again_only_what_another_try_can_mend() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "recsys.service")
    never = set(map(int, unit["Service"]["RestartPreventExitStatus"].split()))
    kinds = [errors.ConfigError, errors.DataError, errors.AuditError, errors.ReportError, errors.TrainingError]
    assert never == {1, *(kind.exit_code for kind in kinds)}
    assert int(unit["Service"]["SuccessExitStatus"]) == errors.AlreadyRunningError.exit_code


class SkipError(Exception):
    pass


class FailError(Exception):
    pass


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(0, None), (75, SkipError), (5, RuntimeError), (6, RuntimeError), (124, RuntimeError), (143, RuntimeError)]
    + [(code, FailError) for code in (1, 2, 3, 4, 7, 8)],
)
def test_the_dag_skips_retries_or_fails_by_exit_code(
    monkeypatch: pytest.MonkeyPatch, code: int, outcome: type[Exception] | None
) -> None:
    tasks: list[Any] = []
    sdk, exceptions = types.ModuleType("airflow.sdk"), types.ModuleType("airflow.exceptions")

    def task(**_: object) -> Any:
        def keep(run: Any) -> Any:
            tasks.append(run)
            return lambda: None

        return keep

    sdk.__dict__.update(dag=lambda **_: lambda make: make, task=task)
    exceptions.__dict__.update(AirflowFailException=FailError, AirflowSkipException=SkipError)
    for name, module in (
        ("airflow", types.ModuleType("airflow")),
        ("airflow.sdk", sdk),
        ("airflow.exceptions", exceptions),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(DEPLOY / "airflow_dag.py"))
    words: list[str] = []

    def run(command: list[str], **_: object) -> types.SimpleNamespace:
        words.extend(command)
        return types.SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    if outcome is None:
        tasks[0](datetime(2024, 4, 12, tzinfo=UTC))
        assert words[words.index("--as-of") + 1] == "2024-04-12T00:00:00+00:00"
        return
    with pytest.raises(outcome, match=f"{code}|at work"):
        tasks[0](datetime(2024, 4, 12, tzinfo=UTC))


def test_the_image_runs_the_night_as_nobody_special() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    command = next(ast.literal_eval(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD"))
    known = {word for parameter in cli.commands[command[0]].params for word in parameter.opts}
    assert {word for word in command if word.startswith("-")} <= known
    assert "USER recsys" in lines
    assert 'ENTRYPOINT ["recsys"]' in lines

"""What a run leaves in its log."""

import errno
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from recsys import whole
from recsys.config import parse_config
from recsys.errors import AlreadyRunningError, DataError, ResourceError
from recsys.progress import Page, Reporter
from serving.publish import ReleaseStore
from serving.runs import Run, last_runs, recorded


def a_run(output: Path, reporter: Reporter) -> Run:
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}}
    settings = {"data": data, "serving": {"output": str(output)}, "mlflow": {"tracking_uri": "file:/none"}}
    return Run(parse_config(settings), "nightly", pd.Timestamp("2024-01-02", tz="UTC"), reporter)


@pytest.mark.parametrize(("error", "code"), [(KeyError("seat"), 1), (DataError("bad rows"), 3)])
def test_a_json_log_ends_with_the_exit_code_of_a_defect_too(tmp_path: Path, error: Exception, code: int) -> None:
    log = io.StringIO()
    run = a_run(tmp_path, Reporter(Page(file=log), "json"))
    with pytest.raises(type(error)), recorded(run, needs_lock=False):
        raise error
    last = json.loads(log.getvalue().splitlines()[-1])
    assert (last["run"], last["exit_code"]) == (run.id, code)
    assert str(error) in last["error"]


def test_a_run_that_may_not_begin_is_no_run_that_never_was(tmp_path: Path) -> None:
    """`status` said "ok" of nights that found the output folder unfit, until their lists were late."""
    (tmp_path / "current").mkdir()
    with pytest.raises(ResourceError, match="no link to a release"), recorded(a_run(tmp_path, Reporter())):
        pass
    (record,) = last_runs(tmp_path)
    assert (record["outcome"], record["exit_code"]) == ("failed", 5)


def test_a_run_refused_for_the_lock_leaves_no_record(tmp_path: Path) -> None:
    with ReleaseStore(tmp_path).lock(), pytest.raises(AlreadyRunningError), recorded(a_run(tmp_path, Reporter())):
        pass
    assert last_runs(tmp_path) == []


def test_a_last_record_that_a_disk_refused_once_is_none_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = a_run(tmp_path, Reporter()), whole.write_whole

    def refusing(path: Path, text: str) -> None:
        if '"done"' in text:
            raise OSError(errno.EIO, "Input/output error")
        real(path, text)

    monkeypatch.setattr("serving.runs.write_whole", refusing)
    with pytest.raises(ResourceError, match="Input/output error"), recorded(run):
        run.facts["release"] = "2024-01-02.a"
    (record,) = last_runs(tmp_path)
    assert (record["outcome"], record["exit_code"], record["release"]) == ("failed", 5, "2024-01-02.a")

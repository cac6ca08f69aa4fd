"""What a run leaves in its log."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from recsys.config import parse_config
from recsys.errors import DataError
from recsys.progress import Page, Reporter
from serving.runs import Run, recorded


@pytest.mark.parametrize(("error", "code"), [(KeyError("seat"), 1), (DataError("bad rows"), 3)])
def test_a_json_log_ends_with_the_exit_code_of_a_defect_too(tmp_path: Path, error: Exception, code: int) -> None:
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}}
    settings = {"data": data, "serving": {"output": str(tmp_path)}, "mlflow": {"tracking_uri": "file:/none"}}
    log = io.StringIO()
    run = Run(parse_config(settings), "train", pd.Timestamp("2024-01-02", tz="UTC"), Reporter(Page(file=log), "json"))
    with pytest.raises(type(error)), recorded(run, needs_lock=False):
        raise error
    last = json.loads(log.getvalue().splitlines()[-1])
    assert (last["run"], last["exit_code"]) == (run.id, code)
    assert str(error) in last["error"]

import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from recsys.cli import cli
from recsys.errors import DeadlineError
from recsys.stop import stoppable

PROGRAM = """
import hashlib, sys, time
from recsys import cli
from recsys.stop import stoppable

def work():
    with stoppable():
        print("ready", flush=True)
        {work}

cli.cli.main = lambda standalone_mode: work()
cli.main()
"""
IN_PYTHON = "time.sleep(60)"
IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # one call that never looks at signals


@pytest.mark.parametrize(
    ("work", "number", "code"),
    [(IN_PYTHON, signal.SIGTERM, 143), (IN_PYTHON, signal.SIGINT, 130), (IN_C, signal.SIGINT, 130)],
)
def test_a_signal_ends_the_run_in_five_seconds_with_its_code(work: str, number: signal.Signals, code: int) -> None:
    program = PROGRAM.format(work=work)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        began = time.monotonic()
        child.send_signal(number)
        try:
            _, errors = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == code
    assert time.monotonic() - began < 5
    assert errors.startswith(b"recsys: stopped")


def test_past_the_deadline_the_run_ends_and_before_it_nothing_happens() -> None:
    with pytest.raises(DeadlineError, match="run again"), stoppable(0.05):
        time.sleep(5)
    with stoppable(0.05):
        pass
    time.sleep(0.1)  # the alarm is off


@pytest.mark.parametrize("value", ["90", "-3h", "0s", "soon"])
def test_a_deadline_names_its_unit(value: str) -> None:
    result = CliRunner().invoke(cli, ["nightly", "--deadline", value])
    assert result.exit_code == 2
    assert "90m" in result.output

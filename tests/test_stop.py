import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from recsys import stop
from recsys.cli import cli
from recsys.errors import DeadlineError
from recsys.stop import part_of_deadline, stoppable

PROGRAM = """
import hashlib, sys, time
from recsys import cli
from recsys.stop import part_of_deadline, stoppable

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


def test_a_part_of_the_deadline_ends_alone_and_what_follows_has_the_rest() -> None:
    def part_and_rest() -> None:
        with stoppable(3):
            with pytest.raises(DeadlineError), part_of_deadline(1 / 3):
                time.sleep(5)
            assert 0.9 < time.monotonic() - began < 2.5
            time.sleep(5)

    began = time.monotonic()
    with pytest.raises(DeadlineError):
        part_and_rest()
    assert 2.9 < time.monotonic() - began < 6
    with stoppable(4):
        with part_of_deadline(0.1):
            pass
        time.sleep(0.6)  # the alarm of the part is off
    with part_of_deadline(1 / 3):  # without a deadline
        time.sleep(0.01)


class Slow:
    """Garbage that takes a second to collect."""

    def __del__(self) -> None:
        time.sleep(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_part_ends_although_python_dropped_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training then took all of the deadline, and the night ended without lists."""
    monkeypatch.setattr(stop, "GRACE_S", 1.0)

    def work() -> None:
        with stoppable(30), part_of_deadline(0.01):
            Slow()
            time.sleep(5)

    with pytest.raises(DeadlineError):
        work()


@pytest.mark.parametrize(("seconds", "ends", "code"), [(6, "the rest", 0), (60, "stopped while computing", 124)])
def test_a_long_call_into_c_may_outlast_its_part_but_not_the_deadline(seconds: int, ends: str, code: int) -> None:
    """The first takes longer than the grace that a deadline gives, the second longer than all there is."""
    program = f"""
import hashlib, time
from recsys.errors import DeadlineError
from recsys.stop import part_of_deadline, stoppable
def work(n):
    began = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(n))  # one call that never looks at signals
    return n / (time.perf_counter() - began)
rate = work(200_000)
with stoppable({2 if code else 40}):
    try:
        with part_of_deadline(0.01):
            work({seconds} * rate)
    except DeadlineError:
        print("the rest", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ends in done.stdout + done.stderr
    assert done.returncode == code


@pytest.mark.parametrize("value", ["90", "-3h", "0s", "soon"])
def test_a_deadline_names_its_unit(value: str) -> None:
    result = CliRunner().invoke(cli, ["nightly", "--deadline", value])
    assert result.exit_code == 2
    assert "90m" in result.output

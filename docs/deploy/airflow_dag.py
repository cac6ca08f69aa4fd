"""Every night at three, and any past night on request: `airflow backfill create --dag-id recsys ...`.

A task of a past date is a backfill for recsys too: it reads nothing after its date and leaves `current` alone.
"""

import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk import dag, task

RECSYS = ["/srv/shop/.venv/bin/recsys"]
CONFIG = ["-c", "/srv/shop/recsys.toml"]
RETRY = {
    5,
    6,
    124,
    130,
    137,
    143,
}  # disk, registry, deadline, stopped, killed: the next try goes on where this one stopped
BUSY = 75


@dag(
    schedule="0 3 * * *",
    start_date=datetime(2024, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
)
def recsys() -> None:
    """One task: recsys keeps its own order of stages, resumes by itself and publishes all or nothing."""

    @task(execution_timeout=timedelta(hours=3, minutes=5))
    def night(data_interval_end: datetime | None = None) -> None:
        """Runs the night of the interval's end; fails for good where another try cannot help."""
        assert data_interval_end is not None
        as_of = ["--as-of", data_interval_end.isoformat()]
        code = subprocess.run(
            [*RECSYS, "nightly", *CONFIG, *as_of, "--promote", "--deadline", "3h", "--log", "json"], check=False
        ).returncode
        code = 128 - code if code < 0 else code  # Python's way to say "by signal 9", such as out of memory
        if code == BUSY:
            raise AirflowSkipException("another run is at work")
        if code in RETRY:
            raise RuntimeError(f"recsys ended with {code}; another try goes on where it stopped")
        if code:
            raise AirflowFailException(f"recsys ended with {code}: needs a person; see: recsys status")

    night()


recsys()

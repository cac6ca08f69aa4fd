"""One run: the lock it holds, and its JSON under `runs/`, written when it begins and again when it ends.

A record that still says "running" while nobody holds the lock belongs to a run that was killed. Nothing heavy is
imported here, so that a run which may not begin (locked, read-only, full) says so within a second or two.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recsys.config import Config
from recsys.errors import AlreadyRunningError, DeadlineError, RecsysError, ResourceError, StoppedError, as_ours, shown
from recsys.machine import peak_memory_mib
from recsys.progress import Reporter
from recsys.whole import write_whole
from serving.publish import ReleaseStore
from serving.releases import made_hours_ago, named

if TYPE_CHECKING:
    from recsys.registry import Registry


PUBLISHED = (7, 8)  # exit codes of nights whose lists are out: their errors say so


@dataclass
class Run:
    """A run at work.

    Args:
        config, as_of: what it was asked.
        command: such as "nightly".
        reporter: where progress goes.
        facts: what it found out so far; ends in its record and, numbers, in MLflow.
    """

    config: Config
    command: str
    as_of: pd.Timestamp
    reporter: Reporter
    facts: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=time.monotonic)

    @cached_property
    def store(self) -> ReleaseStore:
        """The output folder."""
        return ReleaseStore(Path(self.config.serving.output))

    @cached_property
    def registry(self) -> "Registry":
        """One for the whole run: a server found dead is not asked, and waited for, again."""
        from recsys.registry import Registry

        return Registry(self.config.mlflow)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return round(time.monotonic() - self._clock, 3)

    def write(self, outcome: str, error: BaseException | None = None) -> None:
        """Writes the record; outcome is "running", "done", "refused" (by the audit), "stopped" or "failed"."""
        code = 0 if error is None else exit_code_of(error)
        record = {
            "run": self.id,
            "command": self.command,
            "as_of": self.as_of.isoformat(),
            "began": self.began.isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "outcome": outcome,
            "exit_code": None if outcome == "running" else code,
            "error": None if error is None else message_of(error),
            "stage": self.reporter.stage_now,
            "seconds": self.seconds,
            "stages": self.reporter.seconds,
            "peak_memory_mib": peak_memory_mib(),
            **self.facts,
        }
        folder = self.store.output / "runs"
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{self.began:%Y-%m-%dT%H%M%S.%fZ}.{self.id}.json", json.dumps(record, indent=2))

    def log_metrics(self, exit_code: int) -> None:
        """Its numbers to MLflow; where that fails, a line says so: they are in the record too."""
        numbers = {name: value for name, value in self.facts.items() if isinstance(value, (int, float))}
        numbers |= {f"seconds {stage}": value for stage, value in self.reporter.seconds.items()}
        numbers |= {"seconds": self.seconds, "exit_code": exit_code}
        tags = {"recsys.run": self.id, "recsys.command": self.command, "as_of": self.as_of.isoformat()}
        try:
            with self.registry.run(f"{self.command} {self.as_of:%Y-%m-%d}", {}, tags) as logged:
                logged.log_metrics(numbers)
        except (StoppedError, DeadlineError):
            raise
        except RecsysError as error:
            self.reporter.say(f"the numbers of this run are not in MLflow: {error}")


@contextmanager
def recorded(run: Run, needs_lock: bool = True) -> Iterator[Run]:
    """Holds the output folder's lock for a run, if it publishes, and keeps its record.

    Raises:
        AlreadyRunningError: another run holds the lock; no record is kept of the one refused.
        ResourceError: also for what the system refused on the way: a disk, a file, memory.
    """
    run.reporter.run_id = run.id
    with ExitStack() as held:
        try:
            if needs_lock:
                held.enter_context(run.store.lock())
            run.write("running")
            yield run
            run.write("done")
        except AlreadyRunningError:
            raise
        except BaseException as error:
            told = as_ours(error)
            with suppress(ResourceError):  # the disk that ended the run may not take its record either
                run.write(_outcome(told), told)
            if isinstance(told, RecsysError) and needs_lock and exit_code_of(told) not in PUBLISHED:
                with suppress(OSError):  # nobody may be left to read it
                    run.reporter.say(_still_served(run.store))
            if exit_code_of(told) in (3, 4, *PUBLISHED):  # not after a signal, nor where disk or registry are to blame
                run.log_metrics(exit_code_of(told))
            if run.reporter.log == "json":
                run.reporter.fail(message_of(told), exit_code_of(told))
                if isinstance(told, RecsysError):  # the traceback of a defect comes after, as Python writes it
                    told.is_told = True
            if told is error:
                raise
            raise told from error
        run.log_metrics(0)


def _still_served(store: ReleaseStore) -> str:
    """What readers have, and how old it is, for whoever reads of a failure at four in the morning."""
    try:
        release = store.current()
        if release is None:
            return "nothing is served yet; see: recsys status"
        return f"still served: {release.name}, {age(made_hours_ago(release))} old; see: recsys status"
    except (ResourceError, OSError, ValueError):
        return "what is served cannot be read; see: recsys status"


def age(hours: float | None) -> str:
    """How old something is, for a person.

    >>> age(26.25), age(71.0), age(None)
    ('26.2 h', '3.0 days', 'who knows how')
    """
    if hours is None:
        return "who knows how"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def exit_code_of(error: BaseException) -> int:
    """What the program ends with; 1 for a defect."""
    return error.exit_code if isinstance(error, RecsysError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def last_runs(output: Path) -> list[dict[str, Any]]:
    """Records of all runs, newest first; what cannot be read is left out."""
    found = []
    for path in sorted((output / "runs").glob("*.json"), reverse=True):
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "outcome" in content:
                found.append(content)
    return found


def _outcome(error: BaseException) -> str:
    return {4: "refused", 124: "stopped", 130: "stopped", 143: "stopped"}.get(exit_code_of(error), "failed")


def message_of(error: BaseException) -> str:
    """What a record or a log says of an error; a defect's words are escaped."""
    return str(error) if isinstance(error, RecsysError) else f"{type(error).__name__}: {shown(error, 300)}"

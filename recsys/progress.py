"""What a run says while it works: a bar on a terminal, plain lines or JSON lines in a log."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Literal, NoReturn

from rich import progress as bars
from rich.console import Console

from recsys.errors import plain
from recsys.types import Progress

LINE_EVERY_S = 20.0

Log = Literal["plain", "json"]


class Page(Console):
    """Standard output or error; a reader that went away is a BrokenPipeError, for which rich would end the program."""

    def on_broken_pipe(self) -> NoReturn:
        """Called by rich."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Reporter:
    """Opens named stages on a console (standard error, so that printed results stay clean).

    Args:
        console: where to write; one on standard error by default.
        log: "json" makes every line one object with time, run, stage and, as they apply, done, total, seconds, message.

    Attributes:
        run_id: what JSON lines name; set by the run that owns the reporter.
        seconds: how long each finished stage took; a stage opened twice counts twice.
        stage_now: the stage at work, or the last one; a run that fails says in which.
    """

    def __init__(self, console: Console | None = None, log: Log = "plain") -> None:
        self.console = console or Page(stderr=True)
        self.log: Log = log
        self.run_id = ""
        self.seconds: dict[str, float] = {}
        self.stage_now = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage of work; call what it yields with (done, total)."""
        began, self.stage_now = time.monotonic(), name
        if self.console.is_terminal and self.log == "plain":
            with self._bar(name) as report:
                yield report
        else:
            yield self._lines(name, began)
        took = time.monotonic() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
        self._write(f"{name}: {took:.1f} s", seconds=round(took, 3))

    def say(self, text: str) -> None:
        """One plain line."""
        self._write(text, message=text)

    def show(self, render: Callable[[Console], None]) -> None:
        """A table, in plain logs alone."""
        if self.log == "plain":
            with suppress(OSError):
                render(self.console)

    def fail(self, text: str, exit_code: int) -> None:
        """The last line of a run that failed."""
        self._write(f"recsys: {text}", error=text, exit_code=exit_code)

    def _write(self, text: str, **fields: object) -> None:
        if self.log == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = json.dumps({"time": now, "run": self.run_id, "stage": self.stage_now} | fields)
        lines = [plain(line, len(line)) for line in text.split("\n")]  # names of files may hold what moves a cursor
        with suppress(OSError):  # a log that nobody reads any more, or whose disk is full, is no reason to lose a night
            self.console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Progress]:
        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def _lines(self, name: str, began: float) -> Progress:
        last = began

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY_S and done < total:
                last = now
                self._write(f"{name}: {done:,} of {total:,}, {now - began:.0f} s", done=done, total=total)

        return report

"""What a run says while it works: a bar on a terminal, plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 20.0

Report = Callable[[int, int], None]


class Reporter:
    """Opens named stages on a console (standard error, so that printed results stay clean).

    Args:
        console: where to write; one on standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """A stage of work; call what it yields with (done, total)."""
        began = time.monotonic()
        if self.console.is_terminal:
            with self._bar(name) as report:
                yield report
        else:
            yield _line_reporter(self.console, name, began)
        self.say(f"{name}: {time.monotonic() - began:.1f} s")

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Report]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_reporter(console: Console, name: str, began: float) -> Report:
    last = began

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done < total:
            last = now
            console.print(f"{name}: {done:,} of {total:,}, {now - began:.0f} s", markup=False, highlight=False)

    return report

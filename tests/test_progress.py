import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from recsys import progress
from recsys.progress import Page, Reporter


def written(reporter: Reporter) -> str:
    return reporter.console.file.getvalue()  # type: ignore[attr-defined]


def reporter(log: progress.Log) -> Reporter:
    made = Reporter(Console(file=io.StringIO(), width=40), log)
    made.run_id = "r1"
    return made


def test_a_json_log_is_one_object_a_line_with_time_run_stage_done_and_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    log = reporter("json")
    with log.stage("scoring") as report:
        report(3, 10)
    log.say('[red]"quoted"[/red] :tea:\n')
    log.fail("events.parquet: bad", 3)
    lines = [json.loads(line) for line in written(log).splitlines()]
    assert all({"time", "run", "stage"} <= line.keys() and line["run"] == "r1" for line in lines)
    assert (lines[0]["stage"], lines[0]["done"], lines[0]["total"]) == ("scoring", 3, 10)
    assert lines[1]["seconds"] >= 0
    assert lines[2]["message"] == '[red]"quoted"[/red] :tea:\n'
    assert (lines[3]["error"], lines[3]["exit_code"]) == ("events.parquet: bad", 3)


def test_a_plain_log_says_the_same_and_takes_nothing_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    log = reporter("plain")
    with log.stage("scoring") as report:
        report(3, 10)
    log.say("[red]x[/red] :tea:")
    assert written(log).splitlines() == ["scoring: 3 of 10, 0 s", "scoring: 0.0 s", "[red]x[/red] :tea:"]
    assert list(log.seconds) == ["scoring"]


def test_a_log_that_nobody_reads_or_that_fills_its_disk_costs_no_night() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    for log in (os.fdopen(writes, "w"), Path("/dev/full").open("w")):  # noqa: SIM115 - closing them fails, too
        told = Reporter(Page(file=log))
        with told.stage("scoring"):
            told.say("a line")
        told.show(lambda console: console.print("a table"))
        assert list(told.seconds) == ["scoring"]
        os.dup2(os.open(os.devnull, os.O_WRONLY), log.fileno())
        log.close()


def test_a_page_whose_reader_has_gone_says_so() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    page = Page(file=os.fdopen(writes, "w"))
    with pytest.raises(BrokenPipeError):
        page.print("a table")
    os.dup2(os.open(os.devnull, os.O_WRONLY), writes)
    page.file.close()


def test_what_would_move_a_cursor_or_turn_a_text_around_is_blank_and_lines_stay() -> None:
    log = reporter("plain")
    log.say("a\x1b[31m/b\u202e\r.parquet: no file\n  second line")
    assert written(log) == "a [31m/b  .parquet: no file\n  second line\n"

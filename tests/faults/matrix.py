"""The 33 faults and what must happen; `docs/reliability.md` is made from these rows and the tests that carry them."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One fault: what breaks, what must happen, and, where it does not hold whole, what is short of it."""

    fault: str
    must: str
    short_of_it: str = ""


ROWS = {
    1: Row("kill -9 at any moment, and at every step", "old or new release whole; the rerun heals and finishes"),
    2: Row("SIGTERM, Ctrl-C", "stops in 5 s, exit 143 or 130, lock free, nothing published"),
    3: Row("disk full, quota", "exit 5 with path and bytes needed and free; size estimated before scoring"),
    4: Row("I/O error on read, write, fsync, rename, each call in turn", "no publication; the file named"),
    5: Row(
        "10M events, one user with 1M, one item with half",
        "bounded batches; peak memory of scoring flat in users",
        "training holds all events in memory; reading, scoring and the audit do not (1.6 GB for 5 as for 50 million)",
    ),
    6: Row("output read-only or on another file system", "refused before any work, in 2 s"),
    7: Row(
        "two runs at once; a lock left by a dead one", "the second exits 75 naming pid and since; a dead one's is free"
    ),
    8: Row("reader during publication", "one run_id in everything read"),
    9: Row("same inputs again", "nothing to do; identical bytes"),
    10: Row(
        "backfill of a past date",
        "only events before it; `current` does not move unless asked",
        "the champion scores, which may have been trained later: the audit warns of it; name an older one with `--model`",
    ),
    11: Row("rollback, then the next night", "under 1 s; a pinned rollback is respected"),
    12: Row(
        "retention",
        "never current, previous, pinned or aliased; dry run by default",
        "of an aliased model version the newest release stays, not all of them: else nothing of a champion ever goes",
    ),
    13: Row("empty, missing or partial input", "yesterday stays; says what is missing"),
    14: Row(
        "file cut at 0, 3, 4, 10, n-1 bytes; 100 random bit flips",
        "detected, file named",
        "in input files written without page checksums, a flipped bit of a value reads as another value",
    ),
    15: Row("column missing, renamed, retyped, unit of time changed", "column, expected, got and first file are named"),
    16: Row(
        "null, blank, huge, float ids; ids with control characters or `/`",
        "quarantined with rows; over 0.1% stops",
        "an id with `/` is an id like any other and is kept: no id ever becomes a path",
    ),
    17: Row(
        "duplicates, out-of-order and late events",
        "f(x+x) = f(x); shuffled rows give the same bytes; late ones counted",
    ),
    18: Row(
        "times in 1970, 9999, the future; ms for s; clock changes; TZ; clock set back",
        "quarantined or explicit; same output in four zones",
    ),
    19: Row(
        "NFC and NFD, right-to-left, emoji, NUL, lone surrogate, 10 MB text, empty text",
        "no crash; titles round trip; bounded time and memory",
    ),
    20: Row("NaN, infinite or constant scores in either tower or the weights", "refused, tower named; NaN never ranks"),
    21: Row("ties; 1 or 2 threads; batches of 1 or 1,000", "same lists; ties by item id"),
    22: Row(
        "cold users and items; catalogue smaller than k; item withdrawn after training",
        "fallback with its reason; a withdrawn item is never published",
        "a batch lists users who have events; a stranger gets the popular list from `Recommender.recommend`",
    ),
    23: Row(
        "registry down, slow, locked, 500",
        "30 s at most, then the last verified local copy, flagged; without one yesterday stays",
        "the wait is for a server that does not answer; one that answers each call late is waited for call by call",
    ),
    24: Row("alias moved or deleted during the run", "resolved once, pinned"),
    25: Row(
        "model file corrupt, wrong hash, wrong dimension, other id map", "refused before scoring; both hashes named"
    ),
    26: Row("hostile artifact: pickle, zip bomb, `..`, symlink, absurd header", "refused; the marker file is not made"),
    27: Row("stale model or data", "warns, then refuses to publish"),
    28: Row(
        "an audit gate fails",
        "exit 4; lists kept in quarantine; yesterday served",
        "shops differ too much for default bands of coverage and Gini: those refuse only the extreme until they are set; "
        "lists much like the last ones warn",
    ),
    29: Row("the report fails after publication", "exit 7; data stay; `recsys report` makes it again"),
    30: Row(
        "markup, formulas, escapes, newlines in titles and ids",
        "plain text in HTML, Markdown, terminals and logs",
        "no command writes CSV, so there is no cell to defuse; who exports to a spreadsheet must do it there",
    ),
    31: Row(
        "secrets and user ids in logs, manifests, notebooks",
        "none",
        "an error about a bad id shows that id; the notebooks show households of a public, simulated demo",
    ),
    32: Row("no network at run time", "none is needed: a whole night passes with the network cut off"),
    33: Row("deadline passed", "exit 124; progress kept; yesterday stays"),
    34: Row(
        "training is due and fails",
        "the champion scores and its lists are published; exit 8; the next night tries again",
    ),
}


def fault(number: int) -> pytest.MarkDecorator:
    """Marks a test as one that injects the fault of a row."""
    assert number in ROWS
    return pytest.mark.fault(number)


def carriers() -> dict[int, list[str]]:
    """Names of the tests that carry each row, read from the sources, long ones included."""
    found: dict[int, list[str]] = {number: [] for number in ROWS}
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                for number in _numbers(node):
                    found[number].append(node.name)
    return found


def _numbers(test: ast.FunctionDef) -> list[int]:
    calls = [d for d in test.decorator_list if isinstance(d, ast.Call) and isinstance(d.func, ast.Name)]
    return [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "fault"]


HEAD = """# Reliability

<!-- made by `make faults`; edit tests/faults/matrix.py instead -->

The promise: **at any instant, after any single fault, a reader of `current` gets one complete, verified release, and no
release that was acknowledged is ever lost.** Every test below injects its fault for real, in processes of their own, and
ends in that assertion (`tests/faults/served.py`). `make test` runs the short ones, `make faults` all of them, and then
writes this table.

A reader resolves the link once, then reads (`folder = Path("out/current").resolve()`): whoever opens file after file
through the link may meet two nights. What exit codes and `recsys status` tell: [deploy](deploy.md).

"""


def page(results: Mapping[int, str]) -> str:
    """The whole of `docs/reliability.md`.

    Args:
        results: what the last run of each row's tests came to.
    """
    tests = carriers()
    lines = ["| # | fault | what happens | tried by | last result |", "|---|---|---|---|---|"]
    for number, row in ROWS.items():
        tried = ", ".join(f"`{name.removeprefix('test_')}`" for name in tests[number])
        lines.append(f"| {number} | {row.fault} | {row.must} | {tried} | {results.get(number, 'not run')} |")
    short = [f"- **{number}, {row.fault}**: {row.short_of_it}." for number, row in ROWS.items() if row.short_of_it]
    return HEAD + "\n".join([*lines, "", "## What falls short of it", "", *short, ""])


def page_without_results(text: str) -> str:
    """A page as it would be before any test ran, to hold claims against claims."""
    return "\n".join(line.rsplit("|", 2)[0] if line.startswith("| ") else line for line in text.splitlines())

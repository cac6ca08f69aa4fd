"""Releases of six rows by the real protocol: what the loops over hundreds of faults publish."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from recsys.errors import ConfigError, ResourceError
from serving import releases
from serving.publish import ReleaseStore
from serving.retention import remove_leftovers

KEEP = 3  # releases that retention in `do` leaves


def stage(store: ReleaseStore, date: str, run: str) -> Path:
    """Two staged parts."""
    staging = store.begin(date, run)
    for part in range(2):
        releases.write_part(staging, part, pa.table({"user_id": [part] * 3, "run_id": [run] * 3}))
    return staging


def release(output: Path, date: str, run: str, version: str = "1", **publish: bool) -> tuple[Path, bool]:
    """One publication; the release and whether `current` points to it."""
    store = ReleaseStore(output)
    with store.lock():
        facts = {"key": {"run": run}, "run_date": date, "model": {"version": version}}
        done = store.finish(stage(store, date, run), facts)
        return done, store.publish(done, **publish)


def do(output: Path, what: str, name: str, asked: bool) -> None:
    """One step of a sequence by the real program: a night with a name for its release and whether it was asked to move
    `current`, retention, or a method of the store. What is refused must change nothing.
    """
    store = ReleaseStore(output)
    if what == "night":
        release(output, *name.split("."), allow_backfill=asked)
    elif what == "retention":
        remove_leftovers(store, KEEP)
    else:
        with suppress(ConfigError, ResourceError):
            getattr(store, what)()


def aged(release: Path, hours: float) -> None:
    """Makes a release as if it had been made so many hours ago."""
    content = releases.manifest(release) | {"made": (datetime.now(UTC) - timedelta(hours=hours)).isoformat()}
    content["manifest_sha256"] = releases._digest(content)
    (release / "manifest.json").write_text(json.dumps(content))


def damage(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def publish_for_ever(output: Path, name: str, acks: Path) -> None:
    """One release after the other; each is written to `acks` once its publication was reported as done."""
    with acks.open("a") as ledger:
        for n in range(1_000_000):
            done, _ = release(output, "2024-01-02", f"{name}x{n}")
            ledger.write(f"{done.name}\n")
            ledger.flush()

"""The crash-safe swap: readers of `current` see one complete, verified release, whatever dies when.

.staging/<date>.<run>/part-*.parquet -> manifest with hashes -> audit -> rename into releases/
-> new symlink renamed over `current`; every step is synced before the next
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import AlreadyRunningError, ResourceError


@dataclass(frozen=True)
class Status:
    """What is served: release name, its date, age in hours, sizes, model version, and whether it is pinned."""

    release: str
    run_date: str
    age_hours: float
    rows: int
    users: int
    model_version: str
    previous: str
    pinned: bool


class ReleaseStore:
    """Releases under an output folder.

    Args:
        output: the folder; made on first use.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.releases = output / "releases"
        self.pin = output / "pinned"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the output folder for one run; the system frees it when the process dies.

        Raises:
            AlreadyRunningError: another process holds it.
            ResourceError: the folder cannot be written.
        """
        with _named(self.output):
            self.releases.mkdir(parents=True, exist_ok=True)
            handle = (self.output / ".lock").open("a+")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise AlreadyRunningError(
                    f"{self.output}: another run holds the lock ({handle.read().strip() or 'unknown'}); wait for it or stop it"
                ) from None
            handle.truncate(0)
            handle.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
            handle.flush()
            yield

    def check_space(self, n_bytes: int) -> None:
        """Refuses before any work when the disk cannot hold the release twice over."""
        free = shutil.disk_usage(self.output).free
        if free < 2 * n_bytes:
            raise ResourceError(
                f"{self.output}: needs {2 * n_bytes:,} bytes, {free:,} are free; make room or run: recsys gc --delete"
            )

    def begin(self, run_date: str, run_id: str) -> Path:
        """An empty staging folder on the same file system, outside what readers scan."""
        staging = self.output / ".staging" / f"{run_date}.{run_id}"
        with _named(staging):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        return staging

    def write_part(self, staging: Path, number: int, table: pa.Table) -> Path:
        """One shard as Parquet with page checksums, whole or not there."""
        part = staging / f"part-{number:05d}.parquet"
        temporary = staging / f".{part.name}"
        with _named(part):
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
            _sync(temporary)
            temporary.rename(part)
        return part

    def read_staged(self, staging: Path) -> pa.Table:
        """The staged parts, read back from disk with their checksums."""
        return _read_parts(staging)

    def finish(self, staging: Path, facts: dict[str, Any]) -> Path:
        """Writes the manifest and renames the staging folder into the releases."""
        parts = sorted(staging.glob("part-*.parquet"))
        tables = [pq.read_table(p, columns=["user_id"], page_checksum_verification=True) for p in parts]
        manifest = {
            **facts,
            "rows": sum(t.num_rows for t in tables),
            "users": sum(len(t["user_id"].unique()) for t in tables),
            "schema": {f.name: str(f.type) for f in pq.read_schema(parts[0])} if parts else {},
            "parts": {p.name: _sha256(p) for p in parts},
        }
        release = self.releases / staging.name
        with _named(release):
            (staging / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))
            _sync(staging / "manifest.json")
            _sync(staging)
            if release.exists():  # a rerun after a crash between rename and swap
                shutil.rmtree(release)
            staging.rename(release)
            _sync(self.releases)
        return release

    def publish(self, release: Path, allow_backfill: bool = False) -> bool:
        """Swaps `current` to a release; True when it moved.

        It stays where it is while pinned by a rollback, and for a run date before the one served, unless
        `allow_backfill`.
        """
        self.verify(release)
        now = self.current()
        is_held = now is not None and (self.pin.exists() or release.name[:10] < now.name[:10])
        if is_held and not allow_backfill:
            return False
        if now is not None and now.name != release.name:
            self._point("previous", now)
        self._point("current", release)
        return True

    def current(self) -> Path | None:
        """The release readers see, or None."""
        return self._pointed("current")

    def previous(self) -> Path | None:
        """The release before it, or None."""
        return self._pointed("previous")

    def rollback(self) -> Path:
        """Swaps `current` and `previous`, and pins it there; later nights publish but do not move it."""
        now, before = self.current(), self.previous()
        if now is None or before is None:
            raise ResourceError(f"{self.output}: there is no earlier release to go back to")
        self.verify(before)
        self.pin.write_text(before.name)
        self._point("current", before)
        self._point("previous", now)
        return before

    def verify(self, release: Path) -> None:
        """Checks every part against the manifest.

        Raises:
            ResourceError: a part is missing, or not what its hash says.
        """
        manifest = self.manifest(release)
        for name, expected in manifest["parts"].items():
            path = release / name
            found = _sha256(path) if path.exists() else "missing"
            if found != expected:
                raise ResourceError(f"{path}: sha256 {found}, manifest says {expected}; score this date again")

    def read(self, release: Path) -> pa.Table:
        """All rows of a release, after checking it."""
        self.verify(release)
        return _read_parts(release)

    def manifest(self, release: Path) -> dict[str, Any]:
        """A release's manifest."""
        try:
            content: dict[str, Any] = json.loads((release / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise ResourceError(f"{release / 'manifest.json'}: unreadable: {error}; score this date again") from error
        return content

    def find(self, key: dict[str, str]) -> Path | None:
        """A release made from the same date, model, data and request, whole on disk."""
        for release in sorted(self.releases.glob("*.*")):
            try:
                if self.manifest(release).get("key") == key:
                    self.verify(release)
                    return release
            except ResourceError:
                continue
        return None

    def quarantine(self, staging: Path) -> Path:
        """Keeps refused lists aside for a look."""
        kept = self.output / "quarantine" / staging.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        staging.rename(kept)
        return kept

    def gc(self, keep: int, dry_run: bool = True) -> list[Path]:
        """Releases beyond the newest `keep`, and leftovers in staging; never current, previous or pinned."""
        pinned = self.pin.read_text().strip() if self.pin.exists() else ""
        kept = {p.name for p in (self.current(), self.previous()) if p is not None} | {pinned}
        old = sorted(self.releases.glob("*.*"), reverse=True)[keep:]
        gone = [r for r in old if r.name not in kept] + sorted((self.output / ".staging").glob("*"))
        if not dry_run:
            with self.lock():
                for folder in gone:
                    shutil.rmtree(folder)
        return gone

    def status(self) -> Status | None:
        """What is served, or None."""
        release = self.current()
        if release is None:
            return None
        facts = self.manifest(release)
        age = (time.time() - release.stat().st_mtime) / 3600
        before = self.previous()
        return Status(
            release.name, facts["run_date"], round(age, 1), facts["rows"], facts["users"], facts["model"]["version"],
            before.name if before else "none", self.pin.exists(),
        )  # fmt: skip

    def _point(self, name: str, release: Path) -> None:
        temporary = self.output / f".{name}.{os.getpid()}"
        with _named(self.output / name):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path("releases") / release.name)
            temporary.rename(self.output / name)
            _sync(self.output)

    def _pointed(self, name: str) -> Path | None:
        link = self.output / name
        return self.releases / link.readlink().name if link.is_symlink() else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns an error of the file system into ours, with the path."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
        raise ResourceError(
            f"{path}: {what}; nothing was published, what was served stays; mend it and run again"
        ) from error


def _read_parts(folder: Path) -> pa.Table:
    parts = sorted(folder.glob("part-*.parquet"))
    try:
        return pa.concat_tables([pq.read_table(p, page_checksum_verification=True) for p in parts])
    except (OSError, pa.ArrowInvalid) as error:
        raise ResourceError(f"{folder}: a part cannot be read back: {error}; run again") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

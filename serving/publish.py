"""The crash-safe swap: readers of `current` see one complete, verified release, whatever dies when.

.staging/<date>.<run>/part-*.parquet -> audit of what was read back -> manifest with hashes
-> rename into releases/ -> new symlink renamed over `current`; every step is synced before the next
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.errors import AlreadyRunningError, ConfigError, ResourceError
from recsys.whole import sync, write_whole
from serving import releases
from serving.releases import named


class ReleaseStore:
    """Releases under an output folder.

    Args:
        output: the folder; made on first use.

    Attributes:
        is_locked: whether this object holds the lock.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.releases = output / "releases"
        self.staging = output / ".staging"
        self.pin = output / "pinned"
        self.is_locked = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the output folder for one run; the system frees it when the process dies.

        Raises:
            AlreadyRunningError: another process holds it.
            ResourceError: a release could not be made here: read-only, full, or on two file systems.
        """
        with named(self.output):
            self.releases.mkdir(parents=True, exist_ok=True)
            self.staging.mkdir(exist_ok=True)
            handle = (self.output / ".lock").open("a+")
        with handle:
            with named(self.output / ".lock"):
                self._claim(handle.fileno())
            self._probe()
            self.is_locked = True
            try:
                yield
            finally:
                self.is_locked = False

    def check_space(self, n_bytes: int) -> None:
        """Refuses before any work when the disk cannot hold a release of `n_bytes` twice over."""
        with named(self.output):
            free = shutil.disk_usage(self.output).free
        if free < 2 * n_bytes:
            raise ResourceError(
                f"{self.output}: needs {2 * n_bytes:,} bytes, {free:,} are free; make room or run: recsys gc --delete"
            )

    def begin(self, run_date: str, run_id: str, key: dict[str, str] | None = None) -> Path:
        """A staging folder on the same file system, outside what readers scan.

        It is empty, unless a run with the same `key` died in it: then `staged_part` finds what that run finished.
        The key must settle the bytes of every part: model, data, config, code revision, users per shard.
        """
        staging = self.staging / f"{run_date}.{run_id}"
        mark, text = staging / ".key.json", json.dumps(key, sort_keys=True)
        with named(staging):
            if key is not None and mark.exists() and mark.read_text() == text:
                for unfinished in staging.glob(
                    ".*.tmp"
                ):  # of a part: who dies every hour must not fill the disk with them
                    unfinished.unlink()
                return staging
            if staging.exists():
                shutil.rmtree(staging)
            staging.mkdir()
            write_whole(mark, text)
        return staging

    def staged_part(self, staging: Path, number: int) -> Path | None:
        """The part that a run wrote before it died, when its bytes match the hash noted then; else None."""
        part = staging / releases.part_name(number)
        with named(part):
            return part if releases.record_of(part) is not None else None

    def finish(self, staging: Path, facts: dict[str, Any]) -> Path:
        """Writes the manifest and renames the staging folder into the releases.

        A release is immutable: where one with this name exists, it is returned when it holds the same parts, and
        otherwise (damaged, say) left alone, and the new one takes the next free name, such as `<date>.<run>.2`.

        Args:
            staging: what `begin` returned.
            facts: entries of the manifest, with `run_date`, `key` for `find` and `model.version` for `status`; rows,
                users, schema and the sha256 of each part and of the manifest are added.
        """
        releases.seal(staging, facts)
        release, number = self.releases / staging.name, 1
        while release.exists():
            if self.is_whole(release) and releases.manifest(release)["parts"] == releases.manifest(staging)["parts"]:
                with named(staging):
                    shutil.rmtree(staging)
                return release
            number += 1
            release = self.releases / f"{staging.name}.{number}"
        with named(release):
            staging.rename(release)
            sync(self.releases)
        return release

    def publish(self, release: Path, allow_backfill: bool = False) -> bool:
        """Swaps `current` to a release; whether `current` points to it now.

        It stays where it is while pinned by a rollback, and for a run date before the one served, unless
        `allow_backfill`. A served release that was damaged does not become `previous`.
        """
        releases.verify(release)
        served = self.current()
        is_sound = served is not None and self.is_whole(served)
        with self.moving():
            now = self.current()
            if now == release:
                return True
            is_past = now is not None and release.name[:10] < now.name[:10]
            if self.is_pinned or (is_past and not allow_backfill):
                return False
            if is_sound and now is not None:
                self._point("previous", now)
            self._point("current", release)
        return True

    def rollback(self) -> Path:
        """Swaps `current` and `previous`, and pins it there; later nights publish but do not move it.

        Needs no run lock, so it works while a night is running. Once pinned it stays: whoever runs it twice, for safety or
        after a cut connection, must not bring back what was taken away; see `undo`.

        Raises:
            ConfigError: there is no earlier release; trying again would not help.
            ResourceError: the earlier release is damaged, which may be one that is pinned already.
        """
        nowhere = ConfigError(f"{self.output}: there is no earlier release to go back to; see: recsys status")
        if self.current() is None:  # not even the folder, perhaps
            raise nowhere
        with self.moving():
            if pinned := self.pinned_release():
                releases.verify(pinned)
                return pinned
            now, before = self.current(), self.previous()
            if now == before and self.is_pinned:  # one that died between its two moves goes on where it was
                before = self._held()
            if now is None or before is None or now == before:
                raise nowhere
            releases.verify(before)
            with named(self.pin):
                write_whole(self.pin, before.name)
            self._point("previous", now)
            self._point("current", before)
        return before

    def undo(self) -> Path:
        """Takes a rollback back: what it took away is served again, and nights move `current`.

        Raises:
            ConfigError: no rollback holds `current`.
            ResourceError: that release is damaged.
        """
        nothing = ConfigError(f"{self.output}: no rollback holds current; see: recsys status")
        if not self.is_pinned:
            raise nothing
        with self.moving():
            held = self._held()
            back = self.previous() if self.current() == held else self.current()  # one that died after its first move
            if back is None or back == held:
                raise nothing
            releases.verify(back)
            self._point("current", back)
            self._point("previous", held)
            self._unpin()
        return back

    def unpin(self) -> bool:
        """Lets the next night move `current` again; whether it was pinned.

        What the rollback took away is no longer `previous`: another rollback must not go there.
        """
        if not self.is_pinned:
            return False
        with self.moving():
            if self.pinned_release() and (self.output / "previous").is_symlink():
                with named(self.output / "previous"):
                    (self.output / "previous").unlink()
            self._unpin()
        return True

    def _held(self) -> Path:
        """The release that a rollback names in the pin."""
        return self.releases / self.pin.read_text().strip()

    def _unpin(self) -> None:
        with named(self.pin):
            self.pin.unlink(missing_ok=True)
            sync(self.output)

    @property
    def is_pinned(self) -> bool:
        """Whether a rollback holds `current` in place."""
        return self.pin.exists()

    def pinned_release(self) -> Path | None:
        """What a rollback made current and holds there, or None."""
        now = self.current()
        return now if now is not None and self.is_pinned and self._held() == now else None

    def current(self) -> Path | None:
        """The release readers see, or None."""
        return self._pointed("current")

    def previous(self) -> Path | None:
        """The release before it, or None."""
        return self._pointed("previous")

    def last_whole(self) -> Path | None:
        """What is served, to compare with; None where nothing is, or where it is damaged: that must not stop a night."""
        served = self.current()
        return served if served is not None and self.is_whole(served) else None

    def find(self, key: dict[str, str]) -> Path | None:
        """A release made from the same key, whole on disk; its run may have died before it published it."""
        for release in self.all():
            try:
                if releases.manifest(release).get("key") == key:
                    releases.verify(release)
                    return release
            except ResourceError:
                continue  # a damaged one is not what was asked for
        return None

    def quarantine(self, staging: Path) -> Path:
        """Keeps refused lists aside for a look."""
        kept = self.output / "quarantine" / staging.name
        with named(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            if kept.exists():
                shutil.rmtree(kept)
            releases.drop_hidden(staging)
            staging.rename(kept)
        return kept

    def _claim(self, handle: int) -> None:
        try:
            _try_lock(handle)
        except BlockingIOError:
            holder = os.pread(handle, 100, 0).decode(errors="replace").strip() or "pid unknown"
            raise AlreadyRunningError(
                f"{self.output}: another run holds the lock ({holder}); wait for it or stop it"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}".encode())

    def _probe(self) -> None:
        """Looks at the links, and renames an empty folder the way a release will go, so that what forbids either shows before
        hours of work.
        """
        for name in ("current", "previous"):
            self._pointed(name)
        probe = self.staging / ".probe"
        with named(self.releases):
            probe.mkdir(exist_ok=True)
            probe.rename(self.releases / probe.name).rmdir()

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Moves of links and aliases wait for each other: a rollback by hand and a night that publishes."""
        with named(self.output):
            handle = (self.output / ".swap").open("a")
        with handle:
            with named(self.output / ".swap"):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _point(self, name: str, release: Path) -> None:
        temporary = self.output / f".{name}.new"
        with named(self.output / name):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path("releases") / release.name)
            temporary.rename(self.output / name)
            sync(self.output)

    def _pointed(self, name: str) -> Path | None:
        link = self.output / name
        if link.is_dir() and not link.is_symlink():
            raise ResourceError(
                f"{link}: a folder, no link to a release: whatever copied it followed links; remove it, then run: recsys nightly"
            )
        return self.releases / link.readlink().name if link.is_symlink() else None

    def all(self) -> list[Path]:
        """Releases, oldest run date first, then oldest made; damaged ones too."""
        found = self.releases.glob("????-??-??.*/")  # whatever else somebody keeps there is not ours to delete
        return sorted(found, key=lambda p: (p.name[:10], p.stat().st_mtime_ns, p.name))

    def is_whole(self, release: Path) -> bool:
        """Whether `verify` finds nothing wrong."""
        try:
            releases.verify(release)
        except ResourceError:
            return False
        return True


def _try_lock(handle: int) -> None:
    """Takes the lock, or raises BlockingIOError; tries for a moment, since `recsys status` touches it to see who holds it."""
    for _ in range(3):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

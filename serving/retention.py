"""What may go from an output folder: old releases, old refused lists, leftovers of runs that died."""

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from recsys.errors import ResourceError
from serving.publish import ReleaseStore
from serving.releases import named


def leftovers(store: ReleaseStore, keep: int, aliased: Collection[str] | None = ()) -> list[Path]:
    """Releases and refused lists beyond the newest `keep`, and all of staging, a night in progress included.

    Never current, previous, pinned, what any link in the output folder points to, or the newest release of a
    model version in `aliased`: that is what would be served again after `rollback --model`.

    Args:
        aliased: versions that an alias of the registry names; None where the registry is down: then the newest
            release of every version stays.
    """
    newest_first = store.all()[::-1]
    kept = {link.readlink().name for link in store.output.glob("*") if link.is_symlink()}
    kept |= {store.pin.read_text().strip() if store.is_pinned else ""} | _newest_of(store, newest_first, aliased)
    refused = sorted((store.output / "quarantine").glob("*/"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    old = [r for r in newest_first[max(0, keep) :] if r.name not in kept]
    return old + refused[max(0, keep) :] + sorted(store.staging.glob("*/"))


def remove_leftovers(store: ReleaseStore, keep: int, aliased: Collection[str] | None = ()) -> list[Path]:
    """Deletes `leftovers` and returns them.

    Raises:
        AlreadyRunningError: a run is in progress.
    """
    if not store.is_locked:
        with store.lock():
            return remove_leftovers(store, keep, aliased)
    gone = leftovers(store, keep, aliased)
    for folder in gone:
        with named(folder):
            if folder.parent == store.releases:  # half a release must not lie there when we die here
                folder = folder.rename(store.staging / f"{folder.name}.gone")
            shutil.rmtree(folder)
    return gone


def _newest_of(store: ReleaseStore, newest_first: list[Path], aliased: Collection[str] | None) -> set[str]:
    newest: dict[str, str] = {}
    for release in newest_first:
        with suppress(ResourceError, KeyError):  # a damaged release is nothing to go back to
            newest.setdefault(str(store.manifest(release)["model"]["version"]), release.name)
    return {name for version, name in newest.items() if aliased is None or version in aliased}

"""What may go: old releases and refused lists by count; caches, leftovers and records by age, see `_rules`.

Never current, previous, pinned or aliased, and nothing that a link leads to.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

from recsys.config import Config
from recsys.errors import ModelError, ResourceError
from recsys.registry import Registry
from serving import releases
from serving.publish import ReleaseStore
from serving.releases import named

DEAD_DAYS = 1  # nobody still writes what was begun a day ago, and the next night has other data to go on with
UNUSED_DAYS = 30  # all of it is made or fetched again where it is missed; a model older than that may not serve
RECORD_DAYS = 90  # a quarter is what people ask about; refused rows hold user ids, so they are not kept for long

_HEX = "[0-9a-f]"
_UNFINISHED = rf"\..+\.{_HEX}{{32}}\.tmp"  # of `recsys.whole.replacing`
_RERUN = rf"{_HEX}{{12}}-{_HEX}{{12}}-\d+-[\w-]+"  # of `serving.remade.train_again`


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may go: why, and how many bytes its files hold."""

    path: Path
    why: str
    n_bytes: int


@dataclass(frozen=True)
class Rule:
    """One kind of thing that goes by age.

    Args:
        root: a folder that the config names, which may lie behind links.
        below: where in it; nothing is done where a link is on the way from `root`.
        names: of all that is meant, a folder's with "/" at its end; strict, as other things may lie beside it.
        days: how long it, and all in it, was neither written nor marked as used.
        what: it is, for the listing.
        spared: names that stay at any age.
    """

    root: Path
    below: str
    names: str
    days: int
    what: str
    spared: Collection[str] = ()

    def found(self, now: float) -> Iterator[tuple[Path, str]]:
        """What goes, by name, and why."""
        below = Path(self.below)
        if any((self.root / part).is_symlink() for part in [below, *below.parents][:-1]):
            return
        for path in sorted((self.root / below).glob("*")):
            is_meant = re.fullmatch(self.names, path.name + "/" * path.is_dir()) and not path.is_symlink()
            if is_meant and path.name not in self.spared and _days_since(path, now) > self.days:
                yield path, f"{self.what}, untouched for {self.days} day{'s' * (self.days != 1)}"


def leftovers(
    store: ReleaseStore, keep: int, aliased: Collection[str] | None = (), cache: Path | None = None
) -> list[Leftover]:
    """Releases and refused lists beyond the newest `keep`, all of staging, a night in progress included, and by age
    what `_rules` lists.

    Never current, previous, pinned, what any link in the output folder points to, or the newest release of a
    model version in `aliased`: that is what would be served again after `rollback --model`.

    Args:
        aliased: versions that an alias of the registry names, see `aliased_in`; None where the registry is down: then
            the newest release of every version stays, and every copy of a model.
        cache: `text.cache`; what lies in it and beside it is left alone without.
    """
    newest_first = store.all()[::-1]
    links = {link.readlink().name for link in store.output.glob("*") if link.is_symlink()}
    links |= {store.pin.read_text().strip() if store.is_pinned else ""} | _newest_of(newest_first, aliased)
    refused = sorted((store.output / "quarantine").glob("*/"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    old = [r for r in newest_first[max(0, keep) :] if r.name not in links]
    by_count = [(release, f"beyond the newest {keep} releases, and no name for it") for release in old]
    by_count += [(lists, f"refused lists beyond the newest {keep}") for lists in refused[max(0, keep) :]]
    by_count += [(staging, "of a run that died, or is at work") for staging in sorted(store.staging.glob("*/"))]
    kept = [release for release in newest_first if release not in old]
    by_age = [found for rule in _rules(store, kept, aliased, cache) for found in rule.found(time.time())]
    return [Leftover(path, why, _size(path)) for path, why in by_count + by_age if not path.is_symlink()]


def remove_leftovers(
    store: ReleaseStore, keep: int, aliased: Collection[str] | None = (), cache: Path | None = None
) -> list[Leftover]:
    """Deletes `leftovers` and returns them.

    Raises:
        AlreadyRunningError: a run is in progress.
    """
    if not store.is_locked:
        with store.lock():
            return remove_leftovers(store, keep, aliased, cache)
    with store.moving():  # or an undo between a look at one link and the next would leave what is served without a name
        gone = leftovers(store, keep, aliased, cache)
    for path in (one.path for one in gone):
        with named(path):
            if path.parent == store.releases:  # half a release must not lie there when we die here
                path = path.rename(store.staging / f"{path.name}.gone")
            if path.is_dir():
                shutil.rmtree(path, onerror=_unless_gone)
            else:
                path.unlink(missing_ok=True)
    return gone


def aliased_in(config: Config) -> set[str] | None:
    """Number and sha256 of every version that an alias names; None where the registry does not answer."""
    try:
        versions = Registry(config.mlflow).versions()
    except (ModelError, ResourceError):  # a full disk may be why: room is made without
        return None
    return {name for version in versions if version.aliases for name in (version.version, version.sha256)}


def _rules(
    store: ReleaseStore, kept: Collection[Path], aliased: Collection[str] | None, cache: Path | None
) -> list[Rule]:
    """What goes by age. Shops may share a cache: what another one uses is marked as used, and no rule breaks a night,
    as all in there is fetched or made again.
    """
    out, unfinished = store.output, "a file left unfinished"
    rules = [
        Rule(out, "quarantine", r"\d{4}-\d\d-\d\d\.parquet", RECORD_DAYS, "rows that were refused"),
        *(Rule(out, below, _UNFINISHED, DEAD_DAYS, unfinished) for below in ("quarantine", "runs", "compare/reruns")),
        Rule(out, "runs", rf".+Z\.{_HEX}{{8}}\.json", RECORD_DAYS, "record of a run", _last_records(out / "runs")),
        # the first vouches for the second, and so must never be there alone
        Rule(out, "compare/reruns", rf"{_RERUN}\.json", UNUSED_DAYS, "a recipe trained again for a comparison"),
        Rule(out, "compare/reruns", rf"{_RERUN}\.parquet", UNUSED_DAYS + 1, "lists of a recipe trained again"),
    ]
    if cache is None:
        return rules
    beside = cache.parent
    rules += [
        Rule(beside, cache.name, rf"{_HEX}{{32}}\.safetensors", UNUSED_DAYS, "vectors of texts by one encoder"),
        *(Rule(beside, below, _UNFINISHED, DEAD_DAYS, unfinished) for below in (cache.name, "checkpoints", "models")),
        Rule(beside, "checkpoints", rf"text-{_HEX}{{24}}\.safetensors", DEAD_DAYS, "checkpoint of a training cut off"),
        Rule(beside, "checkpoints", r"bundle-\w+/", DEAD_DAYS, "a model left unfinished"),
        Rule(beside, "tune", rf"{_HEX}{{12}}/", UNUSED_DAYS, "a search for better settings"),
        Rule(beside, "models", r"\.fetch-.+/", DEAD_DAYS, "a download cut off"),
    ]
    if aliased is not None:
        names = {*aliased, *_models_of(kept), *_recorded_in(beside / "models")}
        what = "copy of a model that no alias, kept release or record names"
        rules.append(Rule(beside, "models", rf"{_HEX}{{64}}/", UNUSED_DAYS, what, names))
    return rules


def _models_of(kept: Collection[Path]) -> Iterator[str]:
    """sha256 of the models that made releases; `report` reads their copies."""
    for release in kept:
        with suppress(ResourceError, KeyError):  # a damaged release names none
            yield str(releases.manifest(release)["model"]["sha256"])


def _recorded_in(models: Path) -> Iterator[str]:
    """sha256 of the copies that serve while the registry is down: the last of every alias, and of numbers lately asked for.

    Each comparison asks for its versions by number: if those counted for ever, no copy would ever go.
    """
    for record in models.glob("*.json"):
        if not record.name.partition(".")[0].isdigit() or _days_since(record, time.time()) <= UNUSED_DAYS:
            with suppress(OSError, ValueError, KeyError, TypeError):  # a broken record serves nothing
                yield str(json.loads(record.read_text(encoding="utf-8"))["sha256"])


def _last_records(runs: Path) -> set[str]:
    """The newest record of each command and outcome: what `status` may tell of, however long ago it was."""
    newest: dict[tuple[str, str], str] = {}
    for path in sorted(runs.glob("*.json"), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # nobody can read a broken one
            record = json.loads(path.read_text(encoding="utf-8"))
            newest.setdefault((str(record["command"]), str(record["outcome"])), path.name)
    return set(newest.values())


def _newest_of(newest_first: list[Path], aliased: Collection[str] | None) -> set[str]:
    newest: dict[str, str] = {}
    for release in newest_first:
        with suppress(ResourceError, KeyError):  # a damaged release is nothing to go back to
            newest.setdefault(str(releases.manifest(release)["model"]["version"]), release.name)
    return {name for version, name in newest.items() if aliased is None or version in aliased}


def _days_since(path: Path, now: float) -> float:
    """Since it, or anything in it, was written or marked as used; 0 for what is no longer there."""
    return (now - max((found.st_mtime for found in _stats(path)), default=now)) / 86_400


def _size(path: Path) -> int:
    return sum(found.st_size for found in _stats(path) if not S_ISDIR(found.st_mode))


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a folder and all in it; links are not followed, and what goes meanwhile is left out."""
    inside = (Path(where, name) for where, folders, files in os.walk(path) for name in (*folders, *files))
    for one in (path, *inside):
        with suppress(FileNotFoundError):
            yield one.lstat()


def _unless_gone(
    _function: Callable[..., object], _path: str, error: tuple[type[BaseException], BaseException, object]
) -> None:
    """Lets two shops with one cache clean it up at the same time."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]

"""One release as a folder: parts with page checksums and a manifest with their sha256; every file is whole or not there."""

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import ResourceError, shown
from recsys.whole import replacing, sync, write_whole

MANIFEST = "manifest.json"
# of what a manifest says, where it does
_KINDS = {"made": str, "run_date": str, "model": dict, "rows": int, "users": int}
_CAUSES = {
    errno.ENOSPC: "the disk is full; make room (recsys gc --delete)",
    errno.EDQUOT: "the quota is used up; make room (recsys gc --delete)",
    errno.EROFS: "the file system is read-only; mount it writable or set serving.output elsewhere",
    errno.EXDEV: "lies on another file system; keep all of serving.output on one",
}


@contextmanager
def named(path: Path, needed: int = 4096) -> Iterator[None]:
    """Turns an error of the file system into ResourceError that names `path`, the cause and what is served.

    Args:
        needed: bytes about to be written; a block where that is not known.
    """
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, f"{error.strerror or error}; mend it")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cause = f"{_free(path):,} bytes are free, {needed:,} or more are needed: {cause}"
        raise ResourceError(f"{path}: {cause}, then run again; readers keep the last whole release") from error


def write_part(folder: Path, number: int, table: pa.Table) -> Path:
    """One shard as Parquet with page checksums, synced, whole or not there; beside it a hidden record of its hash and counts.

    Args:
        number: from 0, without a gap.
        table: has `user_id`; all rows of a user lie in one shard.
    """
    part = folder / part_name(number)
    with named(part, table.nbytes):
        with replacing(part) as unfinished:
            pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)
            record = {"sha256": sha256(unfinished), "rows": table.num_rows, "users": _n_users(table)}
        write_whole(_record_path(part), json.dumps(record))
    return part


def part_name(number: int) -> str:
    """File name of a shard.

    >>> part_name(3)
    'part-00003.parquet'
    """
    return f"part-{number:05d}.parquet"


def record_of(part: Path) -> dict[str, Any] | None:
    """What was noted of a staged part when it was written; None unless the bytes still match it."""
    try:
        record: dict[str, Any] = json.loads(_record_path(part).read_text())
        return record if sha256(part) == record["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a run died between part and record, or the record was cut


def made_hours_ago(release: Path) -> float:
    """Hours since a release was made, whatever date it is of; the file's time would be that of a copy.

    Raises:
        ResourceError: the manifest is damaged.
    """
    made = manifest(release).get("made")  # earlier revisions did not say
    try:
        then = (release / MANIFEST).stat().st_mtime if made is None else datetime.fromisoformat(made).timestamp()
    except ValueError:
        raise ResourceError(f"{release / MANIFEST}: made is {shown(made)}, no time; score this date again") from None
    return (time.time() - then) / 3600


def seal(staging: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of the staged parts and drops the hidden records.

    Raises:
        ResourceError: there is no part, a number is missing, or a part changed since it was written.
    """
    parts = parts_in(staging)
    if [p.name for p in parts] != [part_name(n) for n in range(len(parts))] or not parts:
        raise ResourceError(f"{staging}: holds {len(parts)} parts, not numbered from 0 without a gap; run again")
    records = {}
    for part in parts:
        with named(part):
            record = record_of(part)
        if record is None:
            raise ResourceError(f"{part}: changed on disk since it was written; check the disk, then run again")
        records[part.name] = record
    content = {
        **facts,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": sum(r["rows"] for r in records.values()),
        "users": sum(r["users"] for r in records.values()),
        "schema": {field.name: str(field.type) for field in pq.read_schema(parts[0])},
        "parts": {name: r["sha256"] for name, r in records.items()},
    }
    content["manifest_sha256"] = _digest(content)
    with named(staging / MANIFEST):
        write_whole(staging / MANIFEST, json.dumps(content, indent=2, sort_keys=True))
        drop_hidden(staging)
        sync(staging)


def manifest(release: Path) -> dict[str, Any]:
    """A release's manifest.

    Raises:
        ResourceError: it is missing, unreadable, or not what was written.
    """
    path = release / MANIFEST
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResourceError(f"{path}: unreadable: {error}; score this date again") from error
    if not isinstance(content, dict) or not isinstance(content.get("parts"), dict) or not content["parts"]:
        raise ResourceError(f"{path}: names no parts; score this date again")
    found = _digest(content)
    expected = content.pop("manifest_sha256", found)
    if found != expected:
        raise ResourceError(f"{path}: sha256 {found}, it says {expected}; score this date again")
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name, kind()), kind):
            raise ResourceError(f"{path}: {name} is {shown(content[name])}; score this date again")
    return content


def verify(release: Path) -> None:
    """Checks that a release holds the parts of its manifest, byte for byte, and no others.

    Raises:
        ResourceError: names the file that is missing, changed, unreadable or too many.
    """
    expected = manifest(release)["parts"]
    parts = parts_in(release)
    for name in sorted(expected.keys() ^ {p.name for p in parts}):
        what = "missing" if name in expected else "not in the manifest"
        raise ResourceError(f"{release / name}: {what}; score this date again")
    with ThreadPoolExecutor() as pool:  # hashing leaves the GIL; a rollback should not wait for it
        found = list(pool.map(_named_sha256, parts))
    for part, digest in zip(parts, found, strict=True):
        if digest != expected[part.name]:
            raise ResourceError(f"{part}: sha256 {digest}, manifest says {expected[part.name]}; score this date again")


def each_part(
    folder: Path, columns: Sequence[str] | None = None, where: pc.Expression | None = None
) -> Iterator[pa.Table]:
    """The rows of a folder part by part, page checksums verified.

    Args:
        folder: staging or release folder.
        columns: those to read; all by default.
        where: rows to keep; parts that hold none by their statistics are not read.

    Raises:
        ResourceError: there is no part, or one cannot be read; it is named.
    """
    parts = parts_in(folder)
    if not parts:
        raise ResourceError(f"{folder}: holds no part; run again")
    for part in parts:
        yield _read_part(part, columns, where)


def read(release: Path, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
    """The rows of a release, or some of them, after checking it."""
    verify(release)
    return read_parts(release, columns, where)


def read_parts(folder: Path, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
    """The rows of all parts at once; see `each_part`."""
    return pa.concat_tables(each_part(folder, columns, where))


def parts_in(folder: Path) -> list[Path]:
    """Part files in a folder, in order; a pipe by such a name would be waited for."""
    return sorted(path for path in folder.glob("part-*.parquet") if path.is_file())


def drop_hidden(folder: Path) -> None:
    """Removes temporary files and records."""
    for path in folder.glob(".*"):
        path.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _read_part(part: Path, columns: Sequence[str] | None, where: pc.Expression | None) -> pa.Table:
    wanted = list(columns) if columns else None
    try:
        return pq.read_table(part, columns=wanted, filters=where, page_checksum_verification=True, partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ResourceError(f"{part}: cannot be read back: {error}; check the disk, then run again") from error


def _named_sha256(path: Path) -> str:
    with named(path):
        return sha256(path)


def _record_path(part: Path) -> Path:
    return part.with_name(f".{part.name}.done.json")


def _n_users(table: pa.Table) -> int:
    return int(pc.count_distinct(table["user_id"]).as_py())


def _digest(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

"""Where the files of a table lie, here or on a server, and what may go wrong on the way to them."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from recsys.errors import DataError, RecsysError, ResourceError, plain, public, shown

CSV = (".csv", ".csv.gz")
NOT_READ = (
    ".json", ".jsonl", ".ndjson", ".txt", ".tsv", ".xls", ".xlsx", ".ods", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar",
    ".orc", ".feather", ".arrow", ".avro",
)  # fmt: skip
"""Endings of files that may hold rows: beside tables they are refused, as nobody would miss these rows."""


def files_of(place: str, name: str) -> tuple[Any, list[str]]:
    """The file system of a table's place, and its files there, sorted.

    Raises:
        DataError: nothing is there, or files beside the table's that may hold rows nobody would read.
        ResourceError: see `read_table`.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(place)
        with reached(filesystem, shown_place(place)):
            root, found = _found(filesystem, path)
    except (ImportError, ValueError, OSError) as error:
        raise DataError(
            f"{shown_place(place)}: cannot be reached: {reason_of(error)}; check data.{name} in the config"
        ) from error
    found = sorted(f for f in found if not _is_hidden(f.removeprefix(root)))
    _refuse_unread(found, path, name)
    if not found:
        raise DataError(f"{shown_place(place)}: no {name} table there; check data.{name} in the config")
    return filesystem, found


def _found(filesystem: Any, path: str) -> tuple[str, list[str]]:
    """What somebody named of a path, and the files there that may be tables; nothing where nothing is.

    Of a pattern that is all before its first wildcard. A local path that is there is no pattern, whatever it holds.
    """
    wild = "*[" if "://" in path else "*?["  # in a URL a question mark is what signatures stand behind
    is_there = isinstance(filesystem, LocalFileSystem) and filesystem.exists(path)
    if not is_there and (wildcards := [path.index(c) for c in wild if c in path]):
        return path[: min(wildcards)], filesystem.glob(path)
    if filesystem.isdir(path):
        return path, [f for f in filesystem.find(path) if has_ending(f, ".parquet", *CSV, *NOT_READ)]
    return posixpath.dirname(path), [path] if _exists(filesystem, path) else []


def _refuse_unread(found: list[str], path: str, name: str) -> None:
    """Files of a folder that are not read, but may hold rows; one that is named itself is tried."""
    unread = [] if found == [path] else [f for f in found if has_ending(f, *NOT_READ) and not has_ending(f, *CSV)]
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        raise DataError(
            f"{shown_place(unread[0])}{more}: among the files of data.{name}, but only .parquet, .csv and .csv.gz are read; "
            "convert them, or move them away"
        )


def has_ending(file: str, *endings: str) -> bool:
    """Whether a file has one of some endings, in capitals or not, whatever a URL says after its question mark."""
    return file.lower().endswith(endings) or shown_place(file).lower().endswith(endings)


def _exists(filesystem: Any, path: str) -> bool:
    """Whether a file is there; elsewhere `exists` would also say no of one that may not be read."""
    if isinstance(filesystem, LocalFileSystem):
        return bool(filesystem.exists(path))
    try:
        filesystem.info(path)
    except FileNotFoundError as error:
        if _is_missing(error):
            return False
        raise
    return True


def _is_missing(error: Exception) -> bool:
    """Whether nothing is there; over HTTP any failure comes as such an error, with what happened behind it."""
    is_other = error.__cause__ is not None and getattr(error.__cause__, "status", None) != 404
    return isinstance(error, FileNotFoundError) and not is_other


@contextmanager
def reached(filesystem: Any, name: str) -> Iterator[None]:
    """What fails on the way to another machine says nothing about the table: another remedy, another code.

    Raises:
        ResourceError: a server refused, failed or cut the connection; each protocol has error types of its own.
    """
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        if isinstance(filesystem, LocalFileSystem) or _is_missing(error):
            raise
        reason = reason_of(error.__cause__ or error if isinstance(error, FileNotFoundError) else error)
        raise ResourceError(
            f"{name}: cannot be fetched: {reason}; check the server, the network and the credentials, then run again"
        ) from error


class Fetched:
    """An open file elsewhere; Arrow would tell a read that fails as it tells a broken table."""

    def __init__(self, handle: Any, filesystem: Any, name: str) -> None:
        self._handle, self._filesystem, self._name = handle, filesystem, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._handle, attribute)

    def read(self, size: int = -1) -> bytes:
        """Bytes, as of any open file."""
        with reached(self._filesystem, self._name):
            return self._handle.read(size)


def shown_place(place: str) -> str:
    """A file or URL as it may be shown: on one line, and without what a URL says beside its address.

    >>> shown_place("https://me:p@ss@host/a.csv?KEY")
    'https://host/a.csv'
    """
    return plain(public(place), 1000)


def reason_of(error: BaseException) -> str:
    """What an error says; never its repr, which may hold the headers of a request."""
    return shown(public(str(error) or type(error).__name__), 200)


def _is_hidden(path: str) -> bool:
    """Dot-names and names like _delta_log belong to the programs that write a folder, not to its readers."""
    *folders, name = path.split("/")
    return name.startswith((".", "_")) or any(f.startswith((".", "_")) for f in folders)

"""Files that are there whole or not at all, whoever else writes them: other processes, or one that was killed."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

FORGOTTEN_S = 86_400.0  # nobody still writes what was begun a day ago


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place of the caller alone to write a file in; what lies there at the end is synced and becomes `path`.

    After an error it is gone and `path` is as it was. Its name begins with a dot, for readers that skip such names.
    """
    name = path.name.lstrip(".")
    for other in path.parent.glob(f".{escape(name)}.*.tmp"):
        with suppress(FileNotFoundError):  # its own process, or a third, was quicker
            if time.time() - other.stat().st_mtime > FORGOTTEN_S:
                other.unlink()
    unfinished = path.with_name(f".{name}.{uuid.uuid4().hex}.tmp")  # process ids collide across containers
    try:
        with refusals_of_disk(path):
            yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def refusals_of_disk(path: Path) -> Iterator[None]:
    """Tells what safetensors says of a disk, such as a full one, as the OSError that it is, of `path`."""
    try:
        yield
    except SafetensorError as error:
        if not (number := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a text as such a file."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # which names no file by itself
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


def mark_used(path: Path) -> None:
    """Sets a file's time to now, for `recsys gc`: many disks keep no time of reading."""
    with suppress(OSError):  # not there, or another user's: then it is made or fetched again one day
        os.utime(path)

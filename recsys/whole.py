"""Files that are there whole or not at all, whoever else writes them: other processes, or one that was killed."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

FORGOTTEN_S = 86_400.0  # nobody still writes what was begun a day ago


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place of the caller alone to write a file in; what lies there at the end becomes `path`.

    After an error it is gone and `path` is as it was. Its name begins with a dot, for readers that skip such names.
    """
    name = path.name.lstrip(".")
    for other in path.parent.glob(f".{escape(name)}.*.tmp"):
        with suppress(FileNotFoundError):  # its own process, or a third, was quicker
            if time.time() - other.stat().st_mtime > FORGOTTEN_S:
                other.unlink()
    unfinished = path.with_name(f".{name}.{uuid.uuid4().hex}.tmp")  # process ids collide across containers
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def mark_used(path: Path) -> None:
    """Sets a file's time to now, for `recsys gc`: many disks keep no time of reading."""
    with suppress(OSError):  # not there, or another user's: then it is made or fetched again one day
        os.utime(path)

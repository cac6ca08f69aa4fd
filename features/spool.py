"""Fixed-width records that may outgrow memory: kept there while few, then in a file without a name."""

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import ResourceError

Records = NDArray[np.void]

MEMORY_BYTES = 64 * 2**20  # what a spool holds in memory before it goes to disk
BLOCK = 500_000  # records read at once


class Spool:
    """Records in the order they were added. The file is unlinked from its start, so a kill leaves nothing behind.

    Args:
        dtype: of a record.
        memory_bytes: what is held in memory; more goes to the folder of temporary files (`TMPDIR`).
    """

    def __init__(self, dtype: np.dtype[Any], memory_bytes: int = MEMORY_BYTES) -> None:
        self.dtype = dtype
        # 0 would mean no limit
        self._file = tempfile.SpooledTemporaryFile(max(1, memory_bytes))  # noqa: SIM115 - lives as long as the spool
        weakref.finalize(self, _close, self._file)
        self._lock = Lock()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, records: Records) -> None:
        """Adds records at the end.

        Raises:
            ResourceError: the disk is full or failed.
        """
        with _named(), self._lock:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(records, self.dtype).tobytes())
            self._file.flush()
        self._n += len(records)

    def read(self, start: int = 0, stop: int | None = None) -> Records:
        """Records from `start` up to `stop`, all by default; a copy.

        Raises:
            ResourceError: the disk failed.
        """
        stop = self._n if stop is None else stop
        records = np.empty(max(0, stop - start), self.dtype)
        with _named(), self._lock:
            self._file.seek(start * self.dtype.itemsize)
            content = self._file.read(records.nbytes)
        records.view(np.uint8)[:] = np.frombuffer(content, np.uint8)
        return records

    def blocks(self, size: int = BLOCK) -> Iterator[Records]:
        """All records, `size` at a time."""
        for start in range(0, self._n, size):
            yield self.read(start, min(start + size, self._n))


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{tempfile.gettempdir()}: {error.strerror or error}: temporary files of the events; mend or free the disk, "
            "or point TMPDIR to a larger one, then run again"
        ) from error


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):
        file.close()

"""What the process asks of the machine: how many threads, and memory that is kept instead of given back."""

import ctypes
import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 2**30


def usable_cores() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keeps BLAS on the calling thread: small products in a loop lose more to its threads than they gain."""
    return _controller().limit(limits=1, user_api="blas")


@cache
def keep_memory() -> None:
    """Lets malloc reuse blocks up to a GiB instead of returning each to the system, where it can be told so (glibc).

    A chunk of users takes the same large arrays as the one before; mapping them anew costs a sixth of scoring.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks at every loaded library: milliseconds

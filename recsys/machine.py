"""What the machine has and what the process asks of it: threads, bfloat16, memory that is kept instead of given back."""

import ctypes
import os
import re
import resource
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 2**30


def usable_cores() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def peak_memory_mib() -> int:
    """The most memory that this program held at once so far, MiB.

    The system's own number (`ru_maxrss`) counts what the program that started this one held, too, where it was more.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024


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


def has_bf16(device: "torch.device") -> bool:
    """Whether bfloat16 is faster than float32 there, by what the processor reports."""
    import torch  # seconds: not before a run knows that it may begin

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks at every loaded library: milliseconds

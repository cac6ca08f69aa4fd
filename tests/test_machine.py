import subprocess
import sys

import numpy as np
from threadpoolctl import threadpool_info

from recsys.machine import keep_memory, one_blas_thread, peak_memory_mib, usable_cores


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_has_one_thread_inside_and_its_own_number_after() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    with one_blas_thread():
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before


def test_memory_may_be_kept_twice_and_there_is_a_core() -> None:
    keep_memory()
    keep_memory()
    assert usable_cores() >= 1


def test_peak_memory_is_this_programs_own_and_not_that_of_who_started_it() -> None:
    ballast = np.ones(40_000_000)  # 305 MiB
    code = "from recsys.machine import peak_memory_mib; print(peak_memory_mib())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 5 < child < 200
    assert peak_memory_mib() > ballast.nbytes / 2**20

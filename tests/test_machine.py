import numpy as np
from threadpoolctl import threadpool_info

from recsys.machine import keep_memory, one_blas_thread, usable_cores


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

"""Users are handled some at a time: what is made of them, users x items, bounds the memory of every stage."""

from collections.abc import Iterator

from recsys.types import IntArray, Progress
from recsys.vectors import BLOCK_CELLS, block_rows

USERS = 256  # at once, in training: a model must not depend on a setting of memory
MAX_CELLS = BLOCK_CELLS  # users x items at once: 25 bytes a cell and thread in scoring, some more in evaluation


def chunk_size(n_items: int, most: int = USERS) -> int:
    """How many users are handled at once: of a large catalogue fewer, and whole blocks of `recsys.vectors.products`."""
    size = max(1, min(most, MAX_CELLS // max(1, n_items)))
    return size - size % min(size, block_rows(n_items))


def chunks(users: IntArray, size: int, progress: Progress | None = None) -> Iterator[IntArray]:
    """User positions in runs of `size`; `progress` is told after each."""
    for start in range(0, len(users), size):
        yield users[start : start + size]
        if progress:
            progress(min(start + size, len(users)), len(users))

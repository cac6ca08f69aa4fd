"""Users are handled some at a time: what is made of them, users x items, bounds the memory of every stage."""

from collections.abc import Iterator

from recsys.config import Config
from recsys.types import IntArray

MAX_CELLS = 10_000_000  # users x items at once: 25 bytes a cell and thread in scoring, some more in evaluation


def chunk_size(config: Config, n_items: int) -> int:
    """How many users are handled at once: `serving.chunk_users`, of a large catalogue fewer."""
    return max(1, min(config.serving.chunk_users, MAX_CELLS // max(1, n_items)))


def chunks(users: IntArray, size: int) -> Iterator[IntArray]:
    """User positions in runs of `size`."""
    for start in range(0, len(users), size):
        yield users[start : start + size]

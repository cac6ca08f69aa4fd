"""Time and memory of the A/B report: python benchmarks/compare_speed.py [users] [items]; lists of 50, no reruns."""

import resource
import sys
import tempfile
import time

import numpy as np
import pandas as pd

from recsys.config import ReportConfig
from serving.report.compare import compare
from serving.report.world import Arm

K = 50
START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-31", tz="UTC")


def events(n: int, n_users: int, n_items: int, rng: np.random.Generator) -> pd.DataFrame:
    """Events of users drawn evenly on items drawn by popularity."""
    return pd.DataFrame({"user_id": rng.integers(0, n_users, n), "item_id": rng.zipf(1.3, size=n) % n_items})


def arm(name: str, labels: pd.DataFrame, n_users: int, n_items: int, rng: np.random.Generator) -> Arm:
    """Lists of distinct items that hold a label of six in ten users."""
    steps = rng.integers(0, n_items, n_users)[:, None], rng.integers(1, 37, n_users)[:, None]
    ranked = (steps[0] + np.arange(K) * steps[1]) % n_items
    lucky = labels.drop_duplicates("user_id").sample(frac=0.6, random_state=rng)
    user, item = lucky["user_id"].to_numpy(), lucky["item_id"].to_numpy()
    is_free = ~(ranked[user] == item[:, None]).any(1)
    ranked[user[is_free], rng.integers(0, K, is_free.sum())] = item[is_free]
    columns = {"user_id": np.arange(n_users).repeat(K), "item_id": ranked.ravel(), "score": 1.0}
    return Arm(name, pd.DataFrame(columns).assign(rank=np.tile(np.arange(1, K + 1, dtype=np.int32), n_users)))


def main(n_users: int, n_items: int) -> None:
    """Prints seconds and the process's peak memory, inputs included."""
    rng = np.random.default_rng(0)
    history = events(20 * n_users, n_users, n_items, rng)
    history["timestamp"] = START - pd.to_timedelta(rng.integers(1, 8_000, len(history)), unit="h")
    labels = events(5 * n_users, n_users, n_items, rng).drop_duplicates()
    labels["timestamp"] = START + pd.to_timedelta(rng.integers(0, 700, len(labels)), unit="h")
    number = np.arange(n_items)
    titles = [f"thing {i % 977} of kind {i % 31}" for i in number]
    items = pd.DataFrame({"item_id": number, "title": titles, "category": [f"c{i % 40}" for i in number]})
    people = pd.DataFrame({"user_id": np.arange(n_users), "town": np.arange(n_users) % 5})
    a, b = (arm(name, labels, n_users, n_items, rng) for name in "AB")
    began = time.perf_counter()
    report = compare(
        a, b, labels, items, ReportConfig(max_users=n_users), test_start=START, test_end=END, now=END, k=K,
        users=people, history=history,
    )  # fmt: skip
    report.write(tempfile.mkdtemp())
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(report.per_user):,} users, {n_items:,} items, k={K}: {seconds:.0f} s, peak {peak:,.0f} MiB")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] or ["100000", "20000"])))

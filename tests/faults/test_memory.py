"""Many events, and few users and items that have most of them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.faults.conftest import TODAY, Shop
from tests.faults.matrix import fault

PEAK = """
import resource, serving.batch
real = serving.batch._score_shards
def status(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name))) // 1024
def measured(*args):
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = status("VmRSS")
    staging = real(*args)
    import sys
    print(f"grew {status('VmHWM') - before} MiB", file=sys.stderr)
    return staging
serving.batch._score_shards = measured
"""
WORDS = ["--set", "serving.users_per_shard=500", "--set", "serving.audit.max_fallback_share=1"]


def write_events(shop: Shop, n_events: int, n_users: int, one_user: int, one_item: float) -> None:
    """Events of 90 days: one user with `one_user` of them, one item with a share of all."""
    rng = np.random.default_rng(0)
    items = shop.items()["item_id"].to_numpy()
    item = np.where(rng.random(n_events) < one_item, 0, rng.integers(len(items), size=n_events))
    user = np.concatenate([np.zeros(one_user, np.int64), np.arange(n_events - one_user) % n_users])
    when = pd.Timestamp(TODAY, tz="UTC").value // 1000 - rng.permutation(n_events).astype(np.int64) * 700_000 - 1
    columns = {
        "user_id": user, "item_id": items[item], "event_type": "purchase",
        "timestamp": pd.to_datetime(when, unit="us", utc=True),
    }  # fmt: skip
    shop.write_events(pd.DataFrame(columns))


def growth(shop: Shop, *words: str) -> int:
    """MiB that scoring needed on top of what was loaded before it."""
    ended = shop.tonight("--train", "never", *WORDS, "--set", "rules.exclude_seen=false", *words, first=PEAK)
    assert ended.code == 0, ended.err
    return int(re.findall(r"grew (-?\d+) MiB", ended.err)[0])


@fault(5)
def test_scoring_needs_no_more_memory_for_eight_times_the_users(yesterday: Shop) -> None:
    grown = []
    for n_users in (1000, 8000):
        write_events(yesterday, 15 * n_users, n_users, one_user=5 * n_users, one_item=0.5)
        grown.append(growth(yesterday, "--set", f"serving.output={yesterday.folder}/out{n_users}"))
    assert grown[1] < grown[0] + 60, grown
    yesterday.assert_yesterday_served()


@fault(5)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_million_events_with_one_giant_user_and_item(yesterday: Shop, tmp_path: Path) -> None:
    write_events(yesterday, 10_000_000, 200_000, one_user=1_000_000, one_item=0.5)
    users = tmp_path / "users.csv"
    users.write_text("user_id\n" + "\n".join(map(str, range(2000))))  # the giant among them
    ended = yesterday.run(
        "score", "--as-of", TODAY, *WORDS, "--set", "rules.exclude_seen=false", "--users", str(users),
        "--set", f"serving.output={yesterday.folder}/wide",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = pd.read_json(next((yesterday.folder / "wide" / "runs").iterdir()), typ="series")
    assert run["rows"] == 10_000
    assert run["peak_memory_mib"] < 5_000
    yesterday.assert_yesterday_served()

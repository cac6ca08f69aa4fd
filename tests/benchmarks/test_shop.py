import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.shop import LIST, N_CELLS, N_STYLES, Shop
from features.dataset import Dataset


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(n_users=2_000, n_items=600, n_events=20_000, seed=3)


@pytest.fixture(scope="module")
def folder(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    shop.write(out)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(shop: Shop, folder: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 3), ("other", 4)):
        Shop(shop.n_users, shop.n_items, shop.n_events, seed).write(tmp_path / name)
    assert digests(tmp_path / "same") == digests(folder)
    assert digests(tmp_path / "other")["events/part-0.parquet"] != digests(folder)["events/part-0.parquet"]


def test_the_tables_pass_the_door_whole(folder: Path, shop: Shop) -> None:
    events, items, users = (pd.read_parquet(folder / n) for n in ("events", "items.parquet", "users.parquet"))
    dataset = Dataset.from_frames(events, items, users=users, event_weights=dict.fromkeys(events["event_type"], 1.0))
    assert (len(dataset.users), len(dataset.items)) == (shop.n_users, shop.n_items)
    assert abs(len(events) / shop.n_events - 1) < 0.1


def test_texts_name_the_theme_and_nothing_new_was_sold(folder: Path, shop: Shop) -> None:
    events, items = pd.read_parquet(folder / "events"), pd.read_parquet(folder / "items.parquet")
    assert all(c in t for c, t in zip(items["category"], items["title"], strict=True))
    unsold = set(shop.item_ids[shop.n_ranks * N_CELLS :])
    assert unsold
    assert not unsold & set(events["item_id"])


def test_who_knows_the_tastes_ranks_far_better_than_popularity(shop: Shop, folder: Path) -> None:
    events = pd.read_parquet(folder / "events")
    position = pd.Series(np.arange(shop.n_items), shop.item_ids)
    taken = position[events["item_id"]].to_numpy()
    popular = np.argsort(-np.bincount(taken, minlength=shop.n_items))[:20]
    tastes = shop.tastes(0)
    users = range(200)
    hits = {"oracle": 0, "popular": 0}
    for user in users:
        mine = taken[events["user_id"] == user]
        best = np.argsort(-shop.probabilities(tastes, user))[:20]
        hits["oracle"] += int(np.isin(mine, best).sum())
        hits["popular"] += int(np.isin(mine, popular).sum())
    assert hits["oracle"] > 3 * hits["popular"]


def test_the_true_probabilities_are_what_events_follow(shop: Shop) -> None:
    rng = np.random.default_rng(0)
    tastes, n = shop.tastes(0), 200_000
    table = shop.drawn(tastes, np.arange(1), np.zeros(n, dtype=np.int64), np.zeros(n), rng)
    position = pd.Series(np.arange(shop.n_items), shop.item_ids)
    seen = np.bincount(position[table["item_id"].to_numpy()], minlength=shop.n_items)
    expected = n * shop.probabilities(tastes, 0)
    sold = expected > 0
    assert expected.sum() == pytest.approx(n)
    assert not seen[~sold].any()
    # chi-square over its degrees of freedom is 1 with a deviation of sqrt(2 / degrees)
    statistic = ((seen - expected)[sold] ** 2 / expected[sold]).sum() / (sold.sum() - 1)
    assert abs(statistic - 1) < 5 * np.sqrt(2 / sold.sum())


def test_propensities_are_the_shares_in_which_items_were_shown() -> None:
    big = Shop(n_users=200_000, n_items=400, n_events=200_000)
    logs = pd.concat([big.impressions(n, users).to_pandas() for n, users in big.chunks()])
    n_lists = logs["impression_id"].nunique()
    cells = logs.groupby(["item_id", "position"]).agg(shown=("clicked", "size"), propensity=("propensity", "first"))
    n_pairs = big.n_ranks * N_CELLS * LIST
    expected = n_lists * cells["propensity"]
    unseen = n_lists - expected.sum() / LIST * 1.0
    statistic = (((cells["shown"] - expected) ** 2 / expected).sum() + max(0.0, unseen)) / n_pairs
    assert abs(statistic - 1) < 0.1
    assert (logs.groupby("impression_id")["item_id"].nunique() == LIST).all()


def test_clicks_fall_with_the_position(shop: Shop) -> None:
    big = Shop(n_users=100_000, n_items=400, n_events=100_000)
    logs = pd.concat([big.impressions(n, users).to_pandas() for n, users in big.chunks()])
    rate = logs.groupby("position")["clicked"].mean()
    assert rate.iloc[0] > 1.5 * rate.iloc[-1]


def test_the_day_after_adds_events_of_some_users_and_rewrites_some_texts(shop: Shop, tmp_path: Path) -> None:
    shop.write(tmp_path)
    before = pd.read_parquet(tmp_path / "items.parquet")
    shop.write_day_after(tmp_path, changed=0.01, active=0.05)
    added, after = pd.read_parquet(tmp_path / "events" / "part-1.parquet"), pd.read_parquet(tmp_path / "items.parquet")
    assert abs(added["user_id"].nunique() / shop.n_users - 0.05) < 0.02
    assert added["timestamp"].min() >= pd.Timestamp("2025-01-01", tz="UTC")
    assert (before["title"] != after["title"]).sum() == 6


def test_too_few_items_for_the_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{N_STYLES} items"):
        Shop(10, N_STYLES, 10)

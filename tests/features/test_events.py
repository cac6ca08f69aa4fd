"""Events come in by chunks, in any order, and leave in one order, once each."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import ingest
from features.dataset import Dataset
from features.events import EVENT, EventLog, EventWriter, records_of
from features.histories import Histories, StoredHistories
from features.ingest import clean_tables, load_tables
from features.read import read_chunks
from features.spool import Spool
from recsys.config import DataConfig
from recsys.errors import DataError, ResourceError
from recsys.ids import IdMap
from recsys.schema import EVENTS

ITEMS = IdMap.from_values(pd.Series([f"i{n}" for n in range(20)]))


def rows(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": [f"u{u}" for u in rng.integers(0, 30, n)],
            "item_id": [f"i{i}" for i in rng.integers(0, 20, n)],
            "event_type": rng.choice(["buy", "click", "view"], n),
            "timestamp": pd.to_datetime(rng.integers(1, 40, n), unit="D", utc=True).as_unit("us"),
        }
    )


def log_of(chunks: list[pd.DataFrame], most_at_once: int = 1000) -> EventLog:
    writer = EventWriter(ITEMS, {"buy": 6.0, "click": 1.0}, most_at_once=most_at_once)
    for chunk in chunks:
        writer.add(chunk, pd.util.hash_pandas_object(chunk, index=False).to_numpy())
    return writer.finish()


@pytest.mark.parametrize("most_at_once", [1000, 50, 1])
def test_chunks_shuffled_and_repeated_make_the_same_log_however_many_are_sorted_at_a_time(most_at_once: int) -> None:
    table = rows(300)
    expected = log_of([table])
    doubled = pd.concat([table, table]).sample(frac=1, random_state=1, ignore_index=True)
    log = log_of([doubled[:7], doubled[7:200], doubled[200:]], most_at_once)
    assert log.records.read().tobytes() == expected.records.read().tobytes()
    np.testing.assert_array_equal(log.bounds, expected.bounds)
    assert log.sha256 == expected.sha256
    assert log.n_repeats == 300 + expected.n_repeats
    assert (log.users.ids == expected.users.ids).all()


def test_what_comes_out_is_what_came_in() -> None:
    table = rows(300).drop_duplicates()
    frame = log_of([table[:100], table[100:]]).frame()
    by = ["timestamp", "user_id", "item_id", "event_type"]
    pd.testing.assert_frame_equal(frame[table.columns], table.sort_values(by, ignore_index=True), check_dtype=False)


def test_users_without_a_label_stand_last_and_are_no_users_of_a_data_set() -> None:
    table = rows(6).assign(user_id=["a", "b", "c", "a", "c", "b"], event_type=["view", "buy", "click"] * 2)
    log = log_of([table.assign(event_type=["view", "buy", "view", "view", "view", "buy"])])
    assert list(log.users.ids) == ["b"]
    assert list(log.others) == ["a", "c"]
    assert log.records.read()["user"].tolist() == [0, 0, 1, 1, 2, 2]


def test_another_value_in_any_column_gives_another_fingerprint() -> None:
    table = rows(50).assign(colour="red")
    assert log_of([table]).sha256 != log_of([table.assign(colour=["blue", *["red"] * 49])]).sha256


def test_a_column_by_another_name_gives_another_fingerprint() -> None:
    table = rows(50).assign(weight=2.0)
    renamed = table.rename(columns={"weight": "worth"})  # as late in the alphabet, so the rows hash alike
    assert log_of([table]).sha256 != log_of([renamed]).sha256


def test_of_two_rows_that_differ_by_basket_both_stay() -> None:
    table = rows(1)
    twice = pd.concat([table.assign(basket_id=b) for b in ("x", "y", "x")], ignore_index=True)
    log = log_of([twice])
    assert len(log) == 2
    assert log.n_repeats == 1


def test_records_of_some_users_are_read_in_their_order() -> None:
    log = log_of([rows(300)])
    everything = log.records.read()
    users = np.array([0, 3, 4, 5, 17])
    found = records_of(users, log.records, log.bounds)
    assert found.tobytes() == everything[np.isin(everything["user"], users)].tobytes()
    assert len(records_of(users[:0], log.records, log.bounds)) == 0


def dataset(n: int = 400) -> Dataset:
    config = DataConfig(events="e", items="i", event_weights={"buy": 6.0, "click": 1.0})
    items = pd.DataFrame({"item_id": ITEMS.ids, "title": "x"})
    return Dataset.from_tables(clean_tables(rows(n), items, config), pd.Timestamp("1990", tz="UTC"))


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """As of a day amid the events."""
    monkeypatch.setattr("features.ingest.EARLIEST", pd.Timestamp("1970-01-01", tz="UTC"))
    return dataset().before(pd.Timestamp("1970-02-01", tz="UTC"))


def test_stored_histories_are_those_in_memory(early: Dataset) -> None:
    stored = StoredHistories(early)
    moment = int(early.as_of.value // 1000)
    whole = Histories.build(
        early.user_pos, early.item_pos, early.timestamp, early.weight,
        n_users=len(early.users), n_items=len(early.items), as_of=moment,
    )  # fmt: skip
    assert whole.timestamp.max() < moment
    assert stored.oldest == whole.oldest == whole.timestamp.min()
    strangers = len(early.users) + np.arange(2)
    for users in (np.arange(len(early.users)), np.array([7, 2, 3]), np.r_[5, strangers], strangers):
        one, other = stored.of_users(users), whole.of_users(users)
        assert one.n_users == other.n_users == len(users)
        for name in ("user_pos", "item_pos", "timestamp", "weight", "step"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    counted = sum(block.popularity(7) for block in stored.blocks())
    np.testing.assert_array_equal(counted, whole.popularity(7))
    np.testing.assert_array_equal(stored.loaded().decayed(0.5).toarray(), whole.decayed(0.5).toarray())


def test_a_spool_on_disk_reads_like_one_in_memory() -> None:
    records = np.zeros(1000, EVENT)
    records["user"] = np.arange(1000)
    for memory_bytes in (0, 2**20):
        spool = Spool(EVENT, memory_bytes)
        spool.add(records[:600])
        spool.add(records[600:])
        np.testing.assert_array_equal(spool.read(), records)
        np.testing.assert_array_equal(spool.read(590, 610), records[590:610])
        assert [len(block) for block in spool.blocks(300)] == [300, 300, 300, 100]


def test_a_full_disk_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(EVENT, memory_bytes=1)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b", buffering=0))  # noqa: SIM115
    with pytest.raises(ResourceError, match="TMPDIR"):
        spool.add(np.zeros(10, EVENT))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_read_in_chunks_is_the_same_table(tmp_path: Path, kind: str) -> None:
    table, items = rows(1000), pd.DataFrame({"item_id": ITEMS.ids, "title": "x"})
    table["timestamp"] += pd.Timedelta(days=20_000)
    items.to_parquet(tmp_path / "items.parquet")
    path = tmp_path / f"events.{kind}"
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    config = DataConfig(events=str(path), items=str(tmp_path / "items.parquet"), event_weights={"buy": 1.0})
    chunks = list(read_chunks(str(path), EVENTS, config, rows=300))
    assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100]
    assert np.concatenate([chunk["_row"] for chunk in chunks]).tolist() == list(range(1000))
    assert load_tables(config).sha256 == clean_tables(table, items, config).sha256


def test_a_bad_row_of_a_later_chunk_is_named_by_its_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, items = rows(1000), pd.DataFrame({"item_id": ITEMS.ids, "title": "x"})
    table["timestamp"] += pd.Timedelta(days=20_000)
    table.loc[777, "item_id"] = "nowhere"
    table.to_parquet(tmp_path / "events.parquet", row_group_size=100)
    items.to_parquet(tmp_path / "items.parquet")
    monkeypatch.setattr("features.read.read_chunks.__defaults__", (300,))
    config = DataConfig(
        events=str(tmp_path / "events.parquet"), items=str(tmp_path / "items.parquet"), event_weights={"buy": 1.0},
        max_bad_share=0.0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 1,000 events rows are bad .* row 777, column item_id"):
        load_tables(config)


def test_an_empty_file_and_one_without_ids_stand_beside_whole_ones(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": range(20), "title": "x"})
    table = pd.DataFrame({"user_id": range(40), "item_id": np.arange(40) % 20, "event_type": "buy"})
    table["timestamp"] = pd.Timestamp("2024-01-01", tz="UTC")
    folder = tmp_path / "events"
    folder.mkdir()
    table[:0].astype({"user_id": object, "item_id": object}).to_parquet(folder / "a.parquet")
    table.to_parquet(folder / "b.parquet")
    table[:1].assign(user_id=pd.Series([None], dtype="str")).to_parquet(folder / "c.parquet")
    items.to_parquet(tmp_path / "items.parquet")
    config = DataConfig(
        events=str(folder), items=str(tmp_path / "items.parquet"), event_weights={"buy": 1.0}, max_bad_share=0.1
    )
    tables = load_tables(config)
    assert len(tables.log) == 40
    assert tables.quarantine["file"].tolist() == ["c.parquet"]
    assert tables.log.users.ids.dtype == np.int64


def test_many_small_files_are_checked_together(tmp_path: Path) -> None:
    table = rows(90)
    for number in range(9):
        table[number * 10 : number * 10 + 10].to_parquet(tmp_path / f"{number}.parquet")
    config = DataConfig(events=str(tmp_path), items="i", event_weights={"buy": 1.0})
    chunks = list(read_chunks(str(tmp_path), EVENTS, config, rows=40))
    assert [len(chunk) for chunk in chunks] == [40, 40, 10]
    assert chunks[0]["_file"].iloc[10] == "1.parquet"
    assert chunks[0]["_row"].iloc[10] == 0


@pytest.mark.parametrize("basket", [None, np.nan, pd.NA])
def test_a_basket_that_is_missing_is_no_other_basket(basket: object) -> None:
    table = rows(20)
    log = log_of([table, table.assign(basket_id=pd.Series([basket] * 20), session_id=None)])
    assert len(log) == log.n_repeats == 20
    assert len(log_of([table.assign(basket_id=1), table.assign(basket_id=1.0)])) == 20


def test_of_a_label_and_a_row_of_weight_0_that_repeat_each_other_the_label_stays() -> None:
    for item in ITEMS.ids:
        table = rows(1).assign(item_id=item, event_type="buy")
        log = log_of([table.assign(weight=0.0), table.assign(weight=1.0)])
        assert log.records.read()["weight"].tolist() == [6.0]
        assert len(log.users) == 1


def test_files_with_and_without_weights_are_not_mixed() -> None:
    with pytest.raises(DataError, match="weight"):
        log_of([rows(3), rows(3, seed=1).assign(weight=2.0)])


def test_ids_of_two_types_are_not_mixed() -> None:
    with pytest.raises(DataError, match=r"user_id holds int64 .* str"):
        log_of([rows(3), rows(3).assign(user_id=7)])


def test_how_rows_fall_into_files_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": ITEMS.ids, "title": "x"})
    items.to_parquet(tmp_path / "items.parquet")
    table = rows(400).assign(
        is_gift=pd.array([None, True, False, True] * 100, dtype="boolean"),
        count=pd.array([None, 1] * 200, dtype="Int64"),
    )
    table["timestamp"] += pd.Timedelta(days=20_000)
    hashes = set()
    for name, order in (("a", table), ("b", table.sort_values("is_gift", ignore_index=True))):
        order.to_parquet(tmp_path / f"{name}.parquet", row_group_size=100)
        config = DataConfig(
            events=str(tmp_path / f"{name}.parquet"), items=str(tmp_path / "items.parquet"), event_weights={"buy": 1.0}
        )
        for size in (100, 1000):
            chunks = read_chunks(config.events, EVENTS, config, rows=size)
            hashes.add(clean_in_chunks(chunks, items, config))
    assert len(hashes) == 1


def clean_in_chunks(chunks: Iterable[pd.DataFrame], items: pd.DataFrame, config: DataConfig) -> str:
    return ingest._checked(chunks, items, config, None, None).sha256

"""Tables that are missing, cut, retyped, doubled, hostile."""

import random
from collections.abc import Callable

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.ingest import load_tables
from recsys.config import load_config
from recsys.errors import DataError
from serving.releases import manifest
from tests.faults.conftest import TODAY, Shop
from tests.faults.matrix import fault
from tests.faults.served import assert_served_whole

Frame = pd.DataFrame


def refused(shop: Shop, *parts: str, code: int = 3) -> str:
    """Tonight ends with a code and names all parts; yesterday stays. The error."""
    ended = shop.tonight()
    assert ended.code == code, ended.err
    for part in (*parts, "still served: ", "see: recsys status"):
        assert part in ended.err, (part, ended.err)
    shop.assert_yesterday_served()
    assert shop.last_run()["exit_code"] == code
    return ended.err


@fault(13)
@pytest.mark.parametrize("table", ["events", "items"])
def test_a_missing_table_is_named_with_its_setting(yesterday: Shop, table: str) -> None:
    (yesterday.folder / f"{table}.parquet").unlink()
    refused(yesterday, f"{table}.parquet", f"data.{table}")


@fault(13)
@pytest.mark.parametrize("table", ["events", "items"])
def test_an_empty_table_is_named(yesterday: Shop, table: str) -> None:
    path = yesterday.folder / f"{table}.parquet"
    pd.read_parquet(path)[:0].to_parquet(path)
    refused(yesterday, f"data.{table}: the table has no rows")


@fault(13)
def test_half_the_events_are_refused_by_the_audit(yesterday: Shop) -> None:
    events = yesterday.events()
    yesterday.write_events(events[events["user_id"] < "u060"])
    refused(yesterday, "rows against last release: 0.5, limit <= 0.2", "compare the tables of both days", code=4)


@fault(13)
def test_items_that_the_export_lost_are_named_by_the_events_that_need_them(yesterday: Shop) -> None:
    yesterday.write_items(yesterday.items()[:40])
    refused(yesterday, "events.parquet", "item is not in the items table", "first: row")


@fault(13)
def test_an_export_without_the_last_days_is_too_old_to_publish(yesterday: Shop) -> None:
    events = yesterday.events()
    yesterday.write_events(events[events["timestamp"] < pd.Timestamp("2024-04-01", tz="UTC")])
    refused(yesterday, "newest event, hours", "check the events export", code=4)


@fault(14)
@pytest.mark.parametrize("n", [0, 3, 4, 10, -1])
@pytest.mark.parametrize("table", ["events", "items"])
def test_a_table_cut_off_is_named(yesterday: Shop, table: str, n: int) -> None:
    path = yesterday.folder / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[:n])
    refused(yesterday, f"{table}.parquet: cannot be read as a table")


@fault(14)
def test_100_flipped_bits_of_a_table_with_checksums_are_found_or_change_nothing(yesterday: Shop) -> None:
    path, rng = yesterday.folder / "events.parquet", random.Random(0)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path, write_page_checksum=True)
    config, as_of = load_config(yesterday.config).data, pd.Timestamp(TODAY, tz="UTC")
    whole, expected = path.read_bytes(), load_tables(config, as_of).sha256
    found = 0
    for _ in range(100):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            assert load_tables(config, as_of).sha256 == expected, f"a flipped bit of byte {at} was read as a value"
        except DataError as error:
            found += 1
            assert "events" in str(error)  # noqa: PT017 - a bit of a name or a statistic may change nothing
    assert found > 80
    yesterday.assert_yesterday_served()


@fault(15)
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda e: e.drop(columns="item_id"), ["events table has no column item_id", "rename it, or map it"]),
        (lambda e: e.rename(columns={"user_id": "userid"}), ["no column user_id", 'user_id = "userid"']),
        (lambda e: e.assign(timestamp=range(len(e))), ["timestamp holds numbers, such as '0'", "timestamps or ISO"]),
        (lambda e: e.assign(timestamp=e["timestamp"].astype("int64") // 1000), ["does not say its unit"]),
        (lambda e: e.assign(timestamp=e["timestamp"].dt.tz_localize(None)), ["carries no time zone", "data.timezone"]),
        (lambda e: e.assign(item_id=e["item_id"].str[1:].astype(float)), ["item_id holds floating-point numbers"]),
        (lambda e: e.assign(weight="heavy"), ["column weight", "'heavy'", "no number from 0 up"]),
        (lambda e: e.assign(event_type="buy"), ["'purchase'", "found 'buy'", "data.event_weights"]),
    ],
    ids=["missing", "renamed", "numbers as times", "epochs", "no zone", "float ids", "text as weight", "other labels"],
)
def test_a_column_that_changed_is_named_with_what_was_expected_and_found(
    yesterday: Shop, change: Callable[[Frame], Frame], parts: list[str]
) -> None:
    yesterday.write_events(change(yesterday.events()))
    refused(yesterday, "events", *parts)


@fault(15)
def test_one_file_of_a_folder_retyped_is_named_beside_the_first_that_differs(yesterday: Shop) -> None:
    events = yesterday.events()
    (yesterday.folder / "events").mkdir()
    events[:800].to_parquet(yesterday.folder / "events" / "a.parquet")
    later = events[800:].assign(user_id=events["user_id"][800:].str[1:].astype(int))
    later.to_parquet(yesterday.folder / "events" / "b.parquet")
    yesterday.config.write_text(yesterday.config.read_text().replace('"events.parquet"', '"events"'))
    refused(
        yesterday, "b.parquet: user_id holds integers, but text in", "a.parquet", "write all files of a table alike"
    )


@fault(16)
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "null, blank or overlong id"),
        ("user_id", " \t", "null, blank or overlong id"),
        ("user_id", "x" * 10_000, "null, blank or overlong id"),
        ("user_id", "u\n001", "control character in the id"),
        ("item_id", "i\x0001", "control character in the id"),
        ("item_id", "no such item", "item is not in the items table"),
    ],
)
def test_a_bad_id_is_quarantined_with_its_row_and_over_a_thousandth_stops(
    yesterday: Shop, column: str, value: str | None, reason: str
) -> None:
    events = yesterday.events()
    events.loc[7, column] = value
    yesterday.write_events(events)
    kept = yesterday.folder / "out" / "quarantine" / f"{TODAY}.parquet"
    assert yesterday.tonight().code == 0
    rows = pd.read_parquet(kept)
    assert rows[["file", "row", "column", "reason"]].to_numpy().tolist() == [["events.parquet", 7, column, reason]]
    assert len(rows["value"].iloc[0]) <= 83
    yesterday.assert_today_served()
    events.loc[7:9, column] = value
    yesterday.write_events(events)
    ended = yesterday.run("nightly", "--as-of", "2024-04-12T01:00")
    assert ended.code == 3
    assert f"first: row 7, column {column}" in ended.err
    assert "max_bad_share" in ended.err
    assert ended.err.count(f"still served: {TODAY}") == 1
    assert str(kept) in ended.err  # too many to go on, and all of them kept for a look
    assert pd.read_parquet(kept)["row"].tolist() == [7, 8, 9]
    kept.unlink()
    assert yesterday.run("validate", "--as-of", TODAY).code == 3
    assert pd.read_parquet(kept)["row"].tolist() == [7, 8, 9]
    yesterday.assert_today_served()


@fault(16)
def test_ids_with_slashes_dots_and_quotes_come_through_as_they_are(yesterday: Shop) -> None:
    hostile = ["../../etc/passwd", "a/b", "-rf *", "'; DROP TABLE users; --", str(2**63 - 1), "=1+1"]
    events = yesterday.events()
    names = dict(zip(sorted(events["user_id"].unique())[: len(hostile)], hostile, strict=True))
    yesterday.write_events(events.assign(user_id=events["user_id"].replace(names)))
    assert yesterday.tonight().code == 0
    assert set(hostile) <= set(yesterday.served()["user_id"].to_pylist())
    yesterday.assert_today_served()


@fault(16)
def test_lists_of_some_users_do_not_take_those_of_all_others_away(yesterday: Shop) -> None:
    users = yesterday.folder / "users.csv"
    users.write_text("user_id\nu007\nu008\nNA\nnobody\n")
    asked = ["score", "--as-of", TODAY, "--users", str(users)]
    ended = yesterday.run(*asked)
    assert ended.code == 0, ended.err
    assert "2 of 4 ids have no events" in ended.err
    assert "2 users" in ended.out
    assert "--move-current" in ended.out
    yesterday.assert_yesterday_served()
    moved = yesterday.run(*asked, "--move-current")  # they are made already, and now they are asked for by name
    assert moved.code == 0
    assert yesterday.served()["user_id"].unique().to_pylist() == ["u007", "u008"]
    assert yesterday.tonight().code == 0  # the audit called the lists of all too many
    assert len(yesterday.served()["user_id"].unique()) == 120


@fault(16)
def test_lists_of_some_items_do_not_take_those_of_all_others_away(yesterday: Shop) -> None:
    items = yesterday.folder / "campaign.csv"
    items.write_text("item_id\ni00\ni01\ni02\nNA\nnothing\n")
    asked = ["score", "--as-of", TODAY, "--items", str(items), "-k", "2"]
    ended = yesterday.run(*asked)
    assert ended.code == 0, ended.err
    assert "2 of 5 ids are not in the items table" in ended.err
    assert "--move-current" in ended.out
    yesterday.assert_yesterday_served()
    assert yesterday.run(*asked, "--move-current").code == 0
    assert set(yesterday.served()["item_id"].to_pylist()) == {"i00", "i01", "i02"}
    assert manifest(yesterday.output / "current")["longest"] == 3
    assert yesterday.tonight().code == 0  # lists of all items are not held against these
    assert len(set(yesterday.served()["item_id"].to_pylist())) > 10
    assert manifest(yesterday.output / "current")["longest"] is None
    items.write_text("item_id\nnothing\n")
    ended = yesterday.run(*asked)
    assert ended.code == 3
    assert "--items: none of 1 ids is in the items table" in ended.err
    yesterday.assert_today_served()


@fault(16)
def test_users_asked_for_in_another_type_are_found_and_strangers_alone_are_refused(yesterday: Shop) -> None:
    events = yesterday.events()
    yesterday.write_events(events.assign(user_id=events["user_id"].str[1:].astype(int)))
    users, output = yesterday.folder / "users.csv", yesterday.folder / "other"
    words = ["--as-of", TODAY, "--users", str(users), "--set", f"serving.output={output}", "--move-current"]
    users.write_text("user_id\n7\n8\n")
    assert yesterday.run("score", *words).code == 0
    assert assert_served_whole(output)["user_id"].unique().to_pylist() == [7, 8]
    users.write_text("user_id\nu007\n")
    ended = yesterday.run("score", *words)
    assert ended.code == 3
    assert "none of 1 ids has events; ids there are int64" in ended.err
    yesterday.assert_yesterday_served()

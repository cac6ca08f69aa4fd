import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from features.dataset import Dataset
from features.ingest import load_tables
from recsys.config import DataConfig
from recsys.errors import DataError

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["Tea", "Oil", ""]})


def events(**columns: Any) -> pd.DataFrame:
    rows = {
        "user_id": ["u", "u", "v", "v", "w"],
        "item_id": ["a", "b", "a", "c", "b"],
        "event_type": ["click", "buy", "buy", "view", "buy"],
        "timestamp": pd.to_datetime([f"2024-01-0{d}" for d in range(1, 6)], utc=True),
    }
    return pd.DataFrame(rows | columns)


def config(folder: Path, table: pd.DataFrame, items: pd.DataFrame = ITEMS, **settings: object) -> DataConfig:
    table.to_parquet(folder / "events.parquet")
    items.to_parquet(folder / "items.parquet")
    values = {
        "events": f"{folder}/events.parquet",
        "items": f"{folder}/items.parquet",
        "event_weights": {"click": 1.0, "buy": 6.0},
    }
    return DataConfig.model_validate(values | settings)


def test_only_the_ratios_of_weights_count(tmp_path: Path) -> None:
    for weights in ({"click": 1.0, "buy": 6.0}, {"click": 50.0, "buy": 300.0}):
        tables = load_tables(config(tmp_path, events(), event_weights=weights))
        dataset = Dataset.from_tables(tables, pd.Timestamp("2024-02-01", tz="UTC"))
        assert dataset.weight.tolist() == [1, 6, 6, 6]


def test_types_without_weight_are_counted_and_left_out(tmp_path: Path) -> None:
    c = config(tmp_path, events())
    tables = load_tables(c)
    assert tables.report.event_types == {"buy": 3, "click": 1}
    assert tables.report.ignored_types == {"view": 1}
    dataset = Dataset.from_tables(tables, pd.Timestamp("2024-02-01", tz="UTC"))
    assert dataset.weight.tolist() == [1, 6, 6, 6]


def test_gaps_are_told_of_columns_that_something_reads(tmp_path: Path) -> None:
    gaps = {"price": [1.0, None, 2.0, 3.0, 4.0], "utm_source": [None, None, "x", "y", "z"]}
    assert load_tables(config(tmp_path, events(**gaps))).report.null_shares == {"price": 0.2}


def test_nothing_at_or_after_as_of_is_kept(tmp_path: Path) -> None:
    tables = load_tables(config(tmp_path, events()), pd.Timestamp("2024-01-03", tz="UTC"))
    assert tables.events["timestamp"].max() == pd.Timestamp("2024-01-02", tz="UTC")
    assert tables.report.n_after_as_of == 3


def test_twice_the_same_rows_and_any_order_give_the_same_tables(tmp_path: Path) -> None:
    once = load_tables(config(tmp_path, events()))
    doubled = pd.concat([events(), events()]).sample(frac=1, random_state=0)
    twice = load_tables(config(tmp_path, doubled))
    pd.testing.assert_frame_equal(once.events, twice.events)
    assert once.sha256 == twice.sha256
    assert twice.report.n_duplicates == 5


@pytest.mark.parametrize(
    ("column", "values", "value"),
    [
        ("user_id", ["u", " ", "v", "v", "w"], "' '"),
        ("user_id", ["u", None, "v", "v", "w"], "value null"),
        ("item_id", ["a", "zzz", "a", "c", "b"], "zzz"),
        ("event_type", ["click", None, "buy", "view", "buy"], "value null"),
        ("event_type", ["click", " ", "buy", "view", "buy"], "' '"),
        ("weight", [1.0, float("nan"), 1.0, 1.0, 1.0], "value null"),
        ("weight", [1.0, float("inf"), 1.0, 1.0, 1.0], "inf"),
        ("weight", [1e6, 1e39, 1.0, 1.0, 0.0], "'1e+39': weight is no number from 0 up to 1,000,000"),
        ("price", [1.0, float("inf"), 1.0, 1.0, None], "'inf': unreadable number"),
        ("quantity", [1.0, float("-inf"), 1.0, 1.0, None], "'-inf': unreadable number"),
        ("timestamp", pd.to_datetime(["2024-01-01", "1970-01-01", *["2024-01-02"] * 3], utc=True), "1970"),
    ],
)
def test_a_bad_row_stops_with_file_row_column_and_value(
    tmp_path: Path, column: str, values: list[object], value: str
) -> None:
    with pytest.raises(DataError) as error:
        load_tables(config(tmp_path, events(**{column: values})))
    for part in ("events.parquet", "row 1", f"column {column}", value, "max_bad_share"):
        assert part in str(error.value)


def test_within_the_allowed_share_a_bad_row_is_quarantined(tmp_path: Path) -> None:
    tables = load_tables(config(tmp_path, events(item_id=["a", "zzz", "a", "c", "b"]), max_bad_share=0.2))
    assert len(tables.events) == 4
    assert tables.quarantine[["table", "row", "column", "value"]].to_numpy().tolist() == [
        ["events", 1, "item_id", "'zzz'"]
    ]


def test_ids_beyond_two_to_the_53_survive_beside_a_gap(tmp_path: Path) -> None:
    big = 2**53 + 1
    users = pd.array([big, big, None, 7, 7], dtype="Int64")
    tables = load_tables(config(tmp_path, events(user_id=users), max_bad_share=0.5))
    assert tables.events["user_id"].max() == big


def test_csv_ids_keep_their_zeros(tmp_path: Path) -> None:
    c = config(tmp_path, events())
    events(user_id=["007", "007", "8", "8", "9"]).to_csv(tmp_path / "events.csv", index=False)
    tables = load_tables(c.model_copy(update={"events": str(tmp_path / "events.csv")}))
    assert "007" in set(tables.events["user_id"])


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='user_id = "userid"'):
        load_tables(config(tmp_path, events().rename(columns={"user_id": "userid"})))


def test_foreign_names_are_mapped_per_table(tmp_path: Path) -> None:
    c = config(
        tmp_path, events().rename(columns={"user_id": "who", "item_id": "sku"}), ITEMS.rename(columns={"item_id": "asin"}),
        columns={"user_id": "who", "events": {"item_id": "sku"}, "items": {"item_id": "asin"}},
    )  # fmt: skip
    assert len(load_tables(c).events) == 5


def test_a_mapping_that_no_file_fulfils_is_told(tmp_path: Path) -> None:
    items = ITEMS.assign(in_stock=[True, False, True])
    kept = load_tables(config(tmp_path, events(), items, columns={"available": "in_stock"}))
    assert kept.report.n_unavailable == 1
    with pytest.raises(DataError, match='did you mean "in_stock"'):
        load_tables(config(tmp_path, events(), items, columns={"available": "in_stok"}))


def test_a_day_of_entry_that_cannot_be_read_is_refused_and_an_empty_one_means_always(tmp_path: Path) -> None:
    items = ITEMS.assign(created_at=pd.Series(["2024-01-01T00:00Z", "next week", None], dtype="str"))
    bad = load_tables(config(tmp_path, events(item_id=["a"] * 5), items, max_bad_share=0.4))
    assert bad.items["item_id"].tolist() == ["a", "c"]
    assert bad.quarantine[["row", "value", "reason"]].to_numpy().tolist() == [[1, "'next week'", "unreadable time"]]


def test_naive_times_need_a_zone_and_get_it(tmp_path: Path) -> None:
    naive = events(timestamp=pd.to_datetime(["2024-07-01 12:00"] * 5))
    with pytest.raises(DataError, match=r"data\.timezone"):
        load_tables(config(tmp_path, naive))
    tables = load_tables(config(tmp_path, naive, timezone="Europe/Madrid"))
    assert tables.events["timestamp"].iloc[0] == pd.Timestamp("2024-07-01 10:00", tz="UTC")


def test_numbers_as_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unit"):
        load_tables(config(tmp_path, events(timestamp=[1, 2, 3, 4, 5])))


@pytest.mark.parametrize("n", [0, 3, 4, 10, -1])
def test_a_cut_off_file_is_named(tmp_path: Path, n: int) -> None:
    c = config(tmp_path, events())
    content = (tmp_path / "events.parquet").read_bytes()
    (tmp_path / "events.parquet").write_bytes(content[:n])
    with pytest.raises(DataError, match=r"events\.parquet"):
        load_tables(c)


def test_hostile_titles_pass_as_text(tmp_path: Path) -> None:
    titles = ["<script>\x00", "e\u0301", "x" * 100_000]
    tables = load_tables(config(tmp_path, events(), ITEMS.assign(title=titles)))
    assert tables.items["title"].str.len().tolist() == [8, 1, 20_000]
    assert "\x00" not in tables.items["title"].iloc[0]


def test_frames_are_not_changed() -> None:
    before = events()
    Dataset.from_frames(before, ITEMS, event_weights={"buy": 6})
    pd.testing.assert_frame_equal(before, events())


def test_a_backfill_knows_what_was_created_or_had_sold_by_then(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": ["a", "a0", "b", "c"], "title": ["a", "later", "b", "always"]})
    created = pd.to_datetime(pd.Series(["2023-01-01", "2024-01-04", "2024-01-09", None]), utc=True)
    tables = load_tables(
        config(tmp_path, events(), items.assign(created_at=created)), pd.Timestamp("2024-01-03", tz="UTC")
    )
    assert tables.items["item_id"].tolist() == tables.log.items.ids.tolist() == ["a", "b", "c"]
    assert tables.events["item_id"].tolist() == ["a", "b"]  # b sold on 2 January; an import wrote its day of entry anew
    assert tables.log.per_item.tolist() == [1, 1, 0]
    assert tables.report.n_after_as_of == 3
    assert tables.report.quarantined == {}


def test_bad_rows_of_the_future_do_not_count(tmp_path: Path) -> None:
    c = config(tmp_path, events(item_id=["a", "b", "a", "c", "zzz"]))
    assert load_tables(c, pd.Timestamp("2024-01-05", tz="UTC")).report.n_events == 4


def test_a_time_that_cannot_be_read_is_shown_as_it_came(tmp_path: Path) -> None:
    given = ["2024-01-01T00:00Z", "last\nTuesday", *["2024-01-02T00:00Z"] * 3]
    with pytest.raises(DataError) as error:
        load_tables(config(tmp_path, events(timestamp=given)))
    assert "row 1, column timestamp, value 'last\\nTuesday': unreadable time" in str(error.value)


def test_items_that_repeat_collapse_and_those_that_contradict_are_refused(tmp_path: Path) -> None:
    items = pd.DataFrame({"item_id": ["a", "a", "b", "c", "b"], "title": ["Tea", "Tea", "Oil", "", "Paint"]})
    tables = load_tables(config(tmp_path, events(), items, max_bad_share=0.2))
    assert tables.items["title"].tolist() == ["Tea", "Oil", ""]
    assert tables.report.n_duplicate_items == 1
    assert tables.quarantine[["row", "value", "reason"]].to_numpy().tolist() == [[4, "'b'", "id is there already"]]


def test_of_events_that_repeat_the_same_one_stays_in_any_order(tmp_path: Path) -> None:
    repeated = pd.concat([events(price=[1.0] * 5), events(price=[2.0] * 5)], ignore_index=True)
    one = load_tables(config(tmp_path, repeated)).events
    other = load_tables(config(tmp_path, repeated[::-1])).events
    assert len(one) == 5
    pd.testing.assert_frame_equal(one, other)


def test_users_are_checked_and_sorted(tmp_path: Path) -> None:
    pd.DataFrame({"user_id": ["w", "u"], "age": [3, None]}).to_parquet(tmp_path / "users.parquet")
    users = load_tables(config(tmp_path, events(), users=f"{tmp_path}/users.parquet")).users
    assert users is not None
    assert users["user_id"].tolist() == ["u", "w"]


def test_the_zone_of_the_machine_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = config(tmp_path, events(timestamp=["2024-03-31 02:30"] * 5), timezone="Europe/Madrid")
    prints = set()
    for zone in ("UTC", "Asia/Kolkata", "America/New_York", "Pacific/Auckland"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        prints.add(load_tables(c).sha256)
    monkeypatch.undo()
    time.tzset()
    assert len(prints) == 1


def test_another_value_gives_another_fingerprint(tmp_path: Path) -> None:
    one = load_tables(config(tmp_path, events()))
    other = load_tables(config(tmp_path, events(), ITEMS.assign(title=["Tea", "Oil", "Paint"])))
    assert one.sha256 != other.sha256


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.events: .* no rows"):
        load_tables(config(tmp_path, events()[:0]))


def test_integer_ids_meet_text_ids_of_the_same_digits(tmp_path: Path) -> None:
    items = ITEMS.assign(item_id=[1, 2, 3])
    tables = load_tables(config(tmp_path, events(item_id=["1", "2", "1", "3", "2"]), items))
    assert tables.events["item_id"].dtype == tables.items["item_id"].dtype == np.int64


def test_the_report_prints_names_from_the_data_as_plain_text(tmp_path: Path) -> None:
    types = ["buy", "[red]x[/red]\x1b", "buy", "buy", "buy"]
    report = load_tables(config(tmp_path, events(event_type=types))).report
    console = Console(file=io.StringIO(), width=200)
    report.render(console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x[/red]\\x1b 1" in printed
    assert json.loads(json.dumps(report.to_dict()))["items_with"] == {"title": pytest.approx(2 / 3)}


@pytest.mark.parametrize("name", ["amazon-scientific", "movies", "online-retail"])
def test_real_tables_come_through_whole(name: str) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / name
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    c = DataConfig(
        events=str(folder / "events.parquet"),
        items=str(folder / "items.parquet"),
        event_weights={"purchase": 1, "like": 1},
    )
    tables = load_tables(c)
    assert tables.report.quarantined == {}
    assert np.all(np.diff(tables.events["timestamp"].astype("int64")) >= 0)


def test_a_price_that_cannot_be_read_is_refused_and_an_empty_one_is_none(tmp_path: Path) -> None:
    items = ITEMS.assign(price=["14.95", "14,95 \u20ac", "NULL"])
    with pytest.raises(DataError, match=r"1 of 3 items .* row 1, column price, value '14,95 .*read like 14\.95"):
        load_tables(config(tmp_path, events(item_id=["a"] * 5), items))
    tables = load_tables(config(tmp_path, events(item_id=["a"] * 5), items, max_bad_share=0.4))
    assert tables.items["price"].tolist() == pytest.approx([14.95, np.nan], nan_ok=True)
    assert tables.quarantine[["row", "column", "reason"]].to_numpy().tolist() == [[1, "price", "unreadable number"]]


@pytest.mark.parametrize("column", ["price", "quantity", "rating"])
def test_a_number_of_an_event_that_cannot_be_read_is_refused(tmp_path: Path, column: str) -> None:
    table = events(**{column: ["1", "", None, "two", "3"]})
    tables = load_tables(config(tmp_path, table, max_bad_share=0.2))
    assert tables.quarantine[["row", "column", "value"]].to_numpy().tolist() == [[3, column, "'two'"]]


@pytest.mark.parametrize(
    ("table", "items", "form"),
    [
        (events(timestamp=["soon"] * 5), ITEMS, "ISO 8601, like 2026-04-01T05:13:25Z"),
        (events(), ITEMS.assign(available=["yes", "no", "perhaps"]), "true, t, yes, y, 1 and false"),
    ],
)
def test_a_refusal_says_what_would_have_been_read_and_how_rows_count(
    tmp_path: Path, table: pd.DataFrame, items: pd.DataFrame, form: str
) -> None:
    with pytest.raises(DataError, match="rows count from 0") as error:
        load_tables(config(tmp_path, table, items))
    assert form in str(error.value)


def test_a_label_that_never_occurs_is_told_with_the_type_it_may_mean(tmp_path: Path) -> None:
    weights = {"buy": 6.0, "veiw": 1.0, "rent\x1b": 2.0}
    report = load_tables(config(tmp_path, events(), event_weights=weights)).report
    assert report.absent_labels == {"veiw": "view", "rent\x1b": None}
    console = Console(file=io.StringIO(), width=200)
    report.render(console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "labels that never occur" in printed
    assert "'veiw' (did you mean 'view'?), 'rent\\x1b'" in printed


def test_which_of_two_rows_with_one_id_stays_is_no_matter_of_order(tmp_path: Path) -> None:
    items = pd.concat([ITEMS, ITEMS.assign(title="other")], ignore_index=True)
    one, two = (load_tables(config(tmp_path, events(), table, max_bad_share=0.5)) for table in (items, items[::-1]))
    pd.testing.assert_frame_equal(one.items, two.items)
    assert one.sha256 == two.sha256
    assert len(one.quarantine) == len(two.quarantine) == 3


@pytest.mark.parametrize("prices", [["dear", None], [None, "dear"]])
def test_a_good_row_is_no_repeat_of_a_refused_one(tmp_path: Path, prices: list[Any]) -> None:
    items = pd.concat([ITEMS, ITEMS[:1]], ignore_index=True).assign(price=[prices[0], "1", "1", prices[1]])
    tables = load_tables(config(tmp_path, events(), items, max_bad_share=0.5))
    assert tables.items["item_id"].tolist() == ["a", "b", "c"]
    assert tables.quarantine["reason"].tolist() == ["unreadable number"]

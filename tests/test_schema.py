import pyarrow as pa
import pytest

from recsys.errors import DataError
from recsys.schema import EVENTS, ITEMS, TableSchema, lists_frame, nearest, recommendation_schema, require_columns


def test_required_columns_suffice_and_extra_ones_are_carried() -> None:
    require_columns(ITEMS, ["colour", "title", "item_id"], "items.parquet")


def test_a_missing_column_is_named_with_file_nearest_name_and_remedy() -> None:
    with pytest.raises(DataError) as error:
        require_columns(EVENTS, ["UserId", "item_id", "event_type", "time\nstamp"], "part-0.parquet")
    for part in ("part-0.parquet", "user_id, timestamp", '[data.columns.events] user_id = "UserId"', "time\\nstamp"):
        assert part in str(error.value)


def test_a_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"'title'.*more than once"):
        require_columns(ITEMS, ["item_id", "title", "title"], "items.csv")


def test_a_name_near_the_wanted_one_is_escaped_and_can_be_pasted() -> None:
    with pytest.raises(DataError) as error:
        require_columns(ITEMS, ["item_id\x1b[2J\n", "title"], "items.csv")
    assert '"item_id\\u001B[2J\\u000A"' in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("schema", "found", "hints"),
    [
        (ITEMS, ["kunde", "titel"], ['item_id = "your_column"', 'title = "titel"']),
        (EVENTS, ["kunde", "item_id", "event_type", "timestamp"], ['user_id = "your_column"']),
        (EVENTS, ["kunde", "artikelnr"], [f'{c} = "your_column"' for c in EVENTS.required]),
        (ITEMS, ["item_id", "title (not mapped)"], ['title = "your_column"']),
        (ITEMS, ["Item ID ", "title"], ['item_id = "Item ID " (with the blank at its end)']),
    ],
)
def test_hints_name_no_column_twice_and_none_of_ours(schema: TableSchema, found: list[str], hints: list[str]) -> None:
    with pytest.raises(DataError) as error:
        require_columns(schema, found, "table.csv")
    assert all(hint in str(error.value) for hint in hints), str(error.value)


def test_nothing_near_gives_no_suggestion() -> None:
    assert nearest("timestamp", ["sku", "qty"]) is None


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_recommendations_keep_the_type_of_ids(kind: pa.DataType) -> None:
    schema = recommendation_schema(pa.string(), kind)
    assert schema.field("item_id").type == schema.field("reason_item_id").type == kind
    assert schema.field("user_id").type == pa.string()
    assert schema.names[:5] == ["user_id", "item_id", "rank", "score", "p"]


def test_an_id_that_some_rows_lack_never_goes_through_float() -> None:
    ids = [2**60 + 1, None]
    frame = lists_frame(pa.table({"item_id": [2**60 + 1, 7], "reason_item_id": pa.array(ids, pa.int64())}))
    assert frame["item_id"].dtype == "int64"
    assert frame["reason_item_id"].iloc[0] == 2**60 + 1
    assert frame["reason_item_id"].isna().tolist() == [False, True]

import gzip
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.read import read_csv, read_table
from recsys.config import DataConfig
from recsys.errors import DataError
from recsys.schema import EVENTS, ITEMS


def config(columns: Any = None) -> DataConfig:
    return DataConfig(events="e", items="i", event_weights={"buy": 1}, columns=columns or {})


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, write_page_checksum=True)
    return path


def test_a_folder_reads_as_one_table_without_hidden_and_temporary_files(tmp_path: Path) -> None:
    write(tmp_path / "b" / "p.parquet", item_id=["2"], title=["Oil"])
    write(tmp_path / "a" / "p.parquet", item_id=["1"], title=["Tea"])
    for junk in (".p.parquet.tmp", "_SUCCESS", ".staging/p.parquet", "README.md", "p.parquet.crc"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    frame = read_table(str(tmp_path), ITEMS, config())
    assert frame["item_id"].tolist() == ["1", "2"]
    assert frame["_file"].astype(str).tolist() == ["a/p.parquet", "b/p.parquet"]
    assert frame["_row"].tolist() == [0, 0]


def test_folders_that_name_a_value_make_a_column(tmp_path: Path) -> None:
    for number, brand in enumerate(["M%26M=s", "__HIVE_DEFAULT_PARTITION__"]):
        path = tmp_path / f"day={number}" / f"brand={brand}" / "available=false" / "p.parquet"
        write(path, item_id=[number], title=["Tea"], available=pa.array([True]))
    frame = read_table(str(tmp_path), ITEMS, config())
    assert frame["brand"].fillna("(null)").tolist() == ["M&M=s", "(null)"]
    assert frame["available"].tolist() == [True, True]  # what a file says itself counts


def test_a_glob_and_a_url_find_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "items-1.parquet", item_id=[1], title=["Tea"])
    for place in (f"{tmp_path}/items-*.parquet", f"file://{tmp_path}/items-1.parquet"):
        assert read_table(place, ITEMS, config())["item_id"].tolist() == [1]


@pytest.mark.parametrize("folder", ["_exports", ".data/in"])
def test_a_glob_may_name_what_a_search_would_pass_over(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "items-1.parquet", item_id=[1], title=["Tea"])
    write(tmp_path / folder / "_items-2.parquet", item_id=[2], title=["Oil"])
    assert read_table(f"{tmp_path}/{folder}/*.parquet", ITEMS, config())["item_id"].tolist() == [1]


@pytest.mark.parametrize("name", ["shop[1]", "what?", "a*b"])
def test_a_local_path_that_is_there_is_no_pattern(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / "items.parquet", item_id=[1], title=["Tea"])
    for place in (tmp_path / name, tmp_path / name / "items.parquet"):
        assert read_table(str(place), ITEMS, config())["item_id"].tolist() == [1]


@pytest.mark.parametrize("place", ["/nowhere/items.parquet", "nosuchprotocol://x/items.parquet"])
def test_nothing_there_is_a_data_error_that_names_the_setting(place: str) -> None:
    with pytest.raises(DataError, match=rf"{place}.*data\.items"):
        read_table(place, ITEMS, config())


@pytest.mark.parametrize("n", [0, 3, 4, 10, -1])
def test_a_cut_off_file_is_named(tmp_path: Path, n: int) -> None:
    path = write(tmp_path / "items.parquet", item_id=["1"], title=["Tea"])
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(DataError, match=r"items\.parquet: cannot be read"):
        read_table(str(path), ITEMS, config())


def test_a_flipped_bit_in_the_data_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=[os.urandom(400).hex()], title=["Tea"])
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"items\.parquet"):
        read_table(str(path), ITEMS, config())


def test_csv_columns_are_text_with_lines_inside_and_na_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,title,price\n00123,"two\nlines",1\nNA,,x\n')
    frame = read_table(str(tmp_path / "items.csv"), ITEMS, config())
    assert frame["item_id"].tolist() == ["00123", "NA"]
    assert frame["title"].iloc[0] == "two\nlines"
    assert pd.isna(frame["title"].iloc[1])


def test_bytes_dictionaries_and_lists_become_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "items.parquet",
        item_id=pa.array([b"a"]), title=pa.array(["Tea"]).dictionary_encode(), tags=pa.array([["hot", "green"]]),
    )  # fmt: skip
    row = read_table(str(path), ITEMS, config()).iloc[0]
    assert (row["item_id"], row["title"], row["tags"]) == ("a", "Tea", "hot, green")


@pytest.mark.parametrize("kind", [pa.uuid(), pa.binary(16), pa.dictionary(pa.int8(), pa.binary(16))])
def test_uuids_are_read_as_people_write_them(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([UUID(int=1).bytes, None, UUID(int=1).bytes], pa.binary(16))
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids.cast(kind)
    path = write(tmp_path / "items.parquet", item_id=ids, title=["Tea"] * 3)
    found = read_table(str(path), ITEMS, config())["item_id"]
    assert found.fillna("").tolist() == [str(UUID(int=1)), "", str(UUID(int=1))]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()), pa.list_(pa.large_string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
)  # fmt: skip
def test_lists_of_words_become_text_without_their_gaps(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [["tea", None], ["hot", "green"], [None, None]]
    path = write(tmp_path / "items.parquet", item_id=list("abc"), title=["Tea"] * 3, tags=pa.array(lists, kind))
    assert read_table(str(path), ITEMS, config())["tags"].tolist() == ["tea", "hot, green", ""]


@pytest.mark.parametrize("kind", [pa.null(), pa.string()])
def test_a_list_without_words_is_empty_text_and_no_list_is_null(tmp_path: Path, kind: pa.DataType) -> None:
    tags = pa.array([[], None], pa.list_(kind))
    path = write(tmp_path / "items.parquet", item_id=["a", "b"], title=["Tea", "Oil"], tags=tags)
    assert read_table(str(path), ITEMS, config())["tags"].fillna("(null)").tolist() == ["", "(null)"]


def test_dates_beyond_those_of_python_are_text_that_is_no_time(tmp_path: Path) -> None:
    days = pa.array([2**31 - 1, 19_000], pa.int32()).cast(pa.date32())
    path = write(tmp_path / "i.parquet", item_id=[1, 2], title=["Tea", "Oil"], created_at=days)
    assert read_table(str(path), ITEMS, config())["created_at"].tolist() == [
        "<value out of range: 2147483647>",
        "2022-01-08",
    ]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1], pa.timestamp("us", "Mars/Base")),
        pa.StructArray.from_arrays([pa.array([2**31 - 1], pa.int32()).cast(pa.date32())], ["day"]),
    ],
)
def test_a_column_that_pandas_cannot_hold_is_named(tmp_path: Path, values: pa.Array) -> None:
    path = write(tmp_path / "i.parquet", item_id=[1], title=["Tea"], odd=values)
    with pytest.raises(
        DataError, match=r"i\.parquet: column 'odd' of type .* holds what cannot be read: .*; export it"
    ):
        read_table(str(path), ITEMS, config())


def test_bytes_that_are_no_utf8_are_refused_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=pa.array([b"\xff"]), title=["Tea"])
    with pytest.raises(DataError, match=r"items\.parquet"):
        read_table(str(path), ITEMS, config())


def test_files_that_disagree_on_a_type_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", item_id=[1], title=["Tea"])
    write(tmp_path / "b.parquet", item_id=["2"], title=["Oil"])
    with pytest.raises(DataError, match=r"b\.parquet: item_id holds text, but integers in .*a\.parquet"):
        read_table(str(tmp_path), ITEMS, config())


def test_integers_with_and_without_a_sign_are_not_joined_as_floats(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", item_id=pa.array([1], pa.int64()), title=["Tea"])
    write(tmp_path / "b.parquet", item_id=pa.array([2], pa.uint64()), title=["Oil"])
    with pytest.raises(DataError, match=r"b\.parquet: item_id holds integers without a sign .*, but integers in .*a\."):
        read_table(str(tmp_path), ITEMS, config())


def test_zones_and_units_of_times_may_differ_between_files(tmp_path: Path) -> None:
    for name, kind in (("a", pa.timestamp("ms", "UTC")), ("b", pa.timestamp("ns", "Europe/Madrid"))):
        one = pa.array([1_700_000_000_000], pa.timestamp("ms", "UTC")).cast(kind)
        write(tmp_path / f"{name}.parquet", user_id=["u"], item_id=["i"], event_type=["buy"], timestamp=one)
    times = read_table(str(tmp_path), EVENTS, config())["timestamp"]
    assert isinstance(times.dtype, pd.DatetimeTZDtype)
    assert times.nunique() == 1


def test_a_mapped_column_pushes_aside_one_of_our_name(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=["x"], sku=["1"], title=["Tea"])
    frame = read_table(str(path), ITEMS, config({"items": {"item_id": "sku"}}))
    assert frame["item_id"].tolist() == ["1"]


def test_a_mapping_to_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=["x"], sku=["1"], title=["Tea"])
    with pytest.raises(DataError, match=r'"skus".*did you mean "sku"'):
        read_table(str(path), ITEMS, config({"items": {"item_id": "skus"}}))


def test_a_near_column_is_shown_escaped(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=["x"], **{"sku\x1b[2J": ["1"]}, title=["Tea"])
    with pytest.raises(DataError, match=r"did you mean") as error:
        read_table(str(path), ITEMS, config({"items": {"item_id": "sku[2J"}}))
    assert str(error.value).isprintable()


TEA = b"item_id,title\n007,Tea\n"


@pytest.mark.parametrize("name", ["items.csv.gz", "items.CSV", "items.CSV.GZ"])
def test_csv_is_read_compressed_or_in_capitals_alone_and_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(TEA) if name.lower().endswith("gz") else TEA)
    for place in (tmp_path, tmp_path / name):
        assert read_table(str(place), ITEMS, config())["item_id"].tolist() == ["007"]


def test_a_folder_misses_no_file_by_its_capitals(tmp_path: Path) -> None:
    write(tmp_path / "a.PARQUET", item_id=["1"], title=["Tea"])
    write(tmp_path / "b.parquet", item_id=["2"], title=["Oil"])
    assert read_table(str(tmp_path), ITEMS, config())["item_id"].tolist() == ["1", "2"]


def test_a_compressed_csv_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(os.urandom(300).hex().encode() + TEA)[:-20])
    with pytest.raises(DataError, match=r"items\.csv\.gz: cannot be read .*; write the file again"):
        read_table(str(tmp_path), ITEMS, config())


@pytest.mark.parametrize("name", ["more.xlsx", "more.JSON", "more.txt", "more.gz"])
def test_files_beside_tables_that_may_hold_rows_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "items.csv").write_bytes(TEA)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=rf"{name}: among .* data\.items, .*; convert them, or move them away"):
        read_table(str(tmp_path), ITEMS, config())


def test_a_csv_by_another_name_is_told_how_to_end(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_bytes(TEA)
    with pytest.raises(DataError, match=r"tried as Parquet, and a CSV file must end in \.csv or \.csv\.gz"):
        read_table(str(tmp_path / "items.txt"), ITEMS, config())


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_without_commas_in_its_header_is_read_by_what_stands_in_their_place(
    tmp_path: Path, separator: str
) -> None:
    rows = ["item_id title price", "007 Tea,\u00a0green 14,95"]
    (tmp_path / "items.csv").write_text("\n".join(row.replace(" ", separator) for row in rows))
    row = read_table(str(tmp_path / "items.csv"), ITEMS, config()).iloc[0]
    assert (row["item_id"], row["title"], row["price"]) == ("007", "Tea,\u00a0green", "14,95")


@pytest.mark.parametrize(
    "content",
    [
        'item_id;title;"a, b, c, d"\n007;Tea, green;x\n',
        '\ufeff"item_id";"title";"a, ""b"", c, d"\r\n007;"Tea, green";x\r\n',
        "\n\r\nitem_id;title\n007;Tea, green\n",
        "item_id;title\r007;Tea, green\r",
    ],
)
def test_what_separates_a_csv_is_what_its_header_holds_most_of_outside_quotes(tmp_path: Path, content: str) -> None:
    (tmp_path / "items.csv").write_bytes(content.encode())
    for table in (read_table(str(tmp_path / "items.csv"), ITEMS, config()), read_csv(tmp_path / "items.csv")):
        assert table[["item_id", "title"]].to_numpy().tolist() == [["007", "Tea, green"]]


@pytest.mark.parametrize(
    ("content", "encoding", "told"),
    [
        ("item_id;title\n1;Tea\n", "utf-16", "UTF-16, .*; write it as UTF-8"),
        ("item_id;title\n1;Tea\n", "utf-16-be", "UTF-16, .*; write it as UTF-8"),
        ("sep=;\r\nitem_id;title\r\n1;Tea\r\n", "utf-8-sig", "first line is 'sep=;', .*; remove that line"),
    ],
)
def test_what_excel_writes_beside_csv_is_refused_with_what_mends_it(
    tmp_path: Path, content: str, encoding: str, told: str
) -> None:
    (tmp_path / "items.csv").write_bytes(content.encode(encoding))
    for read in (lambda path: read_table(path, ITEMS, config()), read_csv):
        with pytest.raises(DataError, match=rf"items\.csv: .*{told}"):
            read(str(tmp_path / "items.csv"))


def test_a_mapped_column_may_come_or_go_within_a_folder_but_not_be_in_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", item_id=["1"], title=["Tea"])
    write(tmp_path / "b.parquet", item_id=["2"], title=["Oil"], vendor=["Kusmi"])
    write(tmp_path / "c.parquet", item_id=["3"], title=["Salt"])
    frame = read_table(str(tmp_path), ITEMS, config({"brand": "vendor"}))
    assert frame["brand"].fillna("(null)").tolist() == ["(null)", "Kusmi", "(null)"]
    with pytest.raises(DataError, match=r'a\.parquet: no column "verdor", which \[data.columns\] names for brand'):
        read_table(str(tmp_path), ITEMS, config({"brand": "verdor"}))
    with pytest.raises(DataError, match=r'a\.parquet: no column "vendor", which .* names for title'):
        read_table(str(tmp_path), ITEMS, config({"items": {"title": "vendor"}}))


@pytest.mark.parametrize("content", ["item_id,title\n1,Caf\u00e9\n", "item_id,title,Gr\u00f6\u00dfe\n1,Tea,2\n"])
def test_a_csv_in_another_encoding_is_to_be_written_as_utf_8(tmp_path: Path, content: str) -> None:
    (tmp_path / "items.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"items\.csv: cannot be read .*; write it as UTF-8"):
        read_table(str(tmp_path / "items.csv"), ITEMS, config())


def test_a_mapping_that_lacks_a_blank_is_told_where(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", **{"Kunde ": ["1"]}, title=["Tea"])
    with pytest.raises(DataError, match=r'did you mean "Kunde " \(with the blank at its end\)'):
        read_table(str(path), ITEMS, config({"items": {"item_id": "Kunde"}}))


OPEN = 'item_id,price,title\n1,2,Tea\n2,3,"Screen, 15"" wide\n3,4,Oil\n4,5,Salt{end}\n\n'


@pytest.mark.parametrize("end", ["", ' 7""'])
@pytest.mark.parametrize("name", ["items.csv", "items.csv.gz"])
def test_a_quote_that_is_never_closed_is_named_with_its_row(tmp_path: Path, name: str, end: str) -> None:
    content = OPEN.format(end=end).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(
        DataError, match=rf"{name}: row 1, column 'title': .*never closed.*Screen, 15.*double each quote"
    ):
        read_table(str(tmp_path), ITEMS, config())


@pytest.mark.parametrize("end", ['"', '"""', '"\r\n', '"\n\n'])
def test_a_last_text_of_several_lines_that_is_closed_is_read(tmp_path: Path, end: str) -> None:
    (tmp_path / "items.csv").write_text(f'item_id,title\n1,Tea\n2,"green\nor black{end}')
    assert read_table(str(tmp_path), ITEMS, config())["item_id"].tolist() == ["1", "2"]


def test_a_column_mapped_to_two_of_ours_is_both(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", item_id=["1"], title=["Tea"], vendor=["Kusmi"])
    row = read_table(str(path), ITEMS, config({"items": {"brand": "vendor", "tags": "vendor"}})).iloc[0]
    assert (row["brand"], row["tags"]) == ("Kusmi", "Kusmi")


@pytest.mark.parametrize("order", [1, -1])
def test_each_table_takes_its_own_of_two_mappings_to_one_name(tmp_path: Path, order: int) -> None:
    columns = dict([("timestamp", "ts"), ("created_at", "ts")][::order])
    events = write(tmp_path / "e.parquet", user_id=["u"], item_id=["1"], event_type=["buy"], ts=["2024-01-01"])
    items = write(tmp_path / "i.parquet", item_id=["1"], title=["Tea"], ts=["2023-01-01"])
    assert list(read_table(str(events), EVENTS, config(columns)))[3:4] == ["timestamp"]
    assert list(read_table(str(items), ITEMS, config(columns)))[2:3] == ["created_at"]

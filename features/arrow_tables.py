"""Parquet and CSV files as Arrow tables of at most so many rows."""

import codecs
import errno
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from features.files import CSV, Fetched, has_ending, reached, reason_of
from recsys.errors import DataError, ResourceError, shown

CSV_BLOCK = 16 * 2**20  # bytes parsed at a time; a row must fit
_LISTS = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view,
)  # fmt: skip
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WORDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def arrow_tables(filesystem: Any, file: str, name: str, rows: int) -> Iterator[pa.Table]:
    """A file in tables of at most so many rows; one that is empty where it has none."""
    try:
        is_local = isinstance(filesystem, LocalFileSystem)
        with reached(filesystem, name):
            opened = filesystem.open(file, "rb")
        with opened as raw:
            handle = raw if is_local else Fetched(raw, filesystem, name)
            if has_ending(file, *CSV):
                tables = _csv(_streams(file if is_local else handle.read(), file), name, rows)
            else:
                tables = _parquet(handle, rows)
            for table in tables:
                table = pa.table([_plain(c) for c in table.columns], names=table.column_names)
                table.validate(full=True)  # text that is no UTF-8 shows itself here, not hours later
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:  # the table may be sound: another remedy and code
            raise ResourceError(f"{name}: {error.strerror}; check the disk, then run again") from error
        raise DataError(f"{name}: cannot be read as a table: {reason_of(error)}; {_remedy(error, file)}") from error


def _remedy(error: Exception, file: str) -> str:
    if "utf" in str(error).lower():
        return "write it as UTF-8"
    if has_ending(file, ".parquet", *CSV):
        return "write the file again"
    return "it was tried as Parquet, and a CSV file must end in .csv or .csv.gz; name it so, or write the file again"


def _parquet(handle: BinaryIO | Fetched, rows: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(handle, page_checksum_verification=True)
    yield from _cut(file.schema_arrow, file.iter_batches(rows), rows)


def _streams(source: str | bytes, file: str) -> Callable[[], pa.NativeFile]:
    """Opens a CSV from its start; Arrow reads ahead on threads of its own, which a Python file would not survive."""
    compression = "gzip" if has_ending(file, ".gz") else None
    if isinstance(source, str):
        return lambda: pa.input_stream(source, compression=compression)
    return lambda: pa.input_stream(pa.BufferReader(source), compression=compression)


def _csv(opened: Callable[[], pa.NativeFile], name: str, rows: int) -> Iterator[pa.Table]:
    with opened() as source:
        separator = separator_of(source.read(2**16), name)
    parse = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=CSV_BLOCK)
    with pacsv.open_csv(opened(), read, parse) as reader:
        names = reader.schema.names
    # a column typed by its first rows would fail on one bad value later, and an item may be called NA
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with pacsv.open_csv(opened(), read, parse, convert) as reader:
        n_rows, last = 0, pa.scalar(None)
        for table in _cut(reader.schema, reader, rows):
            n_rows, last = n_rows + len(table), table.columns[-1][-1] if len(table) else last
            yield table
    if "\n" in (text := str(last)) and not _is_closed(opened):
        raise DataError(
            f"{name}: row {n_rows - 1}, column {shown(names[-1])}: a quote is opened and never closed, so that all rows "
            f"from there on are read as one text, {shown(text)}; close it, or double each quote that belongs to a text"
        )


def _is_closed(opened: Callable[[], pa.NativeFile]) -> bool:
    """Whether a CSV ends behind a closing quote; inside a text quotes are doubled, so that an open one ends in none or two."""
    tail = b""
    with opened() as source:
        while block := source.read(2**20):
            tail = (tail + block)[-(2**16) :]
    tail = tail.rstrip(b"\r\n")
    return (len(tail) - len(tail.rstrip(b'"'))) % 2 == 1


def separator_of(start: bytes, name: str) -> str:
    r"""What separates the columns of a CSV: of comma, semicolon, tab and bar that which its header holds most of, outside quotes.

    Raises:
        DataError: the file is UTF-16, or begins with the line by which Excel tells itself the separator.

    >>> separator_of(b'item_id;title;"a, b, c"\n1;Tea, green;x', "items.csv"), separator_of(b"user_id\n1", "users.csv")
    (';', ',')
    """
    if start.startswith(_UTF16) or b"\x00" in start.partition(b"\n")[0]:
        raise DataError(f"{name}: no UTF-8 but UTF-16, as far as its first bytes tell; write it as UTF-8")
    unquoted = re.sub('"[^"]*"', "", start.decode("utf-8-sig", errors="replace"))
    header = next(filter(None, re.split(r"[\r\n]+", unquoted)), "")
    if re.fullmatch("sep=.?", header, re.IGNORECASE):
        raise DataError(f"{name}: its first line is {shown(header)}, which Excel alone reads; remove that line")
    return max(",;\t|", key=header.count)


def _cut(schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    n_tables = 0
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield pa.Table.from_batches([batch.slice(start, rows)])
            n_tables += 1
    if not n_tables:
        yield schema.empty_table()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries decoded, UUIDs, bytes, dates and whole decimals as text, lists of words joined by commas."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return _uuids(column)
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.large_string())
    if pa.types.is_date(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):  # dates in Python end in 9999
        return column.cast(pa.string())
    if any(is_list(kind) for is_list in _LISTS):
        value = kind.value_type.value_type if pa.types.is_dictionary(kind.value_type) else kind.value_type
        if any(is_word(value) for is_word in _WORDS):
            return pa.chunked_array([_joined(lists) for lists in column.chunks], pa.string())
    return column


def _joined(lists: pa.Array) -> pa.Array:
    """Each list of words as one text; null words are left out, a null list stays null."""
    words, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)
    is_there = words.is_valid()
    n_words = np.bincount(rows.filter(is_there), minlength=len(lists))
    bounds = pa.array(np.concatenate([[0], np.cumsum(n_words)]), pa.int32())
    # the lists are made anew as there is no join for long texts, nor one that leaves nulls out
    texts = pc.binary_join(pa.ListArray.from_arrays(bounds, words.filter(is_there).cast(pa.string())), ", ")
    return pc.if_else(lists.is_valid(), texts, None)


def _uuids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """UUIDs, 16 bytes each, as people write them; each is written once, as a user has many events."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = pa.array([str(UUID(bytes=value)) for value in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([texts.take(encoded.indices)])

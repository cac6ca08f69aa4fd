"""Files to frames in the contract's column names; nothing is judged here but whether a file can be read."""

import errno
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote
from uuid import UUID

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from recsys.config import DataConfig
from recsys.errors import DataError, RecsysError, ResourceError, plain, public, shown
from recsys.schema import TableSchema, columns_of, nearest, quoted, require_columns, table_of, told_apart

CHUNK = 500_000  # rows
CSV_BLOCK = 16 * 2**20  # bytes parsed at a time; a row must fit
CSV = (".csv", ".csv.gz")
NULL_PART = "__HIVE_DEFAULT_PARTITION__"  # Spark and Hive write it for null in the name of a folder
NOT_READ = (
    ".json", ".jsonl", ".ndjson", ".txt", ".tsv", ".xls", ".xlsx", ".ods", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar",
    ".orc", ".feather", ".arrow", ".avro",
)  # fmt: skip
"""Endings of files that may hold rows: beside tables they are refused, as nobody would miss these rows."""

_LISTS = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view,
)  # fmt: skip
_WORDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


def read_table(place: str, schema: TableSchema, config: DataConfig) -> pd.DataFrame:
    """A table from a Parquet or CSV file, a folder, a glob or a URL; see `read_chunks`."""
    return _join(list(read_chunks(place, schema, config)))


def read_chunks(place: str, schema: TableSchema, config: DataConfig, rows: int = CHUNK) -> Iterator[pd.DataFrame]:
    """A table in frames of at most so many rows (small files are joined), from a Parquet or CSV file, a folder, a glob or a URL.

    Two columns are added: `_file` and `_row`, where each row came from (rows count from 0 in each file).
    Of a CSV every column is text, so that 00123 stays itself. There is at least one frame, be it empty.

    Raises:
        DataError: nothing is there, a file is broken, a column is missing, or files disagree on its type.
        ResourceError: the disk failed, or whatever serves a URL: run again.
    """
    joined: list[pd.DataFrame] = []
    for frame in _each_file(place, schema, config, rows):
        if not len(frame) and joined:
            continue  # an empty file has no types
        if joined and not len(joined[0]):
            joined = []
        fits = sum(map(len, joined)) + len(frame) <= rows and (not joined or _types(frame) == _types(joined[0]))
        if joined and not fits:
            yield _join(joined)
            joined = []
        joined.append(frame)
    yield _join(joined)


def read_csv(path: str | Path) -> pd.DataFrame:
    """A CSV file with numbers as numbers, but ids as the text they are: neither is 007 a 7 nor NA nothing."""
    frame = pd.read_csv(path, dtype={"user_id": "str", "item_id": "str"})
    ids = [column for column in ("user_id", "item_id") if column in frame]
    texts = pd.read_csv(path, usecols=ids, dtype="str", keep_default_na=False, na_values=[""])
    return frame.assign(**{column: texts[column] for column in ids})


def _types(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Columns and their types: where these differ, joined values would meet as something else."""
    return [(str(column), str(kind)) for column, kind in frame.dtypes.items() if column != "_file"]


def _join(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _each_file(place: str, schema: TableSchema, config: DataConfig, rows: int) -> Iterator[pd.DataFrame]:
    filesystem, files = files_of(place, schema.name)
    names = [_name(file) for file in files]  # all that anyone gets to see
    root = posixpath.dirname(names[0]) if len(names) == 1 else posixpath.commonpath(names)
    kinds: dict[str, tuple[str, str]] = {}
    for file, name in zip(files, names, strict=True):
        n_read = 0
        for table in _arrow_tables(filesystem, file, name, rows):
            frame = _frame(_with_parts(table, file, _read_of(schema, config)), name, schema, config)
            _check_same_kinds(frame, name, schema, kinds)
            frame["_file"] = pd.Categorical.from_codes(
                np.zeros(len(frame), np.int8), categories=pd.Index([posixpath.relpath(name, root)])
            )
            frame["_row"] = np.arange(n_read, n_read + len(frame))
            n_read += len(frame)
            yield frame


def _read_of(schema: TableSchema, config: DataConfig) -> set[str]:
    """Names in files of the columns that anything reads of a table."""
    common, own = config.columns, config.columns.get(schema.name, {})
    mapped = [*common.values(), *(own.values() if isinstance(own, dict) else ())]
    return {*columns_of(schema.name), *(name for name in mapped if isinstance(name, str)), config.split_column or ""}


def _with_parts(table: pa.Table, file: str, wanted: set[str]) -> pa.Table:
    """A table with what its folders say, as text: of `available=false/a.parquet` the file itself may not hold the column.

    Only what is read: in `day=01` and `day=02` the same row of two exports is still the same.
    """
    for column, value in re.findall(r"(?<![^/])([^/=]+)=([^/]*)(?=/)", public(file)):
        text = None if value == NULL_PART else unquote(value)
        if (name := unquote(column)) in wanted and name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(text, pa.string()), len(table)))
    return table


def files_of(place: str, name: str) -> tuple[Any, list[str]]:
    """The file system of a table's place, and its files there, sorted.

    Raises:
        DataError: nothing is there, or files beside the table's that may hold rows nobody would read.
        ResourceError: see `read_table`.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(place)
        with _reached(filesystem, _name(place)):
            root, found = _found(filesystem, path)
    except (ImportError, ValueError, OSError) as error:
        raise DataError(
            f"{_name(place)}: cannot be reached: {_reason(error)}; check data.{name} in the config"
        ) from error
    found = sorted(f for f in found if not _is_hidden(f.removeprefix(root)))
    _refuse_unread(found, path, name)
    if not found:
        raise DataError(f"{_name(place)}: no {name} table there; check data.{name} in the config")
    return filesystem, found


def _found(filesystem: Any, path: str) -> tuple[str, list[str]]:
    """What somebody named of a path, and the files there that may be tables; nothing where nothing is.

    Of a pattern that is all before its first wildcard. A local path that is there is no pattern, whatever it holds.
    """
    wild = "*[" if "://" in path else "*?["  # in a URL a question mark is what signatures stand behind
    is_there = isinstance(filesystem, LocalFileSystem) and filesystem.exists(path)
    if not is_there and (wildcards := [path.index(c) for c in wild if c in path]):
        return path[: min(wildcards)], filesystem.glob(path)
    if filesystem.isdir(path):
        return path, [f for f in filesystem.find(path) if _ends(f, ".parquet", *CSV, *NOT_READ)]
    return posixpath.dirname(path), [path] if _exists(filesystem, path) else []


def _refuse_unread(found: list[str], path: str, name: str) -> None:
    """Files of a folder that are not read, but may hold rows; one that is named itself is tried."""
    unread = [] if found == [path] else [f for f in found if _ends(f, *NOT_READ) and not _ends(f, *CSV)]
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        raise DataError(
            f"{_name(unread[0])}{more}: among the files of data.{name}, but only .parquet, .csv and .csv.gz are read; "
            "convert them, or move them away"
        )


def _ends(file: str, *endings: str) -> bool:
    """Whether a file has one of some endings, in capitals or not, whatever a URL says after its question mark."""
    return file.lower().endswith(endings) or _name(file).lower().endswith(endings)


def _exists(filesystem: Any, path: str) -> bool:
    """Whether a file is there; elsewhere `exists` would also say no of one that may not be read."""
    if isinstance(filesystem, LocalFileSystem):
        return bool(filesystem.exists(path))
    try:
        filesystem.info(path)
    except FileNotFoundError as error:
        if _is_missing(error):
            return False
        raise
    return True


def _is_missing(error: Exception) -> bool:
    """Whether nothing is there; over HTTP any failure comes as such an error, with what happened behind it."""
    is_other = error.__cause__ is not None and getattr(error.__cause__, "status", None) != 404
    return isinstance(error, FileNotFoundError) and not is_other


@contextmanager
def _reached(filesystem: Any, name: str) -> Iterator[None]:
    """What fails on the way to another machine says nothing about the table: another remedy, another code.

    Raises:
        ResourceError: a server refused, failed or cut the connection; each protocol has error types of its own.
    """
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        if isinstance(filesystem, LocalFileSystem) or _is_missing(error):
            raise
        reason = _reason(error.__cause__ or error if isinstance(error, FileNotFoundError) else error)
        raise ResourceError(
            f"{name}: cannot be fetched: {reason}; check the server, the network and the credentials, then run again"
        ) from error


class _Fetched:
    """An open file elsewhere; Arrow would tell a read that fails as it tells a broken table."""

    def __init__(self, handle: Any, filesystem: Any, name: str) -> None:
        self._handle, self._filesystem, self._name = handle, filesystem, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._handle, attribute)

    def read(self, size: int = -1) -> bytes:
        with _reached(self._filesystem, self._name):
            return self._handle.read(size)


def _name(place: str) -> str:
    """A file or URL as it may be shown: on one line, and without what a URL says beside its address.

    >>> _name("https://me:p@ss@host/a.csv?KEY")
    'https://host/a.csv'
    """
    return plain(public(place), 1000)


def _reason(error: BaseException) -> str:
    """What an error says; never its repr, which may hold the headers of a request."""
    return shown(public(str(error) or type(error).__name__), 200)


def _is_hidden(path: str) -> bool:
    """Dot-names and names like _delta_log belong to the programs that write a folder, not to its readers."""
    *folders, name = path.split("/")
    return name.startswith((".", "_")) or any(f.startswith((".", "_")) for f in folders)


def _arrow_tables(filesystem: Any, file: str, name: str, rows: int) -> Iterator[pa.Table]:
    """A file in tables of at most so many rows; one that is empty where it has none."""
    try:
        is_local = isinstance(filesystem, LocalFileSystem)
        with _reached(filesystem, name):
            opened = filesystem.open(file, "rb")
        with opened as raw:
            handle = raw if is_local else _Fetched(raw, filesystem, name)
            tables = (
                _csv(_streams(file if is_local else handle.read(), file), name, rows)
                if _ends(file, *CSV)
                else _parquet(handle, rows)
            )
            for table in tables:
                table = pa.table([_plain(c) for c in table.columns], names=table.column_names)
                table.validate(full=True)  # text that is no UTF-8 shows itself here, not hours later
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        if (
            isinstance(error, OSError) and error.errno == errno.EIO
        ):  # the table may be sound: another remedy, another code
            raise ResourceError(f"{name}: {error.strerror}; check the disk, then run again") from error
        raise DataError(f"{name}: cannot be read as a table: {_reason(error)}; {_remedy(error, file)}") from error


def _remedy(error: Exception, file: str) -> str:
    if "utf" in str(error).lower():
        return "write it as UTF-8"
    if _ends(file, ".parquet", *CSV):
        return "write the file again"
    return "it was tried as Parquet, and a CSV file must end in .csv or .csv.gz; name it so, or write the file again"


def _parquet(handle: BinaryIO | _Fetched, rows: int) -> Iterator[pa.Table]:
    file = pq.ParquetFile(handle, page_checksum_verification=True)
    yield from _cut(file.schema_arrow, file.iter_batches(rows), rows)


def _streams(source: str | bytes, file: str) -> Callable[[], pa.NativeFile]:
    """Opens a CSV from its start; Arrow reads ahead on threads of its own, which a Python file would not survive."""
    compression = "gzip" if _ends(file, ".gz") else None
    if isinstance(source, str):
        return lambda: pa.input_stream(source, compression=compression)
    return lambda: pa.input_stream(pa.BufferReader(source), compression=compression)


def _csv(opened: Callable[[], pa.NativeFile], name: str, rows: int) -> Iterator[pa.Table]:
    parse = pacsv.ParseOptions(newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=CSV_BLOCK)
    with opened() as source:
        _refuse_other_separators(source.read(2**16), name)
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


def _refuse_other_separators(start: bytes, name: str) -> None:
    header = start.partition(b"\n")[0]
    separator = next((c for c in ";\t|" if c.encode() in header), None)
    if separator and b"," not in header:
        raise DataError(f"{name}: columns are separated by {separator!r}; write it with commas")


def _cut(schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    n_tables = 0
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield pa.Table.from_batches([batch.slice(start, rows)])
            n_tables += 1
    if not n_tables:
        yield schema.empty_table()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries decoded, UUIDs, bytes and whole decimals as text, lists of words joined by commas."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return _uuids(column)
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.large_string())
    if pa.types.is_decimal(kind) and kind.scale == 0:
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


def _frame(table: pa.Table, file: str, schema: TableSchema, config: DataConfig) -> pd.DataFrame:
    named = _our_names(table.column_names, file, schema.name, config)
    require_columns(schema, [ours for _, ours in named], file)
    kept = {ours: table.column(at) for at, ours in named if not ours.startswith("__index_level_")}  # left by pandas
    frame = pa.table(kept).to_pandas(types_mapper=_nullable, ignore_metadata=True)
    for column in frame.columns[[isinstance(kind, pd.DatetimeTZDtype) for kind in frame.dtypes]]:
        frame[column] = frame[column].dt.tz_convert("UTC")
    return frame


def _nullable(kind: pa.DataType) -> Any:
    """Integers with gaps stay integers: through float they lose digits above 2**53. Flags have one type with and without."""
    if pa.types.is_boolean(kind):
        return pd.BooleanDtype()
    if not pa.types.is_integer(kind):
        return None
    return pd.UInt64Dtype() if pa.types.is_uint64(kind) else pd.Int64Dtype()


def _our_names(present: list[str], file: str, table: str, config: DataConfig) -> list[tuple[int, str]]:
    """The file's columns, by position, under our names; one that is mapped to several of ours is each of them.

    A mapped column pushes aside one that has our name already. Of the mappings for every table those count whose column
    this table knows, or no table does; users may have any.

    Raises:
        DataError: a mapping for this table, or one that no other table could want, names a column that is not there.
    """
    elsewhere = set() if table == "users" else set(columns_of()) - set(columns_of(table))
    shared = {ours: theirs for ours, theirs in config.columns.items() if isinstance(theirs, str)}
    common = {ours: theirs for ours, theirs in shared.items() if ours not in elsewhere}
    own = config.columns.get(table, {})
    own = own if isinstance(own, dict) else {}
    wanted = {ours: theirs for ours, theirs in common.items() if table_of(ours) == table and ours not in present}
    for ours, theirs in (wanted | own).items():
        if theirs not in present:
            near = nearest(theirs, present)
            hint = f"did you mean {told_apart(near)}?" if near else f"found {', '.join(map(shown, present[:20]))}"
            where = f"data.columns.{table}" if ours in own else "data.columns"
            raise DataError(f"{file}: no column {quoted(theirs)}, which [{where}] names for {ours}; {hint}")
    theirs_of = {ours: theirs for ours, theirs in (common | own).items() if theirs in present}
    named = []
    for at, column in enumerate(present):
        ours_of = [ours for ours, theirs in theirs_of.items() if theirs == column]
        named += [(at, ours) for ours in ours_of or [f"{column} (not mapped)" if column in theirs_of else column]]
    return named


def _check_same_kinds(frame: pd.DataFrame, file: str, schema: TableSchema, kinds: dict[str, tuple[str, str]]) -> None:
    """Text in one file and integers in the next would meet as something else.

    Args:
        kinds: of each column, the file where a value was first seen and what it was; added to here.
    """
    for column in schema.required:
        if frame[column].notna().any():
            kind = _kind(frame[column])
            first, expected = kinds.setdefault(column, (file, kind))
            if kind != expected:
                raise DataError(
                    f"{file}: {column} holds {kind}, but {expected} in {first}; write all files of a table alike"
                )


def _kind(values: pd.Series) -> str:
    if pd.api.types.is_integer_dtype(values.dtype):
        return "integers without a sign (uint64)" if values.dtype == pd.UInt64Dtype() else "integers"
    if pd.api.types.is_float_dtype(values.dtype):
        return "floating-point numbers"
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return "times with a zone"
    return "times without a zone" if pd.api.types.is_datetime64_dtype(values.dtype) else "text"

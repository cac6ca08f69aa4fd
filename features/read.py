"""Files to frames in the contract's column names; nothing is judged here but whether a file can be read."""

import posixpath
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa

from features.arrow_tables import arrow_tables, separator_of
from features.files import files_of, reason_of, shown_place
from recsys.config import DataConfig
from recsys.errors import DataError, public, shown
from recsys.schema import TableSchema, columns_of, nearest, quoted, require_columns, table_of, told_apart

CHUNK = 500_000  # rows
_BEYOND_PANDAS = (ValueError, OverflowError, pa.ArrowException)
NULL_PART = "__HIVE_DEFAULT_PARTITION__"  # Spark and Hive write it for null in the name of a folder


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
    """A CSV file with numbers as numbers, but ids as the text they are: neither is 007 a 7 nor NA nothing.

    Raises:
        DataError: see `separator_of`.
    """
    with fsspec.open(str(path), "rb", compression="infer") as file:
        separator = separator_of(file.read(2**16), str(path))
    frame = pd.read_csv(path, sep=separator, dtype={"user_id": "str", "item_id": "str"})
    ids = [column for column in ("user_id", "item_id") if column in frame]
    texts = pd.read_csv(path, sep=separator, usecols=ids, dtype="str", keep_default_na=False, na_values=[""])
    return frame.assign(**{column: texts[column] for column in ids})


def _types(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Columns and their types: where these differ, joined values would meet as something else."""
    return [(str(column), str(kind)) for column, kind in frame.dtypes.items() if column != "_file"]


def _join(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _each_file(place: str, schema: TableSchema, config: DataConfig, rows: int) -> Iterator[pd.DataFrame]:
    filesystem, files = files_of(place, schema.name)
    names = [shown_place(file) for file in files]  # all that anyone gets to see
    root = posixpath.dirname(names[0]) if len(names) == 1 else posixpath.commonpath(names)
    kinds: dict[str, tuple[str, str]] = {}
    lacking: list[dict[str, str]] = []
    for file, name in zip(files, names, strict=True):
        n_read = 0
        for table in arrow_tables(filesystem, file, name, rows):
            table = _with_parts(table, file, _read_of(schema, config))
            lacking.append(_lacking(table.column_names, name, schema, config))
            must = {*schema.required, *table.column_names} if len(files) > 1 else lacking[-1]
            _refuse_lacking(lacking[-1], must)
            frame = _frame(table, name, schema, config)
            _check_same_kinds(frame, name, schema, kinds)
            frame["_file"] = pd.Categorical.from_codes(
                np.zeros(len(frame), np.int8), categories=pd.Index([posixpath.relpath(name, root)])
            )
            frame["_row"] = np.arange(n_read, n_read + len(frame))
            n_read += len(frame)
            yield frame
    # what came or went within a folder is in some file
    _refuse_lacking(lacking[0], set.intersection(*map(set, lacking)))


def _read_of(schema: TableSchema, config: DataConfig) -> set[str]:
    """Names in files of the columns that anything reads of a table."""
    common, own = config.mappings(schema.name)
    return {*columns_of(schema.name), *common.values(), *own.values(), config.split_column or ""}


def _with_parts(table: pa.Table, file: str, wanted: set[str]) -> pa.Table:
    """A table with what its folders say, as text: of `available=false/a.parquet` the file itself may not hold the column.

    Only what is read: in `day=01` and `day=02` the same row of two exports is still the same.
    """
    for column, value in re.findall(r"(?<![^/])([^/=]+)=([^/]*)(?=/)", public(file)):
        text = None if value == NULL_PART else unquote(value)
        if (name := unquote(column)) in wanted and name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(text, pa.string()), len(table)))
    return table


def _frame(table: pa.Table, file: str, schema: TableSchema, config: DataConfig) -> pd.DataFrame:
    named = _our_names(table.column_names, schema.name, config)
    require_columns(schema, [ours for _, ours in named], file)
    kept = {ours: table.column(at) for at, ours in named if not ours.startswith("__index_level_")}  # left by pandas
    try:
        return _in_utc(pa.table(kept))
    except _BEYOND_PANDAS:
        for ours, column in kept.items():
            try:
                _in_utc(pa.table({ours: column}))
            except _BEYOND_PANDAS as error:
                raise DataError(
                    f"{file}: column {shown(ours)} of type {column.type} holds what cannot be read: {reason_of(error)}; "
                    "export it as text, or leave it out"
                ) from error
        raise


def _in_utc(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper=_nullable, ignore_metadata=True)
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


def _our_names(present: list[str], table: str, config: DataConfig) -> list[tuple[int, str]]:
    """The file's columns, by position, under our names; one that is mapped to several of ours is each of them.

    A mapped column pushes aside one that has our name already.
    """
    common, own = _mappings(table, config)
    theirs_of = {ours: theirs for ours, theirs in (common | own).items() if theirs in present}
    named = []
    for at, column in enumerate(present):
        ours_of = [ours for ours, theirs in theirs_of.items() if theirs == column]
        named += [(at, ours) for ours in ours_of or [f"{column} (not mapped)" if column in theirs_of else column]]
    return named


def _mappings(table: str, config: DataConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Of the mappings for every table those whose column this table knows, or no table does; and its own. Users may have any."""
    elsewhere = set() if table == "users" else set(columns_of()) - set(columns_of(table))
    shared, own = config.mappings(table)
    return {ours: theirs for ours, theirs in shared.items() if ours not in elsewhere}, own


def _lacking(present: list[str], file: str, schema: TableSchema, config: DataConfig) -> dict[str, str]:
    """Our columns that are mapped to one that a file lacks, and what to say of it.

    Of the mappings for every table only those that no other table could want count.
    """
    common, own = _mappings(schema.name, config)
    wanted = {c: theirs for c, theirs in common.items() if table_of(c) == schema.name and c not in present} | own
    told = {}
    for ours, theirs in ((c, theirs) for c, theirs in wanted.items() if theirs not in present):
        near = nearest(theirs, present)
        hint = f"did you mean {told_apart(near)}?" if near else f"found {', '.join(map(shown, present[:20]))}"
        where = f"data.columns.{schema.name}" if ours in own else "data.columns"
        told[ours] = f"{file}: no column {quoted(theirs)}, which [{where}] names for {ours}; {hint}"
    return told


def _refuse_lacking(told: dict[str, str], refused: Collection[str]) -> None:
    """Refuses a table that lacks columns.

    Raises:
        DataError: naming the first of them.
    """
    for ours in (column for column in told if column in refused):
        raise DataError(told[ours])


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

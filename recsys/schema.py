"""Columns of the tables that come in and go out."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from recsys.errors import DataError


@dataclass(frozen=True)
class TableSchema:
    """A table's required columns, and the optional ones that we know how to use."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


EVENTS = TableSchema(
    "events",
    ("user_id", "item_id", "event_type", "timestamp"),
    ("weight", "basket_id", "session_id", "quantity", "price", "rating"),
)
ITEMS = TableSchema(
    "items",
    ("item_id", "title"),
    ("description", "brand", "category", "tags", "price", "available", "created_at", "language"),
)


def require_columns(schema: TableSchema, found: Iterable[str], place: str) -> None:
    """Checks that a table has what it must have.

    Raises:
        DataError: naming the file, the missing columns, the nearest column found and the remedy.
    """
    found = list(found)
    missing = [column for column in schema.required if column not in found]
    if not missing:
        return
    hints = []
    for column in missing:
        near = difflib.get_close_matches(column, found, n=1, cutoff=0.5)
        theirs = near[0] if near else "your_column"
        hints.append(f'[data.columns.{schema.name}] {column} = "{theirs}"')
    raise DataError(
        f"{place}: {schema.name} table has no column {', '.join(missing)}; found {', '.join(found[:20])}; "
        f"rename it, or map it in the config: {'; '.join(hints)}"
    )


def recommendation_schema(user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """The table we publish; ids in the type they came in."""
    return pa.schema(
        [
            ("user_id", user_type),
            ("item_id", item_type),
            ("rank", pa.int32()),
            ("score", pa.float32()),
            ("p", pa.float32()),
            ("source", pa.string()),
            ("reason", pa.string()),
            ("reason_item_id", item_type),
            ("run_id", pa.string()),
            ("model_version", pa.string()),
            ("run_date", pa.string()),
        ]
    )

"""Columns of the tables that come in and go out, and the check that a table has them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from recsys.errors import DataError, shown

MOST_WEIGHT = 1_000_000  # weights are added up as float32, where a much larger one drowns the others, or is infinite
NEAR = 0.6  # likeness of two names from which on one may be meant by the other


@dataclass(frozen=True)
class TableSchema:
    """A table's required columns and the optional ones we know how to use, each with its meaning.

    Any other column is left alone.
    """

    name: str
    required: dict[str, str]
    optional: dict[str, str]


EVENTS = TableSchema(
    "events",
    {
        "user_id": "who acted: string or integer",
        "item_id": "on what: string or integer",
        "event_type": "what was done, such as click or purchase",
        "timestamp": "when, UTC; without a zone data.timezone is needed",
    },
    {
        "weight": f"multiplies the weight of the event type; a number from 0 to {MOST_WEIGHT:,}",
        "basket_id": "what was bought together",
        "session_id": "what was seen together",
        "quantity": "how many",
        "price": "price of one, as paid",
        "rating": "the user's mark",
    },
)
ITEMS = TableSchema(
    "items",
    {"item_id": "string or integer, unique", "title": "the name that people see"},
    {
        "description": "free text",
        "brand": "who makes it",
        "category": "where it belongs",
        "tags": "words, as one text or a list",
        "price": "price today",
        "available": "whether it may be recommended; true where empty",
        "created_at": "when it entered the catalogue",
        "language": "of title and description",
    },
)
USERS = TableSchema("users", {"user_id": "as in events, unique"}, {})
IMPRESSIONS = TableSchema(
    "impressions",
    {
        "impression_id": "one showing of a list",
        "user_id": "to whom",
        "item_id": "what was shown",
        "position": "where in the list, from 1",
        "clicked": "whether the user acted on it",
        "timestamp": "when, UTC",
    },
    {"propensity": "chance that the policy showed this item there", "policy": "what chose the list"},
)


TABLES = {schema.name: schema for schema in (EVENTS, ITEMS, USERS, IMPRESSIONS)}


def columns_of(table: str | None = None) -> list[str]:
    """Names of the columns that we know how to use in a table, or in any."""
    schemas = TABLES.values() if table is None else [TABLES[table]]
    return sorted({column for schema in schemas for column in schema.required | schema.optional})


def table_of(column: str) -> str | None:
    """The only table that knows a column; None where several do, or none.

    >>> table_of("available"), table_of("price"), table_of("colour")
    ('items', None, None)
    """
    knows = [name for name in TABLES if column in columns_of(name)]
    return knows[0] if len(knows) == 1 else None


def require_columns(schema: TableSchema, found: Iterable[str], place: str, is_frame: bool = False) -> None:
    """Checks that a table has what it must have, and no column twice.

    Args:
        is_frame: no config maps its columns.

    Raises:
        DataError: naming the file, the missing or repeated columns, the nearest column found and the remedy.

    >>> require_columns(USERS, ["user_id", "age"], "users.parquet")
    """
    found = list(found)
    twice = sorted({column for column in found if found.count(column) > 1})
    if twice:
        raise DataError(
            f"{place}: {schema.name} table has column {', '.join(map(shown, twice))} more than once; "
            "keep one in the export, or map another one in [data.columns]"
        )
    missing = [column for column in schema.required if column not in found]
    if missing:
        near = _nearest_each(missing, found)
        theirs = {column: near.get(column, "your_column") for column in missing}
        renamed = ", ".join(f"{quoted(name)}: {quoted(column)}" for column, name in theirs.items())
        mapped = "; ".join(f"[data.columns.{schema.name}] {c} = {told_apart(name)}" for c, name in theirs.items())
        raise DataError(
            f"{place}: {schema.name} table has no column {', '.join(missing)}; "
            f"found {', '.join(map(shown, found[:20])) or 'no columns'}; "
            + (f"rename(columns={{{renamed}}})" if is_frame else f"rename it, or map it in the config: {mapped}")
        )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`; None where none is near.

    >>> nearest("user_id", ["UserID", "sku"])
    'UserID'
    """
    plain = {_plain(k): k for k in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=NEAR)
    return plain[near[0]] if near else None


def _nearest_each(missing: list[str], found: Iterable[str]) -> dict[str, str]:
    """A file's column for each of ours that is near to one, the nearest pair first; none is given twice, none of ours is.

    >>> _nearest_each(["item_id", "title"], ["titel", "user_id"])
    {'title': 'titel'}
    """
    ours = columns_of()
    free = [c for c in found if c.removesuffix(" (not mapped)") not in ours]
    pairs = [(difflib.SequenceMatcher(None, _plain(c), _plain(f)).ratio(), c, f) for c in missing for f in free]
    nearest_of: dict[str, str] = {}
    for likeness, column, theirs in sorted(pairs, key=lambda pair: -pair[0]):
        if likeness >= NEAR and column not in nearest_of and theirs not in nearest_of.values():
            nearest_of[column] = theirs
    return nearest_of


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "_-" and not c.isspace())


def told_apart(name: str) -> str:
    """A foreign name quoted, with a word on what the eye would miss.

    >>> print(told_apart("Kunde "))
    "Kunde " (with the blank at its end)
    """
    ends = [end for end, cut in (("start", name.lstrip()), ("end", name.rstrip())) if cut != name]
    return quoted(name) + (f" (with the blank at its {' and '.join(ends)})" if ends else "")


def quoted(name: str) -> str:
    r"""A foreign name as a TOML string, to be pasted: letters of any script stay, controls and quotes are escaped.

    >>> print(quoted("größe"), quoted("a\n"), quoted('"\x1b'))
    "größe" "a\u000A" "\u0022\u001B"
    """
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c) for c in name) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def lists_frame(lists: pa.Table) -> pd.DataFrame:
    """Recommendations for pandas; an integer id that some rows lack stays an integer (Int64), where pandas makes it a float."""
    kinds = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
    frame = lists.to_pandas()
    if "reason_item_id" in frame:
        frame["reason_item_id"] = lists["reason_item_id"].to_pandas(types_mapper=kinds.get)
    return frame


def recommendation_schema(user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """The table we publish, sorted by user, then rank; ids in the type they came in.

    Columns: `rank` from 1; `score` comparable within a user; `p` a calibrated probability where
    calibration is on; `source` that put the item in; `reason` one sentence, pointing to
    `reason_item_id` of the user's history.
    """
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
            ("run_date", pa.date32()),
        ]
    )

"""Tables as notebooks hold them, made what the report reads."""

import pandas as pd

from features.clean import utc_times

IDS = ("user_id", "item_id")


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Column names as text; categories of ids as their values; integers in a column of objects as integers."""
    named = table.rename(columns=str)
    return named.assign(**{column: _plain_ids(named[column]) for column in IDS if column in named})


def plain_events(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """As `plain_table`, without rows that lack a user or an item; moments in UTC, also those without a zone; one that
    cannot be read is missing.

    Raises:
        DataError: they are numbers, which do not say their unit.
    """
    named = table.rename(columns=str)
    return _in_utc(plain_table(named.dropna(subset=named.columns.intersection(IDS))), "timestamp", name)


def plain_items(items: pd.DataFrame) -> pd.DataFrame:
    """As `plain_events`, with all categories as their values: no category of its own stands for a text that is missing."""
    plain = plain_table(items)
    texts = dict.fromkeys(plain.select_dtypes("category").columns, object)
    return _in_utc(plain.astype(texts), "created_at", "items")


def _in_utc(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    return table.assign(**{column: utc_times(table[column], "UTC", name)}) if column in table else table


def _plain_ids(ids: pd.Series) -> pd.Series:
    values = ids.astype(object) if isinstance(ids.dtype, pd.CategoricalDtype) else ids
    return values.infer_objects() if values.notna().all() else values  # beside a null, integers would become floats

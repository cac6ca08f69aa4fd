"""Tables as notebooks hold them, made what the report reads."""

import pandas as pd

IDS = ("user_id", "item_id")


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Column names as text; categories of ids as their values; integers in a column of objects as integers."""
    named = table.rename(columns=str)
    return named.assign(**{column: _plain_ids(named[column]) for column in IDS if column in named})


def plain_items(items: pd.DataFrame) -> pd.DataFrame:
    """As `plain_table`, with all categories as their values: no category of its own stands for a text that is missing."""
    return plain_table(items.astype(dict.fromkeys(items.select_dtypes("category").columns, object)))


def _plain_ids(ids: pd.Series) -> pd.Series:
    values = ids.astype(object) if isinstance(ids.dtype, pd.CategoricalDtype) else ids
    return values.infer_objects() if values.notna().all() else values  # beside a null, integers would become floats

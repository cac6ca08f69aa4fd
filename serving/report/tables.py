"""Arms and tables as notebooks hold them, made what the report reads."""

from dataclasses import replace
from typing import Protocol, cast

import pandas as pd

from features.clean import utc_times
from recsys.errors import ConfigError, shown
from recsys.ids import unwrapped
from serving.report.world import Arm, positive, refuse_missing

IDS = ["user_id", "item_id"]


class Recommends(Protocol):
    """A model of any library."""

    def recommend(self, users: list[object], k: int, /) -> pd.DataFrame:
        """Rows of user_id, item_id and rank from 1, or score, at most k a user."""


def arm_of(given: Arm | Recommends | pd.DataFrame, name: str, labels: pd.DataFrame, k: int) -> Arm:
    """An arm as it is; under this name, a table of recommendations, or what a model recommends to the users of labels.

    Raises:
        ConfigError: it is none of these.
        DataError: the labels name no users.
    """
    if isinstance(given, Arm):
        told = {key: str(value) for key, value in given.info.items()}  # a moment is no JSON
        return replace(given, table=ranked(plain_table(given.table)), info=told)
    is_model = callable(getattr(given, "recommend", None)) and not isinstance(given, type)
    table = _recommended(cast(Recommends, given), labels, k) if is_model else given
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(
            f"{name}: {shown(given)} is no arm; give Arm(name, table), a table of user_id, item_id and rank or score, "
            "or an object whose recommend(users, k) returns one"
        )
    return Arm(name, ranked(plain_table(table)))


def _recommended(model: Recommends, labels: pd.DataFrame, k: int) -> object:
    refuse_missing(labels, "events", ["user_id"])
    return model.recommend(list(positive(labels)["user_id"].unique()), k)


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """A table with ranks: where it has none, from its scores, the highest first, ties by item id; one that is no number last."""
    if "rank" in table or not {*IDS, "score"} <= set(table):  # what is missing then is told by the checks of columns
        return table
    scored = table.assign(score=pd.to_numeric(table["score"], errors="coerce"))
    ordered = scored.sort_values(["user_id", "score", "item_id"], ascending=[True, False, True], kind="stable")
    return ordered.assign(rank=ordered.groupby("user_id").cumcount() + 1)


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Column names as text; categories of ids as their values; integers in a column of objects as integers."""
    named = table.rename(columns=str)
    return named.assign(**{column: unwrapped(named[column]) for column in IDS if column in named})


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

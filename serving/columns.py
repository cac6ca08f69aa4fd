"""Columns that the last release knew and tonight's tables lack: no single table can show that an export lost one.

Without `available`, what was withdrawn is listed again; without `category`, features that the model learned from are empty.
Neither is an error of the table, as all of these columns are optional.
"""

from contextlib import suppress
from typing import Any

import pandas as pd

from features.dataset import Dataset
from recsys.config import Config
from recsys.errors import DataError, ResourceError, shown
from recsys.schema import nearest
from serving import releases
from serving.publish import ReleaseStore


def columns_known(dataset: Dataset, config: Config) -> dict[str, list[str]]:
    """Optional columns of events and items that say something and that something reads, by table."""
    read = _read(config)
    items = {name for name in read["items"] & set(dataset.catalogue) if _says_something(dataset.catalogue[name])}
    return {"events": ["weight"] if dataset.has_weight else [], "items": sorted(items)}


def _read(config: Config) -> dict[str, set[str]]:
    """Optional columns that lists are made of, by table."""
    return {
        "events": {"weight"},
        "items": {"available", "brand", "category", "created_at", "price", *config.text.fields},
    }


def refuse_lost_columns(dataset: Dataset, store: ReleaseStore, config: Config) -> None:
    """Refuses tables that lack what those of the served release had; of an earlier date than that they may have held less.

    Raises:
        DataError: naming the columns, and what they may be called now.
    """
    served = store.current()
    if served is None or f"{dataset.as_of:%Y-%m-%d}" < served.name[:10]:
        return
    told: dict[str, Any] = {}
    with suppress(ResourceError):  # a damaged release tells nothing
        told = releases.manifest(served)
    before: dict[str, list[str]] = told.get("columns", {})
    now, read = columns_known(dataset, config), _read(config)
    if "made" not in told:  # an earlier revision, which noted empty columns too
        now["items"] += sorted(map(str, dataset.catalogue.columns))
    lost = [
        (table, name)
        for table, names in before.items()
        for name in names
        if name in read[table] and name not in now[table] and name not in config.serving.audit.may_lack
    ]
    if lost:
        others = set(map(str, dataset.catalogue.columns)) - {*now["items"], *(name for _, name in lost)}
        near = {name: nearest(name, others) for table, name in lost if table == "items"}
        lacking = [f"{table} lack {shown(name)}" + _meant(near.get(name)) for table, name in lost]
        names = ", ".join(f'"{name}"' for _, name in lost)
        raise DataError(
            f"{'; '.join(lacking)}, or hold no value there: the release that is served, {served.name}, was made with it; mend the "
            f"export, or, if it is meant to be gone, run once with --set 'serving.audit.may_lack=[{names}]'"
        )


def _says_something(values: pd.Series) -> bool:
    """Whether any value is there: a column that an export left empty is as good as lost."""
    return any(not (isinstance(value, str) and value == "") for value in values.dropna())


def _meant(near: str | None) -> str:
    return f" (did you mean {shown(near)}?)" if near else ""

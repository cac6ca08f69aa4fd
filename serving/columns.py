"""Columns that the last release knew and tonight's tables lack: no single table can show that an export lost one.

Without `available`, what was withdrawn is listed again; without `category`, features that the model learned from are empty.
Neither is an error of the table, as all of these columns are optional.
"""

from contextlib import suppress

import pandas as pd

from features.dataset import Dataset
from recsys.config import Config
from recsys.errors import DataError, ResourceError, shown
from recsys.schema import columns_of, nearest
from serving import releases
from serving.publish import ReleaseStore


def columns_known(dataset: Dataset, config: Config) -> dict[str, list[str]]:
    """Optional columns of events and items that say something and that something reads, by table."""
    read = _read(config)
    items = {name for name in read["items"] & set(dataset.catalogue) if _says_something(dataset.catalogue[name])}
    return {"events": ["weight"] if dataset.has_weight else [], "items": sorted(items)}


def _read(config: Config) -> dict[str, set[str]]:
    """Optional columns that something reads, by table."""
    return {"events": {"weight"}, "items": {*columns_of("items"), *config.text.fields}}


def refuse_lost_columns(dataset: Dataset, store: ReleaseStore, config: Config) -> None:
    """Refuses tables that lack what those of the served release had.

    Raises:
        DataError: naming the columns, and what they may be called now.
    """
    served = store.current()
    if served is None:
        return
    before: dict[str, list[str]] = {}
    with suppress(ResourceError):  # a damaged release tells nothing
        before = releases.manifest(served).get("columns", {})
    now, read = columns_known(dataset, config), _read(config)
    lost = [
        (table, name)
        for table, names in before.items()
        for name in names
        if name in read[table] and name not in now[table] and name not in config.serving.audit.may_lack
    ]
    if lost:
        others = set(map(str, dataset.catalogue.columns)) - {*now["items"], *(name for _, name in lost)}
        near = {name: nearest(name, others) for table, name in lost if table == "items"}
        told = [f"{table} lack {shown(name)}" + _meant(near.get(name)) for table, name in lost]
        names = ", ".join(f'"{name}"' for _, name in lost)
        raise DataError(
            f"{'; '.join(told)}, or hold no value there: the release that is served, {served.name}, was made with it; mend the "
            f"export, or, if it is meant to be gone, run once with --set 'serving.audit.may_lack=[{names}]'"
        )


def _says_something(values: pd.Series) -> bool:
    """Whether any value is there: a column that an export left empty is as good as lost."""
    return bool((values.notna() & (values != "")).any())


def _meant(near: str | None) -> str:
    return f" (did you mean {shown(near)}?)" if near else ""

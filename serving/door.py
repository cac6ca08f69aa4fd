"""Tables through the door for a command: with progress, and with every refused row kept for a look."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from features.caps import catalogue_caps
from features.data_report import DataReport
from features.dataset import Dataset
from features.impressions import checked_impressions
from features.ingest import Tables, load_tables
from features.quarantine import TooManyBadError
from recsys.config import Config
from recsys.errors import ConfigError, DataError, shown
from recsys.progress import Reporter
from recsys.schema import columns_of, nearest
from recsys.whole import replacing
from serving import releases


def read_tables(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> Tables:
    """The tables as of a moment; their refused rows go to the quarantine folder, also where there are too many.

    Raises:
        DataError: see `features.ingest.load_tables`; where rows are to blame it names the file that holds them all. Or a rule
            counts categories or brands, and no item has one.
    """
    with reporter.stage("reading tables") as progress:
        try:
            tables = load_tables(config.data, as_of)
        except TooManyBadError as error:
            raise _told(error, _keep_refused(error.quarantine, config, as_of)) from error
        _keep_refused(tables.quarantine, config, as_of)
        progress(1, 1)
    for told in _absent_fields(config.text.fields, list(map(str, tables.items.columns))):
        reporter.say(told)
    catalogue_caps(config.rules, tables.items)
    for name in (name for name in config.rules.hidden_by if name not in tables.log.types):  # perhaps nobody did yet
        near = nearest(name, tables.log.types)
        hint = f"; did you mean {shown(near)}?" if near else ""
        reporter.say(f"rules.hidden_by: no event is of type {shown(name)}, so it hides nothing{hint}")
    return tables


def dataset_of(config: Config, as_of: pd.Timestamp) -> Dataset:
    """The tables as a data set, as of a moment, without what the rules block; nothing is written or told."""
    tables = load_tables(config.data, as_of)
    catalogue_caps(config.rules, tables.items)
    return Dataset.from_tables(tables, as_of).under(config.rules)


def load_dataset(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> tuple[Dataset, DataReport]:
    """The same with progress and refused rows kept, and what the tables looked like."""
    tables = read_tables(config, as_of, reporter)
    dataset, blocked = Dataset.from_tables(tables, as_of), config.rules.blocked
    positions = dataset.items.positions(blocked) if blocked else ()
    if unknown := [item for item, pos in zip(blocked, positions, strict=True) if pos < 0]:
        reporter.say(
            f"rules.blocked: {len(unknown)} of {len(blocked)} ids are not in the items table, such as {shown(unknown[0])}"
        )
    return dataset.under(config.rules), tables.report


def examined(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> DataReport:
    """What `recsys validate` tells: of all tables, impressions too.

    Raises:
        ConfigError: no item would have a text, which a training refuses, but later.
        DataError: see `read_tables`.
    """
    tables = read_tables(config, as_of, reporter)
    _refuse_no_text(config.text.fields, list(map(str, tables.items.columns)))
    if config.data.impressions is None:
        return tables.report
    with reporter.stage("reading impressions") as progress:
        checked = checked_impressions(config.data.impressions, config.data, as_of, tables.items["item_id"])
        refused = pd.concat([tables.quarantine, checked.quarantine], ignore_index=True)
        path = _keep_refused(refused, config, as_of)
        try:
            checked.refuse_too_many(config.data.max_bad_share)
        except TooManyBadError as error:
            raise _told(error, path) from error
        progress(1, 1)
    reasons = {str(k): int(v) for k, v in refused["reason"].value_counts().items()}
    return replace(tables.report, n_impressions=len(checked.kept), quarantined=reasons)


def _refuse_no_text(fields: Sequence[str], columns: Sequence[str]) -> None:
    """One field is enough: the default names more than most tables have."""
    if not fields or set(fields) & set(columns):
        return
    near = {field: nearest(field, columns) for field in fields}
    meant = ", ".join(f"{shown(column)} for {shown(field)}" for field, column in near.items() if column)
    raise ConfigError(
        f"text.fields: none of {', '.join(map(shown, fields))} is a column of the items table, which has "
        f"{', '.join(map(shown, columns))}; " + (f"did you mean {meant}?" if meant else "name some of these")
    )


def _absent_fields(fields: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Of the fields that somebody named, those that are not there; where none is, `_refuse_no_text` says so."""
    told = []
    for field in (one for one in fields if one not in {*columns, *columns_of("items")}):
        near = nearest(field, columns)
        hint = f"; did you mean {shown(near)}?" if near else ""
        told.append(f"text.fields: {shown(field)} is no column of the items table; texts are made without it{hint}")
    return told


def _told(error: TooManyBadError, path: Path | None) -> DataError:
    return DataError(f"{error}; all of them: {path}")


def _keep_refused(rows: pd.DataFrame, config: Config, as_of: pd.Timestamp) -> Path | None:
    """Writes refused rows, by the day of the run; None where there are none, and then no file of that day says otherwise."""
    path = Path(config.serving.output) / "quarantine" / f"{as_of:%Y-%m-%d}.parquet"
    with releases.named(path):
        if not len(rows):
            for outlived in path.parent.glob(path.name):  # where nothing is, nothing need be writable either
                outlived.unlink(missing_ok=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            rows.to_parquet(unfinished, index=False)
    return path

"""What `recsys compare` puts side by side: two model versions, or any two recommendation tables."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from features.ingest import load_tables
from recsys.config import Config
from recsys.errors import ConfigError, DataError, shown
from recsys.progress import Reporter
from recsys.registry import Fetched, Registry
from serving.publish import ReleaseStore
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.world import Arm
from training.job import code_revision


@dataclass(frozen=True)
class Window:
    """Labels that both arms are judged by: from `start`, before `end`; or those a split column names."""

    start: pd.Timestamp
    end: pd.Timestamp
    by_column: bool = False
    users: pd.Series | None = None


def compare_arms(
    config: Config,
    a: str,
    b: str,
    as_of: pd.Timestamp,
    reporter: Reporter,
    *,
    test_start: pd.Timestamp | None = None,
    output: Path | None = None,
    command: str = "",
) -> tuple[Report, Path]:
    """Compares B with A and writes the report; returns it and its folder.

    Model versions are compared by the lists their evaluation stored, which no event of the report window has
    touched. Tables are compared on events from `test_start` to `as_of`.

    Args:
        a, b: a version or alias each, or a folder or file of recommendations each.
        as_of: nothing at or after it is read.
        test_start: for tables: labels count from here; by default until when the later arm read data.
        output: folder of the report; by default one under `compare` beside the releases.

    Raises:
        ConfigError: the arms are of two kinds, or no common window is known.
    """
    is_table = [Path(name).exists() for name in (a, b)]
    if is_table[0] != is_table[1]:
        raise ConfigError(f"{shown(a)} and {shown(b)}: one is a table, the other a model; give two of a kind")
    if all(is_table):
        arms = [table_arm(Path(name)) for name in (a, b)]
        window = Window(_start_of(arms, test_start), as_of)
    else:
        arms, window = _version_arms(config, (a, b))
    with reporter.stage("reading tables") as progress:
        labels, history, items = _labels(config, window)
        progress(1, 1)
    with reporter.stage("comparing") as progress:
        report = compare(
            arms[0], arms[1], labels, items, config.report,
            test_start=window.start, test_end=window.end, now=pd.Timestamp.now(tz="UTC"), history=history,
            code_revision=code_revision(), command=command, rng_seed=config.seed,
        )  # fmt: skip
        progress(1, 1)
    folder = output or Path(config.serving.output) / "compare" / f"{_plain(arms[0])}-{_plain(arms[1])}"
    report.write(folder)
    return report, folder


def table_arm(path: Path) -> Arm:
    """A recommendation table as an arm: a release folder (verified), a folder of Parquet, a Parquet or CSV file.

    Raises:
        DataError: it cannot be read, or lacks user_id, item_id or rank.
    """
    info: dict[str, str] = {}
    try:
        if (path / "manifest.json").exists():
            store = ReleaseStore(path.resolve().parent.parent)
            info["trained_until"] = store.manifest(path)["data"]["until"]
            table = store.read(path).to_pandas()
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
        else:
            table = pd.read_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: no recommendation table: {error}; give Parquet or CSV, or a release folder"
        ) from error
    missing = [column for column in ("user_id", "item_id", "rank") if column not in table]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; found {', '.join(map(shown, table.columns))}; add it")
    return Arm(path.name, table, info=info)


def _version_arms(config: Config, names: tuple[str, str]) -> tuple[list[Arm], Window]:
    """Two registered versions by the lists of their evaluation, which must be of one window."""
    registry = Registry(config.mlflow)
    fetched = [registry.fetch(name, Path(config.text.cache).parent / "models") for name in names]
    stored = [_evaluation(one) for one in fetched]
    windows = [
        (s["test_start"], s["test_end"], f.version.tags.get("data_sha256"))
        for s, f in zip(stored, fetched, strict=True)
    ]
    if windows[0] != windows[1]:
        raise ConfigError(
            f"versions {fetched[0].version.version} and {fetched[1].version.version} were evaluated on different windows "
            f"({windows[0][0]} to {windows[0][1]}, {windows[1][0]} to {windows[1][1]}) or data; "
            "train both with the same --as-of, or compare two release folders"
        )
    start, end = pd.Timestamp(windows[0][0]), pd.Timestamp(windows[0][1])
    by_column = bool(stored[0]["by_column"])
    until = {} if by_column else {"trained_until": start.isoformat()}
    arms = [
        Arm(name, _stored(one, "recommendations"), one.version.version, until | {"sha256": one.version.sha256})
        for name, one in zip(names, fetched, strict=True)
    ]
    users = pd.Series(_stored(fetched[0], "per_user")["user_id"].unique())
    return arms, Window(start, end, by_column, users)


def _labels(config: Config, window: Window) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Positive events of the window, those before it, and the items."""
    tables = load_tables(config.data, window.end)
    events = tables.events[tables.events["event_type"].isin(list(config.data.event_weights))]
    if window.by_column:
        is_label = events[config.data.split_column] == "test"
        # an order, not times: the checks of time do not apply, so they are shown as unknown
        labels, history = (part.drop(columns="timestamp") for part in (events[is_label], events[~is_label]))
    else:
        labels, history = events[events["timestamp"] >= window.start], events[events["timestamp"] < window.start]
    if window.users is not None:  # evaluations sample users where there are very many
        labels = labels[labels["user_id"].isin(window.users)]
    if config.rules.exclude_seen:
        keys = pd.MultiIndex.from_frame(history[["user_id", "item_id"]])
        labels = labels[~pd.MultiIndex.from_frame(labels[["user_id", "item_id"]]).isin(keys)]
    if labels.empty:
        raise DataError(
            f"events: no label from {window.start} to {window.end}; bring later events, or set --test-start and --as-of"
        )
    return labels, history, tables.items


def _start_of(arms: list[Arm], given: pd.Timestamp | None) -> pd.Timestamp:
    if given is not None:
        return given
    known = [pd.Timestamp(arm.info["trained_until"]) for arm in arms if "trained_until" in arm.info]
    if not known:
        raise ConfigError("neither table says until when it was made; give --test-start, the moment labels begin")
    return max(known)


def _evaluation(fetched: Fetched) -> dict[str, str | bool]:
    content: dict[str, str | bool] = json.loads((fetched.bundle.folder / "evaluation" / "evaluation.json").read_text())
    return content


def _stored(fetched: Fetched, name: str) -> pd.DataFrame:
    return pd.read_parquet(fetched.bundle.folder / "evaluation" / f"{name}.parquet")


def _plain(arm: Arm) -> str:
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in f"{arm.name}{arm.version}")[:60]

"""The nightly job: validate, train when due, score, audit, publish, report."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from features.dataset import Dataset
from features.ingest import DataReport, load_tables
from recsys.config import Config
from recsys.errors import ModelError, ReportError
from recsys.progress import Reporter
from recsys.registry import Registry
from serving.batch import Released, model_cache, publish_lists
from serving.promotion import promoted_or_not
from serving.publish import ReleaseStore
from serving.releases import write_whole
from serving.show import evaluation_in, print_lists, print_stored_evaluation
from training.job import train_and_register
from training.model import Model


@dataclass(frozen=True)
class Outcome:
    """One night: what the data were, what was published, what the model measured, where to look."""

    data: DataReport
    released: Released
    evaluation: dict[str, Any] | None
    trained: bool
    mlflow_page: str
    config: Config
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data.to_dict(),
            "released": self.released.to_dict(),
            "evaluation": self.evaluation,
            "trained": self.trained,
            "mlflow_page": self.mlflow_page,
            "seconds": self.seconds,
        }

    def render(self, console: Console) -> None:
        """The night on a screen: evaluation, a few users' lists, where everything lies."""
        if self.evaluation:
            print_stored_evaluation(self.evaluation, console)
        print_lists(self.config, self.released.release, console, n_users=3)
        console.print(f"\n{self.released.sentence()}", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"recommendations: {Path(self.config.serving.output) / 'current'}\n"
            f"night: {self.seconds:.0f} s, {'trained' if self.trained else 'model not due for training'}\n"
            f"MLflow page: {self.mlflow_page}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def load_dataset(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> tuple[Dataset, DataReport]:
    """Tables through the door, as of a moment; refused rows go to the quarantine folder."""
    with reporter.stage("reading tables") as progress:
        tables = load_tables(config.data, as_of)
        if len(tables.quarantine):
            folder = Path(config.serving.output) / "quarantine"
            folder.mkdir(parents=True, exist_ok=True)
            tables.quarantine.to_parquet(folder / f"{as_of:%Y-%m-%d}.parquet", index=False)
        dataset = Dataset.from_tables(tables, config.data, as_of)
        progress(1, 1)
    return dataset, tables.report


def run_nightly(
    config: Config,
    as_of: pd.Timestamp,
    reporter: Reporter,
    *,
    when: str = "due",
    move_current: bool = False,
    promote: bool = False,
) -> Outcome:
    """The cron line. Whatever fails before publication leaves what was served as it is.

    Args:
        when: "due" trains when the newest model is older than `serving.train_every_days`; "always"; "never".
        move_current: lets a backfill of a past date become what is served.
        promote: lets a version trained tonight become champion, if the report against the champion says so.
    """
    began = time.monotonic()
    store = ReleaseStore(Path(config.serving.output))
    with store.lock():
        dataset, report = load_dataset(config, as_of, reporter)
        report.render(reporter.console)
        is_due = when == "always" or (when == "due" and training_is_due(config, as_of))
        if is_due:
            version = train_and_register(dataset, config, reporter).version
            if promote:
                reporter.say(promoted_or_not(config, version, reporter))
        released = publish_lists(dataset, config, reporter, store, move_current=move_current)
        registry = Registry(config.mlflow)
        try:
            evaluation = evaluation_in(_fetched_folder(config, released.model_version))
            outcome = Outcome(
                report,
                released,
                evaluation,
                is_due,
                registry.page_command(),
                config,
                round(time.monotonic() - began, 1),
            )
            _write_run(config, outcome, as_of)
        except (OSError, ValueError, KeyError) as error:
            raise ReportError(
                f"published {released.release.name}, but the night's report failed: {error}; rerun: recsys status"
            ) from error
    return outcome


def training_is_due(config: Config, as_of: pd.Timestamp) -> bool:
    """Whether no version was trained on data from the last `train_every_days`."""
    ages = [
        (as_of - pd.Timestamp(version.tags["data_until"])).total_seconds() / 86_400
        for version in Registry(config.mlflow).versions()
        if "data_until" in version.tags
    ]
    past = [age for age in ages if age >= 0]
    return not past or min(past) >= config.serving.train_every_days


def _fetched_folder(config: Config, version: str) -> Path:
    return Registry(config.mlflow).fetch(version, model_cache(config)).bundle.folder


def _write_run(config: Config, outcome: Outcome, as_of: pd.Timestamp) -> None:
    folder = Path(config.serving.output) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{as_of:%Y-%m-%dT%H%M%S}.json", json.dumps(outcome.to_dict(), indent=2, default=str))


def champion(config: Config) -> tuple[Model, str]:
    """The verified champion and its version."""
    fetched = Registry(config.mlflow).fetch("champion", model_cache(config))
    if fetched.stale:
        raise ModelError("the registry is down; only a last verified copy is at hand")
    return Model.load(fetched.bundle.folder), fetched.version.version

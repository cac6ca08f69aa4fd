"""The nightly job: validate, train when due, score, audit, publish, report."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import format_tb
from typing import Any

import pandas as pd
from rich.console import Console

from features.data_report import DataReport
from features.dataset import Dataset
from recsys.config import Config
from recsys.errors import (
    AuditError,
    DeadlineError,
    ModelError,
    RecsysError,
    ReportError,
    ResourceError,
    StoppedError,
    TrainingError,
    as_ours,
    public,
    shown,
)
from recsys.registry import OLDER_THAN, TAKEN_BACK, Registry, RegistryDownError
from recsys.stop import part_of_deadline
from serving import releases
from serving.audit import refuse_old_data
from serving.batch import Released, publish_lists
from serving.columns import refuse_lost_columns
from serving.door import load_dataset
from serving.models import copies_of, evaluation_in
from serving.promotion import promoted_or_not
from serving.runs import Run, message_of
from serving.show import print_evaluation, print_lists, served_release
from training.job import train_and_register

SLACK_DAYS = 0.25  # a night that begins some seconds earlier than a week ago, or an hour, is still a week later
TRAINING_SHARE = 2 / 3  # of the time to the deadline: then the champion scores in what is left
_TOO_SLOW = (
    f"it took longer than {TRAINING_SHARE:.0%} of the time to the deadline; give more with --deadline, or lower "
    "text.max_minutes or ranker.max_users"
)


@dataclass(frozen=True)
class Outcome:
    """One night: what the data were, what was published, what the model measured, where to look.

    data and released are None where only the report is made again; model_version: the one that scored and was evaluated.
    """

    data: DataReport | None
    released: Released | None
    release: Path
    evaluation: dict[str, Any]
    model_version: str
    trained: bool
    mlflow_page: str
    config: Config
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data.to_dict() if self.data else None,
            "released": self.released.to_dict() if self.released else None,
            "release": self.release.name,
            "evaluation": self.evaluation,
            "model_version": self.model_version,
            "trained": self.trained,
            "mlflow_page": self.mlflow_page,
            "seconds": self.seconds,
        }

    def render(self, console: Console, n_users: int) -> None:
        """The night on a screen: evaluation, a few users' lists, where everything lies."""
        print_evaluation(self.evaluation, console, self.model_version)
        if n_users:
            print_lists(self.config, self.release, console, n_users)
        lines = ["", self.released.sentence()] if self.released else ["", f"published: {self.release.name}"]
        is_served = self.released is None or self.released.moved
        lines.append(f"recommendations: {Path(self.config.serving.output) / 'current' if is_served else self.release}")
        if self.released:
            lines.append(f"night: {self.seconds:.0f} s, {'trained' if self.trained else 'model not due for training'}")
        lines.append(f"MLflow page: {self.mlflow_page}")
        console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)


def run_nightly(run: Run, *, when: str = "due", move_current: bool = False, promote: bool = False) -> Outcome:
    """The cron line. Whatever fails before publication leaves what was served as it is.

    Args:
        run: holds the lock; see `serving.runs.recorded`.
        when: "due" trains when the newest model is older than `serving.train_every_days`; "always"; "never".
        move_current: lets a backfill of a past date become what is served.
        promote: lets a version that no report has judged yet become champion, if its report says so; it serves from
            the next night on.

    Raises:
        TrainingError: at the very end; what was due failed, and the champion's lists are out.
    """
    config, reporter = run.config, run.reporter
    dataset, data = load_dataset(config, run.as_of, reporter)
    reporter.show(data.render)
    run.facts |= {"events": data.n_events, "items": data.n_items, "quarantined": sum(data.quarantined.values())}
    is_due = when == "always" or (when == "due" and _is_due(run))
    run.facts["trained"] = False
    if is_due and (lost := _lost_registry(run)):
        run.facts["lost_registry"] = lost
        reporter.say(lost)
    if is_due:  # what would be refused after it, too
        refuse_lost_columns(dataset, run.store, config)
        refuse_old_data((dataset.as_of - dataset.newest).total_seconds() / 3600, config.serving.audit)
    failure = _train(dataset, run) if is_due else None
    if failure:
        gc.collect()
    try:
        released = publish_lists(dataset, run, move_current=move_current)
    except AuditError:
        if not (promote and _promoted(run)):
            raise
        released = publish_lists(dataset, run, move_current=move_current)  # the champion had grown too old, say
    else:
        if promote:  # after: lists do not wait for a comparison that may take hours
            _promoted(run)
    if failure:
        served = f"{released.release.name} is published, by version {released.model_version}"
        raise TrainingError(f"{served}, but tonight's training failed: {failure}")
    with reported(released.release):
        evaluation = evaluation_in(copies_of(run.registry, config).folder_of(released.model_sha256))
    page = run.registry.page_command()
    version, trained = released.model_version, run.facts["trained"]
    return Outcome(data, released, released.release, evaluation, version, trained, page, config, run.seconds)


def _train(dataset: Dataset, run: Run) -> str | None:
    """Registers a new version. Returns what kept it from that and has to be mended, where another version can serve.

    A registry that is down comes back by itself. The error is not returned: it would keep all that the training held in
    memory, which scoring may need.
    """
    try:
        with part_of_deadline(TRAINING_SHARE):
            train_and_register(dataset, run.config, run.reporter)
    except StoppedError:
        raise
    except Exception as error:
        told = as_ours(error) if not isinstance(error, DeadlineError) else TrainingError(_TOO_SLOW)
        is_down, failure = isinstance(told, RegistryDownError), message_of(told)
        run.facts["training_error"] = failure
        if not is_down and not _has_champion(run):
            raise
        if not isinstance(told, RecsysError):
            run.reporter.say("".join(format_tb(error.__traceback__)))  # a defect: where it is
        run.reporter.say(f"the new version is lost, the last verified one serves: {failure}")
        return None if is_down else failure
    run.facts["trained"] = True
    return None


def _has_champion(run: Run) -> bool:
    """Whether a version is there to serve; where the registry is down, the copy of it will show."""
    try:
        return any("champion" in version.aliases for version in run.registry.versions())
    except RegistryDownError:
        return True
    except ModelError:
        return False  # the training's own error says more than the registry's


def report_of_served(config: Config) -> Outcome:
    """The report of what is served, made again; no run is needed, and a registry only where the copy of the model is gone.

    Raises:
        ConfigError: nothing is published.
    """
    release = served_release(config)
    facts = releases.manifest(release)
    registry, version = Registry(config.mlflow), facts["model"]["version"]
    copies = copies_of(registry, config)
    copy = copies.folder_of(facts["model"]["sha256"])
    with reported(release):
        if not copy.exists():
            copies.fetch(version)
        evaluation = evaluation_in(copy)
    page = registry.page_command()
    return Outcome(None, None, release, evaluation, version, False, page, config, 0.0)


@contextmanager
def reported(release: Path) -> Iterator[None]:
    """Turns what breaks a report into ReportError: the lists are out, and stay."""
    try:
        yield
    except (StoppedError, DeadlineError):
        raise
    except Exception as error:
        raise ReportError(
            f"{release.name} is published and stays, but its report failed: {error}; make it again with: recsys report"
        ) from error


def training_is_due(config: Config, as_of: pd.Timestamp, registry: Registry) -> bool:
    """Whether no version was trained on data from the last `train_every_days`, or none ever with these settings.

    The newest version is challenger, unless it is of older data: any other that came after all that have a name died
    before it got its own.
    """
    versions = registry.versions()
    named = [int(version.version) for version in versions if version.aliases]
    versions = [v for v in versions if int(v.version) <= max(named, default=0) or OLDER_THAN in v.tags]
    ages = [
        (as_of - pd.Timestamp(version.tags["data_until"])).total_seconds() / 86_400
        for version in versions
        if "data_until" in version.tags
    ]
    if not any("champion" in version.aliases for version in versions):
        return True  # the first training died before its version had a name
    past = [age for age in ages if age >= 0]
    if not past or min(past) >= config.serving.train_every_days - SLACK_DAYS:
        return True
    recipes = {version.tags.get("recipe_sha256", "") for version in versions}
    return "" not in recipes and config.recipe_sha256() not in recipes


def _promoted(run: Run) -> bool:
    """Puts a challenger that no report has judged through the gate; whether it is champion now."""
    candidate = _unjudged(run)
    if candidate is None:
        return False
    sentence, is_judged = promoted_or_not(run.config, candidate, run.reporter)
    run.facts["promotion" if is_judged else "promotion_error"] = sentence
    run.reporter.say(sentence)
    try:
        return run.registry.resolve("champion").version == candidate
    except RegistryDownError:
        return False


def _unjudged(run: Run) -> str | None:
    """The challenger, where neither a report has judged it yet nor a person: tonight's, or that of a night that did not get
    so far.
    """
    try:
        named = {alias: version for version in run.registry.versions() for alias in version.aliases}
    except RegistryDownError:
        return None
    challenger, present = named.get("challenger"), named.get("champion")
    if challenger is None or challenger == present or {"report_verdict", TAKEN_BACK} & set(challenger.tags):
        return None
    return challenger.version


def _lost_registry(run: Run) -> str | None:
    """What is odd where a version serves and the registry knows none: MLflow makes a store that is missing anew, in silence."""
    served = run.store.current()
    try:
        if served is None or run.registry.versions():
            return None
        version = releases.manifest(served)["model"]["version"]
    except (RegistryDownError, ResourceError, KeyError):
        return None
    settings = run.config.mlflow
    return (
        f"{served.name} was made by version {version}, but {public(str(settings.tracking_uri))} knows no version of "
        f"{shown(settings.model_name)}: the first is trained"
    )


def _is_due(run: Run) -> bool:
    """Like `training_is_due`; nothing is due while the registry is down: there is nowhere to put a new version."""
    try:
        return training_is_due(run.config, run.as_of, run.registry)
    except RegistryDownError as error:
        run.reporter.say(f"no training tonight: {error}")
        return False

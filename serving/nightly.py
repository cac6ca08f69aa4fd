"""The nightly job: validate, train when due, score, audit, publish, report."""

import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console

from features.dataset import Dataset
from features.ingest import DataReport, load_tables
from recsys.config import Config
from recsys.errors import DataError, ModelError, ReportError
from recsys.progress import Reporter
from recsys.registry import Registry
from recsys.types import IntArray
from serving.audit import AuditContext, audit
from serving.publish import ReleaseStore
from serving.score import Scorer, Stamp, users_to_score
from serving.show import evaluation_in, print_lists, print_stored_evaluation
from training.job import code_revision, train_and_register
from training.model import Model

BYTES_PER_ROW = 120  # of a compressed part, measured on the demo; the estimate behind the disk check


@dataclass(frozen=True)
class Released:
    """What a scoring ended in.

    release: folder that holds the lists; is_new: False when the same inputs were published before;
    moved: whether `current` points to it now; rows, users: sizes; seconds: of the whole.
    """

    release: Path
    model_version: str
    rows: int
    users: int
    is_new: bool
    moved: bool
    stale_model: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}

    def sentence(self) -> str:
        """One line for a person."""
        what = "published" if self.is_new else "nothing to do, the same inputs are published already:"
        served = "" if self.moved else " (current was not moved)"
        return f"{what} {self.release.name}: {self.rows:,} rows for {self.users:,} users, model {self.model_version}{served}"


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
    config: Config, as_of: pd.Timestamp, reporter: Reporter, *, when: str = "due", move_current: bool = False
) -> Outcome:
    """The cron line. Whatever fails before publication leaves what was served as it is.

    Args:
        when: "due" trains when the newest model is older than `serving.train_every_days`; "always"; "never".
        move_current: lets a backfill of a past date become what is served.
    """
    began = time.monotonic()
    store = ReleaseStore(Path(config.serving.output))
    with store.lock():
        dataset, report = load_dataset(config, as_of, reporter)
        report.render(reporter.console)
        is_due = when == "always" or (when == "due" and training_is_due(config, as_of))
        if is_due:
            train_and_register(dataset, config, reporter)
        released = _score(dataset, config, reporter, store, move_current=move_current)
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


def score_and_publish(
    dataset: Dataset,
    config: Config,
    reporter: Reporter,
    *,
    model: str = "champion",
    users_file: str | None = None,
    k: int | None = None,
    move_current: bool = False,
) -> Released:
    """Scores with a registered model and publishes, under the output folder's lock."""
    store = ReleaseStore(Path(config.serving.output))
    with store.lock():
        wanted = _read_users(users_file) if users_file else None
        return _score(dataset, config, reporter, store, model=model, wanted=wanted, k=k, move_current=move_current)


def _score(
    dataset: Dataset,
    config: Config,
    reporter: Reporter,
    store: ReleaseStore,
    *,
    model: str = "champion",
    wanted: pd.Series | None = None,
    k: int | None = None,
    move_current: bool = False,
) -> Released:
    began = time.monotonic()
    k = k or config.serving.k
    fetched = Registry(config.mlflow).fetch(model, _model_cache(config))
    users = users_to_score(dataset, wanted)
    run_date = f"{dataset.as_of:%Y-%m-%d}"
    key = {
        "run_date": run_date,
        "model_sha256": fetched.bundle.sha256,
        "data_sha256": dataset.sha256,
        "config_sha256": _request_sha256(config, k, users),
    }
    version = fetched.version.version
    known = store.find(key)
    if known is not None:
        manifest = json.loads((known / "manifest.json").read_text())
        seconds = round(time.monotonic() - began, 1)
        return Released(
            known,
            version,
            manifest["rows"],
            manifest["users"],
            False,
            _is_current(store, known),
            fetched.stale,
            seconds,
        )
    store.check_space(len(users) * k * BYTES_PER_ROW)
    loaded = Model.load(fetched.bundle.folder)
    with reporter.stage("item vectors") as progress:
        snapshot = loaded.snapshot(dataset, config, progress)
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(key, sort_keys=True)).hex[:12]  # same inputs, same bytes
    scorer = Scorer.of(dataset, snapshot, loaded.ranker, Stamp(run_id, version, run_date))
    staging = store.begin(run_date, run_id)
    with reporter.stage("scoring") as progress:
        for number, start in enumerate(range(0, len(users), config.serving.users_per_shard)):
            shard = users[start : start + config.serving.users_per_shard]
            part = scorer.score(shard, k, lambda done, _, start=start: progress(start + done, len(users)))  # type: ignore[misc]
            store.write_part(staging, number, part)
    context = _context(dataset, config, store, users, k, fetched.version.tags)
    result = audit(store.read_staged(staging), context)
    for gate in result.warnings:
        reporter.say(f"audit warns: {gate.name} {gate.number} (limit {gate.limit}); {gate.remedy}")
    if result.is_refused:
        store.quarantine(staging)
    result.raise_if_refused()
    manifest = {
        **key,
        "key": key,
        "model": {"name": config.mlflow.model_name, "version": version, "sha256": fetched.bundle.sha256},
        "data": {"until": dataset.as_of.isoformat(), "sha256": dataset.sha256},
        "code_revision": code_revision(),
        "seconds": round(time.monotonic() - began, 1),
    }
    release = store.finish(staging, manifest)
    moved = store.publish(release, allow_backfill=move_current)
    facts = json.loads((release / "manifest.json").read_text())
    seconds = round(time.monotonic() - began, 1)
    return Released(release, version, facts["rows"], facts["users"], True, moved, fetched.stale, seconds)


def _context(
    dataset: Dataset, config: Config, store: ReleaseStore, users: IntArray, k: int, tags: dict[str, str]
) -> AuditContext:
    newest = pd.Timestamp(int(dataset.timestamp.max()), unit="us", tz="UTC")
    trained_until = pd.Timestamp(tags["data_until"]) if "data_until" in tags else dataset.as_of
    last = store.current()
    return AuditContext(
        eligible_users=len(users),
        k=k,
        catalogue=pa.array(dataset.items.values(dataset.available.nonzero()[0])),
        last_release=store.read(last) if last is not None else None,
        model_age_days=(dataset.as_of - trained_until).total_seconds() / 86_400,
        data_age_hours=(dataset.as_of - newest).total_seconds() / 3600,
        config=config.serving.audit,
    )


def _is_current(store: ReleaseStore, release: Path) -> bool:
    current = store.current()
    return current is not None and current.name == release.name


def _request_sha256(config: Config, k: int, users: IntArray) -> str:
    """What was asked of a model: the rules, k and the users."""
    return hashlib.sha256(
        f"{config.fingerprint('rules', 'candidates')} {k} {users.tobytes().hex()}".encode()
    ).hexdigest()


def _model_cache(config: Config) -> Path:
    return Path(config.text.cache).parent / "models"


def _fetched_folder(config: Config, version: str) -> Path:
    return Registry(config.mlflow).fetch(version, _model_cache(config)).bundle.folder


def _read_users(path: str) -> pd.Series:
    try:
        frame = pd.read_csv(path, dtype={"user_id": "str"}) if path.endswith(".csv") else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; give Parquet or CSV with a user_id column") from error
    if "user_id" not in frame:
        raise DataError(f"{path}: no column user_id (columns: {', '.join(map(str, frame.columns))}); add it")
    return frame["user_id"]


def _write_run(config: Config, outcome: Outcome, as_of: pd.Timestamp) -> None:
    folder = Path(config.serving.output) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{as_of:%Y-%m-%dT%H%M%S}.tmp"
    temporary.write_text(json.dumps(outcome.to_dict(), indent=2, default=str))
    temporary.replace(folder / f"{as_of:%Y-%m-%dT%H%M%S}.json")


def champion(config: Config) -> tuple[Model, str]:
    """The verified champion and its version."""
    fetched = Registry(config.mlflow).fetch("champion", _model_cache(config))
    if fetched.stale:
        raise ModelError("the registry is down; only a last verified copy is at hand")
    return Model.load(fetched.bundle.folder), fetched.version.version

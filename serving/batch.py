"""Batch scoring of a data set with a registered model: shards, audit, publication."""

import hashlib
import json
import resource
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from features.dataset import Dataset
from recsys.config import Config
from recsys.errors import DataError
from recsys.progress import Reporter
from recsys.registry import Fetched, Registry
from recsys.types import IntArray
from serving.audit import COLUMNS, AuditContext, audit
from serving.publish import ReleaseStore
from serving.score import Scorer, Stamp, users_to_score
from training.job import code_revision
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
    """Scores with a registered model and publishes, under the output folder's lock.

    Args:
        model: an alias or a version.
        users_file: Parquet or CSV with `user_id`; all users by default.
        k: items per user; `serving.k` by default.
        move_current: lets a backfill of a past date become what is served.
    """
    store = ReleaseStore(Path(config.serving.output))
    with store.lock():
        wanted = _read_users(users_file) if users_file else None
        return publish_lists(
            dataset, config, reporter, store, model=model, wanted=wanted, k=k, move_current=move_current
        )


def publish_lists(
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
    """Scores, audits and publishes, in a store whose lock is held; the same inputs a second time are not scored again."""
    began = time.monotonic()
    k = k or config.serving.k
    fetched = Registry(config.mlflow).fetch(model, model_cache(config))
    users = users_to_score(dataset, wanted)
    key = {
        "run_date": f"{dataset.as_of:%Y-%m-%d}",
        "model_sha256": fetched.bundle.sha256,
        "data_sha256": dataset.sha256,
        "config_sha256": _request_sha256(config, k, users),
    }
    release = store.find(key)
    is_new = release is None
    if release is None:
        store.check_space(len(users) * k * BYTES_PER_ROW)
        staging = _score_shards(dataset, config, reporter, store, fetched, key, users, k)
        _audit(staging, dataset, config, reporter, store, users, k, fetched.version.tags)
        release = store.finish(staging, _facts(key, dataset, config, fetched, began))
    moved = store.publish(release, allow_backfill=move_current)  # a run may have died between the two
    manifest = store.manifest(release)
    return Released(
        release=release,
        model_version=fetched.version.version,
        rows=manifest["rows"],
        users=manifest["users"],
        is_new=is_new,
        moved=moved,
        stale_model=fetched.stale,
        seconds=round(time.monotonic() - began, 1),
    )


def model_cache(config: Config) -> Path:
    """Where verified copies of model versions lie."""
    return Path(config.text.cache).parent / "models"


def _score_shards(
    dataset: Dataset,
    config: Config,
    reporter: Reporter,
    store: ReleaseStore,
    fetched: Fetched,
    key: dict[str, str],
    users: IntArray,
    k: int,
) -> Path:
    """Staged parts, one per shard of users; those that a run with the same key finished before it died are kept."""
    size = config.serving.users_per_shard
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(key, sort_keys=True)).hex[:12]  # same inputs, same bytes
    staging = store.begin(key["run_date"], run_id, key | {"code": code_revision(), "users_per_shard": str(size)})
    shards = list(enumerate(range(0, len(users), size)))
    missing = [(number, start) for number, start in shards if store.staged_part(staging, number) is None]
    if len(missing) < len(shards):
        reporter.say(f"scoring: {len(shards) - len(missing)} of {len(shards)} shards kept from a run that was cut off")
    if not missing:
        return staging
    model = Model.load(fetched.bundle.folder)
    with reporter.stage("item vectors") as progress:
        snapshot = model.snapshot(dataset, config, progress)
    scorer = Scorer.of(dataset, snapshot, model.ranker, Stamp(run_id, fetched.version.version, key["run_date"]))
    with reporter.stage("scoring") as progress:
        for number, start in missing:
            part = scorer.score(
                users[start : start + size],
                k,
                lambda done, _, start=start: progress(start + done, len(users)),  # type: ignore[misc]
            )
            store.write_part(staging, number, part)
    return staging


def _audit(
    staging: Path,
    dataset: Dataset,
    config: Config,
    reporter: Reporter,
    store: ReleaseStore,
    users: IntArray,
    k: int,
    tags: dict[str, str],
) -> None:
    """Judges what was read back from disk; refused lists go to quarantine."""
    newest = pd.Timestamp(int(dataset.timestamp.max()), unit="us", tz="UTC")
    trained_until = pd.Timestamp(tags["data_until"]) if "data_until" in tags else dataset.as_of
    served = store.current()
    is_backfill = served is not None and staging.name[:10] < served.name[:10]
    context = AuditContext(
        eligible_users=len(users),
        k=k,
        catalogue=pa.array(dataset.items.values(dataset.available.nonzero()[0])),
        last_release=None if is_backfill else store.last_whole(["user_id", "item_id"]),
        model_age_days=(dataset.as_of - trained_until).total_seconds() / 86_400,
        data_age_hours=(dataset.as_of - newest).total_seconds() / 3600,
        config=config.serving.audit,
    )
    result = audit(store.read_staged(staging, COLUMNS), context)
    for gate in result.warnings:
        reporter.say(f"audit warns: {gate.name} {gate.number} (limit {gate.limit}); {gate.remedy}")
    if result.is_refused:
        store.quarantine(staging)
    result.raise_if_refused()


def _facts(key: dict[str, str], dataset: Dataset, config: Config, fetched: Fetched, began: float) -> dict[str, Any]:
    model = {"name": config.mlflow.model_name, "version": fetched.version.version, "sha256": fetched.bundle.sha256}
    return {
        **key,
        "key": key,
        "model": model,
        "data": {"until": dataset.as_of.isoformat(), "sha256": dataset.sha256},
        "code_revision": code_revision(),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _request_sha256(config: Config, k: int, users: IntArray) -> str:
    """What was asked of a model: the rules, k and the users."""
    return hashlib.sha256(
        f"{config.fingerprint('rules', 'candidates')} {k} {users.tobytes().hex()}".encode()
    ).hexdigest()


def _read_users(path: str) -> pd.Series:
    try:
        frame = pd.read_csv(path, dtype={"user_id": "str"}) if path.endswith(".csv") else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; give Parquet or CSV with a user_id column") from error
    if "user_id" not in frame:
        raise DataError(f"{path}: no column user_id (columns: {', '.join(map(str, frame.columns))}); add it")
    return frame["user_id"]

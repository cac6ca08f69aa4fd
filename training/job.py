"""The training job: tables in, a registered model version out."""

import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from features.dataset import Dataset
from recsys.bundle import seal
from recsys.config import Config
from recsys.machine import peak_memory_mib
from recsys.progress import Reporter
from recsys.registry import CHALLENGER, Registry, RegistryDownError, TrackedRun
from recsys.revision import code_revision
from recsys.types import FloatArray
from recsys.whole import refusals_of_disk
from training.calibration import diagram
from training.evaluate import Evaluation
from training.pipeline import Evaluated, Trained, train


@dataclass(frozen=True)
class Registered:
    """A training that ended well: the version it became and what it measured."""

    version: str
    trained: Trained


def train_and_register(dataset: Dataset, config: Config, reporter: Reporter) -> Registered:
    """Trains on a data set, logs to MLflow and registers the bundle; see `Registry.register` for the names it gets."""
    registry = Registry(config.mlflow)
    window = {"data_until": dataset.as_of.isoformat(), "data_sha256": dataset.sha256}
    tags = window | {"code_revision": code_revision(), "config_sha256": config.fingerprint()}
    tags |= {"recipe_sha256": config.recipe_sha256()}
    with registry.run(f"train {dataset.as_of:%Y-%m-%d}", config.model_dump(mode="json"), tags) as run:
        run.log_dataset("events", dataset.sha256, len(dataset.user_pos), "events", "training")
        work = config.beside_cache("checkpoints")

        # a registry of its own: one that did not answer is not asked again, and a curve that ends is no reason to lose
        # the training
        curve = replace(run, registry=Registry(config.mlflow))

        def log(values: dict[str, float], step: int) -> None:
            if values.get("text_best_step") == 0:
                reporter.say("text tower: no step lowered the loss on held-out events, so the encoder stays as it came")
            with suppress(RegistryDownError):
                curve.log_metrics(values, step)

        trained = train(dataset, config, reporter.stage, log, work)
        run.log_metrics(_metrics(trained.evaluation) | {f"seconds {k}": v for k, v in trained.seconds.items()})
        run.log_metrics({f"guard ndcg_10 {k}": v for k, v in trained.ranker.guard.items()})
        work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="bundle-", dir=work))  # where gc finds what a kill left
        try:
            with refusals_of_disk(folder):
                trained.model.save(folder)
            save_evaluation(trained, dataset, folder / "evaluation")
            _log_diagram(trained.evaluation, run)
            seal(folder, window | {"code_revision": code_revision(), "config_sha256": config.fingerprint()})
            with reporter.stage("registering the model") as progress:
                version = registry.register(run, folder, tags)
                progress(1, 1)
        finally:
            shutil.rmtree(folder)
    reporter.say(f"registered {config.mlflow.model_name} version {version}")
    with suppress(RegistryDownError):  # the version is there, whoever can still be asked of its names
        if CHALLENGER not in registry.resolve(version).aliases:
            reporter.say("challenger stays the version of newer data")
    return Registered(version, trained)


def save_evaluation(trained: Trained, dataset: Dataset, folder: Path) -> None:
    """Writes the table, per-user metrics and lists of the last window, with outside ids."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = trained.evaluation
    evaluation.per_user.assign(user_id=dataset.users.values(evaluation.per_user["user_pos"].to_numpy())).drop(
        columns="user_pos"
    ).to_parquet(folder / "per_user.parquet", index=False)
    evaluated_lists(trained, dataset).to_parquet(folder / "recommendations.parquet", index=False)
    (folder / "evaluation.json").write_text(json.dumps(evaluation_summary(trained, dataset), indent=2))


def evaluated_lists(evaluated: Evaluated, dataset: Dataset) -> pd.DataFrame:
    """The ranker's lists of the last window with outside ids: user_id, item_id, rank, score, source, reason."""
    lists = evaluated.evaluation.lists
    columns = {
        "user_id": dataset.users.values(lists["user_pos"].to_numpy()),
        "item_id": dataset.items.values(lists["item_pos"].to_numpy()),
        "rank": lists["rank"].to_numpy("int32"),
        "score": lists["score"].to_numpy("float32"),
        "source": lists["source"].to_numpy(dtype=object),
        "reason": lists["reason"].to_numpy(dtype=object),
    }
    return pd.DataFrame(columns)


def evaluation_summary(evaluated: Evaluated, dataset: Dataset) -> dict[str, Any]:
    """The evaluation as plain values for JSON: table, segments, window, guard, costs."""
    evaluation, windows = evaluated.evaluation, evaluated.windows
    before = dataset.timestamp[windows.window < 2]
    return {
        "learned_from": _moment(before.min()),
        "ranker_from": _moment(windows.starts[0]),
        "latest_training_event": _moment(before.max()),
        "test_start": _moment(windows.starts[1]),
        "test_end": _moment(windows.end),
        "by_column": dataset.split is not None,
        **evaluation.to_dict(),
        "guard": evaluated.ranker.guard,
        "chosen": evaluated.ranker.chosen,
        "importance": evaluated.ranker.importance(),
        "seconds": evaluated.seconds,
        "cpu_ms_per_user": evaluation.cpu_ms_per_user if len(evaluation.lists) else None,
        "peak_memory_mib": peak_memory_mib(),
    }


def _moment(microseconds: int) -> str:
    return str(pd.Timestamp(microseconds, unit="us", tz="UTC"))


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    """Table cells as MLflow metric names, such as "ndcg_10 ranker"."""
    values: dict[str, float] = {}
    for row in evaluation.table().to_dict("records"):
        for name in ("ndcg_10", "recall_20", "candidate_recall", "cold_recall_50", "coverage"):
            cell: FloatArray | float = row[name]
            values[f"{name} {row['source']}"] = float(cell)
    for where, found in evaluation.reliability.items():
        for name in ("error", "brier", "log_loss", "base_rate", "mean_p"):
            values[f"calibration {name} {where}"] = getattr(found, name)
    return values


def _log_diagram(evaluation: Evaluation, run: TrackedRun) -> None:
    """The reliability diagram as an artifact of the run; a model's folder holds no pictures."""
    if evaluation.reliability:
        with tempfile.TemporaryDirectory(prefix="recsys-diagram-") as folder:
            diagram(evaluation.reliability).savefig(Path(folder) / "reliability.png", dpi=120)
            run.log_artifacts(Path(folder), "calibration")

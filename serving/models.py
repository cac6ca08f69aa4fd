"""Registered model versions: where verified copies lie, the one to serve, and what its evaluation said."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from features.dataset import Dataset
from recsys.config import Config
from recsys.copies import Copies, Fetched
from recsys.errors import ModelError
from recsys.progress import Reporter
from recsys.registry import Registry
from recsys.revision import code_revision
from serving.door import load_dataset
from training.job import evaluation_summary
from training.moments import cut
from training.pipeline import evaluate_recipe


def copies_of(registry: Registry, config: Config) -> Copies:
    """The verified copies of a registry's versions that lie here."""
    return Copies(registry, config.beside_cache("models"))


def fetched_version(config: Config, wanted: str, reporter: Reporter) -> Fetched:
    """A verified version by number or alias; the last copy of it, and a line that says so, where the registry is down.

    Raises:
        ModelError: there is no such version, or it is damaged.
    """
    fetched = copies_of(Registry(config.mlflow), config).fetch(wanted)
    if fetched.stale:
        reporter.say(f"the registry is down: version {fetched.version.version}, the last one verified")
    return fetched


def evaluation_in(folder: Path) -> dict[str, Any]:
    """The evaluation stored in a model folder."""
    content: dict[str, Any] = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    return content


def evaluation_of(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> dict[str, Any]:
    """The per-source table for the data before `as_of`: stored where this code trained a version on just these, else made."""
    dataset, _ = load_dataset(config, as_of, reporter)
    return _stored_evaluation(config, dataset, reporter) or evaluation_summary(
        evaluate_recipe(dataset, config, reporter.stage), dataset
    )


def _stored_evaluation(config: Config, dataset: Dataset, reporter: Reporter) -> dict[str, Any] | None:
    """That of a version with these data, settings, code and window; the moment may be another: no event lies between."""
    made_by = {"config_sha256": config.fingerprint(), "code_revision": code_revision()}
    wanted = made_by | {"data_sha256": dataset.sha256}
    start = str(cut(dataset, config).report[0])
    registry = Registry(config.mlflow)
    try:
        for version in registry.versions():
            if wanted.items() <= version.tags.items():
                found = evaluation_in(copies_of(registry, config).fetch(version.version).bundle.folder)
                if found["test_start"] == start:
                    reporter.say(f"version {version.version} was trained on these data and settings: its evaluation")
                    return found
    except (ModelError, OSError) as error:
        reporter.say(f"evaluated anew, as no stored evaluation can be read: {error}")
    return None

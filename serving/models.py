"""Registered model versions: where verified copies lie, the one to serve, and what its evaluation said."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from recsys.config import Config
from recsys.progress import Reporter
from recsys.registry import Registry, RegistryDownError
from recsys.revision import code_revision
from serving.door import load_dataset
from training.job import evaluation_summary
from training.model import Model
from training.pipeline import evaluate_recipe


def model_cache(config: Config) -> Path:
    """Where verified copies of model versions lie."""
    return Path(config.text.cache).parent / "models"


def load_model(config: Config, wanted: str, reporter: Reporter) -> Model:
    """A verified version by number or alias; the last copy of it, and a line that says so, where the registry is down.

    Raises:
        ModelError: there is no such version, or it is damaged.
    """
    fetched = Registry(config.mlflow).fetch(wanted, model_cache(config))
    if fetched.stale:
        reporter.say(f"the registry is down: version {fetched.version.version}, the last one verified")
    return Model.load(fetched.bundle.folder)


def evaluation_in(folder: Path) -> dict[str, Any]:
    """The evaluation stored in a model folder."""
    content: dict[str, Any] = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    return content


def evaluation_of(config: Config, as_of: pd.Timestamp, reporter: Reporter) -> dict[str, Any]:
    """The per-source table for the data before `as_of`: stored where this code trained a version on just these, else made."""
    dataset, _ = load_dataset(config, as_of, reporter)
    wanted = {
        "data_sha256": dataset.sha256, "data_until": dataset.as_of.isoformat(),
        "config_sha256": config.fingerprint(), "code_revision": code_revision(),
    }  # fmt: skip
    registry = Registry(config.mlflow)
    try:
        for version in registry.versions():
            if wanted.items() <= version.tags.items():
                reporter.say(f"version {version.version} was trained on these data and settings: its evaluation")
                return evaluation_in(registry.fetch(version.version, model_cache(config)).bundle.folder)
    except RegistryDownError as error:
        reporter.say(f"no stored evaluation is looked for: {error}")
    return evaluation_summary(evaluate_recipe(dataset, config, reporter.stage), dataset)

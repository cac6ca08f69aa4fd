"""Is a verified model fit to score: its parts fit together, and no tower holds NaN, infinity or one single value.

Hashes say that a model is the one registered; they do not say that training ended well.
"""

from dataclasses import dataclass, replace

import numpy as np

from features.dataset import Dataset
from features.snapshot import Snapshot
from features.text import item_texts
from recsys.config import Config
from recsys.copies import Fetched
from recsys.errors import ConfigError, ModelError
from recsys.progress import Reporter
from recsys.types import FloatArray
from recsys.vectors import unit_rows
from training.model import Model

# what readers of weights, tokenizers and JSON raise where a file is whole, but not what a training writes
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ConfigError, ModelError,
)  # fmt: skip
SAME = 1e-5  # of a cosine; float32 noise of collapsed rows stays below
REMEDY = "train again with: recsys train, or go back with: recsys rollback --model"


@dataclass(frozen=True)
class Sound:
    """A model fit to score, over a data set.

    Args:
        model: without calibration where it learned with other settings: `p` would be of other events.
        warning: which settings these are, and of which version; "" where there are none.
    """

    model: Model
    snapshot: Snapshot
    warning: str


def sound_model(fetched: Fetched, dataset: Dataset, config: Config, reporter: Reporter) -> Sound:
    """A verified model over a data set, ready to score.

    Raises:
        ModelError: naming the tower that is broken, or the two parts that do not fit each other.
    """
    where = f"model version {fetched.version.version} (sha256 {fetched.bundle.sha256})"
    try:
        model = Model.load(fetched.bundle.folder)
    except _UNREADABLE as error:
        raise ModelError(f"{where}: cannot be loaded: {error}; {REMEDY}") from error
    check_parts(model, where)
    warning = ""
    if other := _other_settings(model.config, config):
        warning = f"version {fetched.version.version} learned with another {' and '.join(other)}"
        reporter.say(f"{warning}: its lists are off until a version trained since is promoted")
        model = replace(model, ranker=replace(model.ranker, calibration=None))
    with reporter.stage("item vectors") as progress:
        try:
            snapshot = model.snapshot(dataset, config, progress)
        except ModelError as error:
            raise ModelError(f"{where}: {error}; {REMEDY}") from error
    check_finite("text tower: item vectors", snapshot.text_vectors, where)
    check_finite("CF tower: item factors", snapshot.cf.item_factors, where)
    texts = item_texts(dataset.catalogue, model.config.text.fields)
    if len({*texts} - {""}) > 1:  # items of one text share one vector, and those without any have none
        says = np.array([bool(text) for text in texts])
        check_apart("text tower: item vectors", snapshot.text_vectors[says], where)
    check_apart("CF tower: item factors", model.cf.item_factors[model.cf.is_warm], where)
    return Sound(model, snapshot, warning)


def _other_settings(learned: Config, asked: Config) -> list[str]:
    """Settings that change what a model's features mean, and are not what it learned with."""
    settings = {
        "data.event_weights": (learned.data.event_weights, asked.data.event_weights),
        "rules.exclude_seen": (learned.rules.exclude_seen, asked.rules.exclude_seen),
        "rules.seen_by": (set(learned.rules.seen_by), set(asked.rules.seen_by)),
    }
    return [name for name, (before, now) in settings.items() if before != now]


def check_parts(model: Model, where: str) -> None:
    """Refuses towers and ids that were not made together, and weights that are no numbers."""
    cf, n_items = model.cf, len(model.items)
    sizes = {
        "CF factors": len(cf.item_factors), "CF flags": cf.is_warm.size,
        "neighbours": cf.similarity.shape[0], "EASE": cf.ease.shape[0],
    }  # fmt: skip
    for name, size in sizes.items():
        if size != n_items:
            raise ModelError(f"{where}: {name} cover {size} items, its id map {n_items}; {REMEDY}")
    shapes = {"neighbours": cf.similarity.shape, "EASE": cf.ease.shape, "CF flags": (*cf.is_warm.shape, n_items)}
    if cf.item_factors.ndim != 2 or not cf.item_factors.size or set(shapes.values()) != {(n_items, n_items)}:
        raise ModelError(f"{where}: CF factors are of shape {cf.item_factors.shape}, the others of {shapes}; {REMEDY}")
    fusion = model.ranker.fusion
    weights = {
        "CF tower: neighbours": cf.similarity.data,
        "CF tower: EASE": cf.ease.data,
        "ranker: fusion": np.array([*fusion.weights, *fusion.means, *fusion.scales]),
    }
    for name, values in weights.items():
        check_finite(name, values, where)


def check_finite(name: str, values: FloatArray, where: str) -> None:
    """Refuses numbers that are NaN or infinite."""
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise ModelError(f"{where}: {name} hold {n_bad:,} numbers that are NaN or infinite; {REMEDY}")


def check_apart(name: str, rows: FloatArray, where: str) -> None:
    """Refuses rows, (n_items, dim), that all lie on one line: their scores would tell no item from another."""
    units = unit_rows(rows)
    are_same = not rows.any() or (np.abs(units @ units[0]) > 1 - SAME).all()
    if min(rows.shape) > 1 and len(rows) > 2 and are_same:
        raise ModelError(f"{where}: {name} are all the same, so they cannot tell items apart; {REMEDY}")

"""Model versions made again, for a fair comparison: on other data, with another seed, to an earlier moment.

Whatever was trained is kept beside the reports, so that a comparison that was cut off goes on where it was.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.dataset import Dataset
from recsys.config import RULES_AT_ONCE, Config, parse_config
from recsys.copies import Fetched
from recsys.errors import ConfigError
from recsys.progress import Reporter
from recsys.revision import code_revision
from recsys.whole import write_whole
from serving.door import dataset_of
from serving.score import Scorer, Stamp
from training.evaluate import N_SLOTS
from training.job import evaluated_lists, evaluation_summary
from training.model import Model
from training.moments import cut
from training.pipeline import evaluate_recipe

Span = tuple[pd.Timestamp, pd.Timestamp]  # start and end of a window


@dataclass(frozen=True)
class Remade:
    """Lists of a model's recipe on its last window, which nothing it read touches.

    Args:
        table: user_id, item_id, rank, score.
        users: whom it was evaluated on.
        window: that one.
        facts: what was learned from, for the page.
    """

    table: pd.DataFrame
    users: pd.Index
    window: Span
    facts: dict[str, str]


def recipe(fetched: Fetched, config: Config, seed: int | None = None) -> Config:
    """The settings that a version was trained with; where data lie, results go, and rules of lists alone are this run's."""
    path = fetched.bundle.folder / "config.json"
    theirs = parse_config(json.loads(path.read_text()), str(path))
    places = {name: getattr(config.data, name) for name in ("events", "items", "users", "impressions")}
    return theirs.with_rules_of(config).model_copy(
        update={
            "seed": theirs.seed if seed is None else seed,
            "data": theirs.data.model_copy(update=places),
            "text": theirs.text.model_copy(update={"cache": config.text.cache}),
            "serving": config.serving,
            "mlflow": config.mlflow,
            "report": config.report,
        }
    )


def train_again(config: Config, as_of: pd.Timestamp, folder: Path, reporter: Reporter) -> Remade:
    """Trains a recipe on everything before a moment; taken from `folder` where that was done before."""
    dataset = dataset_of(config, as_of)
    key = _key(dataset, config)
    table, about = folder / f"{key}.parquet", folder / f"{key}.json"
    if not about.exists():
        reporter.say(f"training again before {as_of:%Y-%m-%d %H:%M}, seed {config.seed}")
        evaluated = evaluate_recipe(dataset, config, reporter.stage)
        folder.mkdir(parents=True, exist_ok=True)
        evaluated_lists(evaluated, dataset).to_parquet(table, index=False)
        users = dataset.users.values(evaluated.evaluation.per_user["user_pos"].unique())
        # written last, so that it vouches for the table
        write_whole(about, json.dumps({"users": users.tolist(), **evaluation_summary(evaluated, dataset)}))
    told = json.loads(about.read_text())
    users = pd.Index(np.array(told["users"]) if dataset.users.ids.dtype.kind in "iu" else told["users"])
    window = pd.Timestamp(told["test_start"]), pd.Timestamp(told["test_end"])
    return Remade(pd.read_parquet(table), users, window, training_facts(told))


def refuse_other_windows(config: Config, fetched: tuple[Fetched, Fetched], as_of: pd.Timestamp, n_windows: int) -> None:
    """Refuses two recipes that cut different windows, before hours of training; nothing is trained.

    Recipes with the same [data] settings cut the same, so that nothing is read for them.

    Args:
        as_of: nothing at or after it is read.
        n_windows: how many are to be judged, from the last one back.

    Raises:
        ConfigError: what one would be judged by, the other would have learned from.
    """
    one, other = (recipe(each, config) for each in fetched)
    for _ in range(n_windows if one.data != other.data else 0):
        spans = _window(one, as_of), _window(other, as_of)
        refuse_unlike(config, fetched, spans)
        as_of = spans[0][0]


def refuse_unlike(config: Config, fetched: tuple[Fetched, Fetched], spans: tuple[Span, Span]) -> None:
    """Raises ConfigError unless both versions' lists are to be judged on one window."""
    if spans[0] == spans[1]:
        return
    one, other = (
        f"version {each.version.version} ({start} to {end})" for each, (start, end) in zip(fetched, spans, strict=True)
    )
    datas = [recipe(each, config).data.model_dump() for each in fetched]
    apart = [
        f"{name} is {datas[0][name]} and {datas[1][name]}" for name in datas[0] if datas[0][name] != datas[1][name]
    ]
    told = f"; now {', '.join(apart)}" if apart else ""
    raise ConfigError(
        f"{one} cuts another window than {other}, so one would be judged by what the other learned from; "
        f"train both with the same [data] settings{told}"
    )


def _window(config: Config, as_of: pd.Timestamp) -> Span:
    """The window that lists of a recipe are judged on."""
    return cut(dataset_of(config, as_of), config).report


def _key(dataset: Dataset, config: Config) -> str:
    """Names what a training depends on; rules of lists alone too, which make no other recipe but other lists.

    And the moment, where the window ends: days may pass without an event, and the data stay the same.
    """
    read = hashlib.sha256(f"{dataset.sha256} {dataset.as_of}".encode()).hexdigest()
    parts = [read[:12], config.recipe_sha256()[:12], str(config.report.max_users)]
    rules = {name: getattr(config.rules, name) for name in RULES_AT_ONCE if getattr(config.rules, name)}
    rules |= {"blocked": sorted(map(str, rules["blocked"]))} if "blocked" in rules else {}  # a set, in any order
    if rules:
        parts.append(hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:12])
    return "-".join([*parts, code_revision().replace("+", "-")])


def training_facts(evaluation: dict[str, Any]) -> dict[str, str]:
    """What the evaluated lists were learned from; empty for a version made before evaluations said so."""
    names = ("learned_from", "ranker_from", "latest_training_event")
    return {name: evaluation[name] for name in names if name in evaluation}


def score_before(
    fetched: Fetched, config: Config, as_of: pd.Timestamp, users: pd.Index, until: pd.Timestamp, reporter: Reporter
) -> pd.DataFrame:
    """Lists that a version, as it is, would have made at a moment.

    Args:
        as_of: nothing at or after it is read by the model.
        users: whom to score; those without an event before `as_of` get what strangers get.
        until: end of the labels' window: users who come in it are known by name.
    """
    own = recipe(fetched, config)
    dataset = dataset_of(own, until)
    model = Model.load(fetched.bundle.folder)
    with reporter.stage(f"scoring version {fetched.version.version} as of {as_of:%Y-%m-%d}") as progress:
        known = dataset.before(as_of)
        scorer = Scorer.of(
            known,
            model.snapshot(known, own),
            model.ranker,
            Stamp("compare", fetched.version.version, f"{as_of:%Y-%m-%d}"),
        )
        positions = dataset.users.positions(users)
        table = scorer.score(np.sort(positions[positions >= 0]), N_SLOTS, progress)
    return table.to_pandas()

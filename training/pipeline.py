"""Training, top to bottom: three windows of time, two towers, the ranker, the evaluation, the model to serve.

    |------------- towers learn -------------|-- ranker's labels --|-- report --|
    0                                        t1                    t2           as_of

The encoder is fine-tuned once, on events before t1. At t1, t2 and as_of the words and the head of the text tower and the
CF tower are fitted again on all events before that moment and the texts of the items that were there, with the same
settings: nothing a stage reads is later than the labels it is judged by.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.cold_items import with_cold_items
from features.dataset import Dataset
from features.snapshot import Snapshot
from features.text import distinct_texts, item_texts, pooled_vectors
from recsys.cf_tower import CFTower
from recsys.config import Config
from recsys.errors import DataError
from recsys.ranker import Ranker
from recsys.split import Windows
from recsys.text_tower import TextTower
from recsys.types import FloatArray, Progress
from recsys.vectors import unit_rows
from training.evaluate import Evaluation, evaluate
from training.model import Model
from training.moments import Moment, cut
from training.ranker import fit_ranker
from training.recency import learn_recency
from training.sampler import BatchSampler
from training.text import OnMetrics, fit_encoder, fit_head
from training.text_space import TextSpace

Stage = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Evaluated:
    """How a recipe did on the last window, the ranker that it learned before it, and what each step took."""

    evaluation: Evaluation
    windows: Windows
    ranker: Ranker
    seconds: dict[str, float]


@dataclass(frozen=True)
class Trained(Evaluated):
    """What training leaves: the evaluation of a recipe, and the model for the next night."""

    model: Model


def train(
    dataset: Dataset,
    config: Config,
    stage: Stage,
    log: OnMetrics | None = None,
    work: Path | None = None,
) -> Trained:
    """Fits, evaluates and refits on everything before the data set's `as_of`.

    Args:
        stage: opens a named progress bar; yields a callback (done, total).
        log: receives metrics per training step.
        work: folder for the encoder's checkpoint, so that a run cut off goes on where it was.
    """
    judged, config, space = _judged(dataset, config, stage, log, work)
    tonight = Moment.of(dataset, judged.windows, 3)
    with timed(judged.seconds, "towers to serve"):
        space = space.at(tonight.exists, config.seed)
        final = fit_towers(tonight, space, config, stage)
    model = Model(config, space.tower, final.cf, judged.ranker, dataset.items)
    return Trained(**vars(judged), model=model)


def evaluate_recipe(dataset: Dataset, config: Config, stage: Stage) -> Evaluated:
    """What `train` finds on the last window, without the model to serve."""
    return _judged(dataset, config, stage, None, None)[0]


def _judged(
    dataset: Dataset, config: Config, stage: Stage, log: OnMetrics | None, work: Path | None
) -> tuple[Evaluated, Config, TextSpace]:
    """All before the model to serve: the evaluation, the settings with what was learned of recency, the texts."""
    clock: dict[str, float] = {}
    windows = cut(dataset, config)
    refuse_silence(Moment.of(dataset, windows, 2), windows, config)
    early = Moment.of(dataset, windows, 1)
    with timed(clock, "text tower"):
        texts = fit_text(dataset, early, windows, config, stage, log, work)
    space = texts.at(early.exists, config.seed)
    with timed(clock, "recency"), stage("recency") as progress:
        config = recency(early, space, config, progress)
    with timed(clock, "towers for the ranker"):
        snapshot = fit_towers(early, space, config, stage)
    with timed(clock, "ranker"), stage("ranker") as progress:
        ranker = fit_ranker(snapshot, early.targets, config, np.random.default_rng([config.seed, 3]), progress)
    late = Moment.of(dataset, windows, 2)
    with timed(clock, "towers for the report"):
        snapshot = fit_towers(late, texts.at(late.exists, config.seed), config, stage)
    with timed(clock, "evaluation"), stage("evaluation") as progress:
        frozen = unit_rows(texts.frozen)[texts.row]
        evaluation = evaluate(
            snapshot, frozen, ranker, late.targets, dataset.catalogue["title"],
            max_users=config.report.max_users, rng=np.random.default_rng([config.seed, 4]), progress=progress,
        )  # fmt: skip
    return Evaluated(evaluation, windows, ranker, clock), config, texts


def refuse_silence(late: Moment, windows: Windows, config: Config) -> None:
    """Refuses a report's window in which nobody took what could have been recommended: nothing would judge the model.

    Raises:
        DataError: before any time is spent.
    """
    if not late.countable(config).nnz:
        start, end = windows.report
        raise DataError(
            f"data.events: from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC nobody took an item that was new to them, there "
            "before and not withdrawn since, so nothing can judge a model; set rules.exclude_seen = false where people buy the "
            "same again, rules.seen_by where a click or the like says little, or a larger data.window_share"
        )


def fit_text(
    dataset: Dataset,
    early: Moment,
    windows: Windows,
    config: Config,
    stage: Stage,
    log: OnMetrics | None = None,
    work: Path | None = None,
) -> TextSpace:
    """Fine-tunes the encoder on what preceded the first cut and encodes every distinct text before and after."""
    tower = TextTower.from_encoder(config.text.encoder, config.text.max_tokens)
    texts, row = distinct_texts(item_texts(dataset.catalogue, config.text.fields))
    with stage("texts, frozen encoder") as progress:
        frozen = pooled_vectors(tower, texts, config.text.cache, progress)
    checkpoint = work / f"text-{_cut_off(dataset, windows, config)}.safetensors" if work else None
    with stage("text tower") as progress:
        fit_encoder(
            tower, texts, frozen, early.histories.renamed(row, len(texts)), config.text, np.random.default_rng([config.seed, 1]),
            existing=np.unique(row[early.exists]), checkpoint=checkpoint, progress=progress, log=log,
        )  # fmt: skip
    tuned = frozen
    if config.text.epochs:
        with stage("texts, tuned encoder") as progress:
            tuned = pooled_vectors(tower, texts, config.text.cache, progress)
    return TextSpace(tower, texts, row, frozen, tuned)


def _cut_off(dataset: Dataset, windows: Windows, config: Config) -> str:
    """What a fine-tuning that was cut off must share with one that goes on from its checkpoint, as a hash."""
    decides = dataset.sha256, config.fingerprint("text", "data"), config.seed, *windows.starts, windows.end
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:24]


def recency(early: Moment, space: TextSpace, config: Config, progress: Progress | None = None) -> Config:
    """The settings with the half-life and decay that predict the ranker's window best, where they are to be learned.

    Args:
        space: at that moment.
    """
    if not config.cf.learn_recency:
        return config
    rng = np.random.default_rng([config.seed, 5])
    targets = early.countable(config)
    chosen = learn_recency(early.histories, targets, space.views, early.is_eligible, config, rng, progress)
    return config.model_copy(update={"cf": config.cf.model_copy(update=chosen)})


def fit_towers(moment: Moment, space: TextSpace, config: Config, stage: Stage) -> Snapshot:
    """Head and CF tower on all events before a moment, and the snapshot that scores it; the head stays in the space's tower.

    Args:
        space: at that moment.
    """
    name = f"towers before window {moment.window}" if moment.window < 3 else "towers to serve"
    with stage(name) as progress:
        progress(0, 2)
        vectors = fit_vectors(moment, space, config)
        progress(1, 2)
        views = space.views
        cf = CFTower.fit(moment.histories.confidence(config.cf.half_life_days), views, config.cf, config.seed)
        cf = with_cold_items(cf, views[0], space.readings)
        progress(2, 2)
    return moment.snapshot(vectors, cf, config)


def fit_vectors(moment: Moment, space: TextSpace, config: Config) -> FloatArray:
    """Unit vectors of the items by a head fitted on a moment's histories, (n_items, dim); it stays in the space's tower.

    Args:
        space: at that moment.
    """
    rng = np.random.default_rng([config.seed, 2])
    existing = np.unique(space.row[moment.exists])
    histories = moment.histories.renamed(space.row, len(space.texts))
    fit_head(space.tower, space.inputs, BatchSampler(histories, config.text.history_decay, existing), config.text, rng)
    return space.tower.project(space.inputs)[space.row]


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Notes the seconds of a step."""
    began = time.monotonic()
    yield
    clock[name] = round(time.monotonic() - began, 1)

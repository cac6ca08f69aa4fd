"""Training, top to bottom: three windows of time, two towers, the ranker, the evaluation, the model to serve.

    |------------- towers learn -------------|-- ranker's labels --|-- report --|
    0                                        t1                    t2           as_of

The encoder is fine-tuned once, on events before t1. At t1, t2 and as_of the words and the head of the text tower and the
CF tower are fitted again on all events before that moment and the texts of the items that were there, with the same
settings: nothing a stage reads is later than the labels it is judged by.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp

from features.cold_items import with_cold_items
from features.dataset import Dataset
from features.histories import Histories
from features.snapshot import ItemFacts, Snapshot
from features.text import item_texts
from recsys.cf_tower import CFTower
from recsys.config import Config
from recsys.errors import DataError
from recsys.ranker import Ranker
from recsys.split import Windows, split_by_column, split_by_time
from recsys.text_terms import TextTerms
from recsys.text_tower import Progress, TextTower
from recsys.types import BoolArray, FloatArray, IntArray
from recsys.vectors import unit_rows
from training.evaluate import Evaluation, Explain, evaluate
from training.model import Model, distinct_texts, histories_of, pooled_vectors
from training.ranker import fit_ranker
from training.recency import learn_recency
from training.text import BatchSampler, Log, fit_encoder, fit_head

WORDS_LENGTH = 0.5  # of the vectors that EASE is pulled towards; shorter ones predict each other less sharply

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


@dataclass(frozen=True)
class TextSpace:
    """Distinct texts of a catalogue, their pooled vectors before and after fine-tuning, and a tower.

    texts: (n_texts,); row: text of each item, (n_items,); frozen, tuned: (n_texts, width).
    """

    tower: TextTower
    texts: list[str]
    row: IntArray
    frozen: FloatArray
    tuned: FloatArray
    _last: list[tuple[BoolArray, "TextSpace"]] = field(default_factory=list, init=False, repr=False, compare=False)

    def at(self, exists: BoolArray, seed: int) -> "TextSpace":
        """What there was to read at a moment: items to come say nothing. The tower learns the words of the rest.

        Args:
            exists: True where the item is there, (n_items,).
        """
        for known, space in self._last:
            if np.array_equal(known, exists):
                return space
        if exists.all():  # nothing to copy
            texts, row, frozen, tuned = self.texts, self.row, self.frozen, self.tuned
        else:
            texts, row = distinct_texts(
                [self.texts[r] if there else "" for r, there in zip(self.row, exists, strict=True)]
            )
            place = {text: r for r, text in enumerate(self.texts)}
            # whatever vector an empty text is given, it counts for nothing
            rows = np.array([place.get(text, 0) for text in texts], dtype=np.int64)
            frozen, tuned = self.frozen[rows], self.tuned[rows]
        words = [text for text in texts if text]
        self.tower.terms = TextTerms.fit(words, int(np.random.default_rng([seed, 6]).integers(2**31)))
        space = TextSpace(self.tower, texts, row, frozen, tuned)
        self._last[:] = [(exists, space)]
        return space

    @cached_property
    def inputs(self) -> FloatArray:
        """What the head learns from, (n_texts, inputs)."""
        return self.tower.inputs(self.texts, self.tuned)

    @property
    def views(self) -> list[FloatArray]:
        """Vectors of the items without the head, (n_items, dim) each: by the encoder and by words, where there are any."""
        n = self.tower.hidden_size
        parts = self.inputs[:, :n], WORDS_LENGTH * self.inputs[:, n:]
        return [part[self.row] for part in parts if part.shape[1]]

    @cached_property
    def readings(self) -> list[list[str]]:
        """Text of each item as it is, and in word pieces, (n_items,) each."""
        return [[texts[row] for row in self.row] for texts in (self.texts, self.tower.pieces(self.texts))]


def train(
    dataset: Dataset,
    config: Config,
    stage: Stage,
    log: Log | None = None,
    work: Path | None = None,
    explain: Explain | None = None,
) -> Trained:
    """Fits, evaluates and refits on everything before the data set's `as_of`.

    Args:
        stage: opens a named progress bar; yields a callback (done, total).
        log: receives metrics per training step.
        work: folder for the encoder's checkpoint, so that a run cut off goes on where it was.
        explain: says why an item is in an evaluated list.
    """
    judged, config, space = _judged(dataset, config, stage, log, work, explain)
    tower, final = _timed(
        judged.seconds, "towers to serve", lambda: fit_towers(dataset, judged.windows, 3, space, config, stage)
    )
    model = Model(config, tower, final.cf, judged.ranker, dataset.items)
    return Trained(**vars(judged), model=model)


def evaluate_recipe(dataset: Dataset, config: Config, stage: Stage, explain: Explain | None = None) -> Evaluated:
    """What `train` finds on the last window, without the model to serve."""
    return _judged(dataset, config, stage, None, None, explain)[0]


def _judged(
    dataset: Dataset, config: Config, stage: Stage, log: Log | None, work: Path | None, explain: Explain | None
) -> tuple[Evaluated, Config, TextSpace]:
    """All before the model to serve: the evaluation, the settings with what was learned of recency, the texts."""
    clock: dict[str, float] = {}
    windows = cut(dataset, config)
    refuse_silence(dataset, windows, config)
    space = _timed(clock, "text tower", lambda: fit_text(dataset, windows, config, stage, log, work))
    with stage("recency") as progress:
        config = _timed(clock, "recency", lambda: recency(dataset, windows, space, config, progress))
    early = _timed(clock, "towers for the ranker", lambda: fit_towers(dataset, windows, 1, space, config, stage))
    with stage("ranker") as progress:
        rng = np.random.default_rng([config.seed, 3])
        ranker = _timed(
            clock, "ranker", lambda: fit_ranker(early[1], targets_of(dataset, windows, 1), config, rng, progress)
        )
    late = _timed(clock, "towers for the report", lambda: fit_towers(dataset, windows, 2, space, config, stage))
    with stage("evaluation") as progress:
        frozen = unit_rows(space.frozen)[space.row]
        evaluation = _timed(
            clock,
            "evaluation",
            lambda: evaluate(
                late[1], frozen, ranker, targets_of(dataset, windows, 2),
                max_users=config.report.max_users, rng=np.random.default_rng([config.seed, 4]), progress=progress,
                explain=explain,
            ),
        )  # fmt: skip
    return Evaluated(evaluation, windows, ranker, clock), config, space


def cut(dataset: Dataset, config: Config) -> Windows:
    """The three windows, by the split column where there is one, else by time."""
    if dataset.split is not None:
        return split_by_column(dataset.split, dataset.timestamp)
    end = int(dataset.as_of.value // 1000)
    return split_by_time(dataset.timestamp, end, share=config.data.window_share, days=config.data.window_days)


def refuse_silence(dataset: Dataset, windows: Windows, config: Config) -> None:
    """Refuses a report's window in which nobody took what could have been recommended: nothing would judge the model.

    Raises:
        DataError: before any time is spent.
    """
    histories, targets = known_before(dataset, windows, 2), targets_of(dataset, windows, 2)
    if config.rules.exclude_seen:
        targets = histories.new_only(targets)
    if not targets[:, ItemFacts.build(histories, dataset.catalogue).exists & dataset.available].nnz:
        start, end = (pd.Timestamp(moment, unit="us", tz="UTC") for moment in (windows.starts[1], windows.end))
        raise DataError(
            f"data.events: from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC nobody took an item that was new to them, there "
            "before and not withdrawn since, so nothing can judge a model; set rules.exclude_seen = false where people buy the "
            "same again, or a larger data.window_share"
        )


def fit_text(
    dataset: Dataset, windows: Windows, config: Config, stage: Stage, log: Log | None = None, work: Path | None = None
) -> TextSpace:
    """Fine-tunes the encoder on the first window and encodes every distinct text before and after."""
    tower = TextTower.from_encoder(config.text.encoder, config.text.max_tokens)
    texts, row = distinct_texts(item_texts(dataset.catalogue, config.text.fields))
    with stage("texts, frozen encoder") as progress:
        frozen = pooled_vectors(tower, texts, config, progress)
    histories = known_before(dataset, windows, 1)
    existing = np.unique(row[ItemFacts.build(histories, dataset.catalogue).exists])
    checkpoint = work / f"text-{_cut_off(dataset, windows, config)}.safetensors" if work else None
    rng = np.random.default_rng([config.seed, 1])
    with stage("text tower") as progress:
        fit_encoder(
            tower, texts, frozen, histories.renamed(row, len(texts)), config.text, rng,
            existing=existing, checkpoint=checkpoint, progress=progress, log=log,
        )  # fmt: skip
    tuned = frozen
    if config.text.epochs:
        with stage("texts, tuned encoder") as progress:
            tuned = pooled_vectors(tower, texts, config, progress)
    return TextSpace(tower, texts, row, frozen, tuned)


def _cut_off(dataset: Dataset, windows: Windows, config: Config) -> str:
    """What a fine-tuning that was cut off must share with one that goes on from its checkpoint, as a hash."""
    decides = dataset.sha256, config.fingerprint("text", "data"), config.seed, *windows.starts, windows.end
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:24]


def recency(
    dataset: Dataset, windows: Windows, space: TextSpace, config: Config, progress: Progress | None = None
) -> Config:
    """The settings with the half-life and decay that predict the ranker's window best, where they are to be learned."""
    if not config.cf.learn_recency:
        return config
    histories, targets = known_before(dataset, windows, 1), targets_of(dataset, windows, 1)
    if config.rules.exclude_seen:
        targets = histories.new_only(targets)
    exists = ItemFacts.build(histories, dataset.catalogue).exists
    rng = np.random.default_rng([config.seed, 5])
    chosen = learn_recency(
        histories, targets, space.at(exists, config.seed).views, dataset.available, config, rng, progress
    )
    return config.model_copy(update={"cf": config.cf.model_copy(update=chosen)})


def fit_towers(
    dataset: Dataset, windows: Windows, window: int, space: TextSpace, config: Config, stage: Stage
) -> tuple[TextTower, Snapshot]:
    """Head and CF tower on all events before a window, and the snapshot that scores it."""
    histories = known_before(dataset, windows, window)
    with stage(f"towers before window {window}" if window < 3 else "towers to serve") as progress:
        progress(0, 2)
        exists = ItemFacts.build(histories, dataset.catalogue).exists
        space = space.at(exists, config.seed)
        vectors = fit_vectors(space, histories, exists, config)
        progress(1, 2)
        views = space.views
        cf = CFTower.fit(histories.confidence(config.cf.half_life_days), views, config.cf, config.seed)
        cf = with_cold_items(cf, views[0], space.readings)
        progress(2, 2)
    return space.tower, snapshot_at(histories, vectors, cf, dataset, config)


def fit_vectors(space: TextSpace, histories: Histories, exists: BoolArray, config: Config) -> FloatArray:
    """Unit vectors of the items by a head fitted on histories, (n_items, dim); the head stays in the space's tower.

    Args:
        space: at the moment of the histories.
        exists: True where an item is there at that moment, (n_items,).
    """
    rng = np.random.default_rng([config.seed, 2])
    existing = np.unique(space.row[exists])
    sampler = BatchSampler(histories.renamed(space.row, len(space.texts)), config.text.history_decay, existing)
    fit_head(space.tower, space.inputs, sampler, config.text, rng)
    return space.tower.project(space.inputs)[space.row]


def snapshot_at(histories: Histories, vectors: FloatArray, cf: CFTower, dataset: Dataset, config: Config) -> Snapshot:
    """The snapshot of a data set with the given histories."""
    return Snapshot.of(histories, vectors, cf, dataset.catalogue, dataset.available, config)


def known_before(dataset: Dataset, windows: Windows, window: int) -> Histories:
    """Events of the windows before one, as of the moment it begins."""
    known = windows.window < window
    moment = (*windows.starts, windows.end)[window - 1]
    if dataset.split is not None:  # windows overlap in time there: "now" is just after the last known event
        moment = int(dataset.timestamp[known].max()) + 1
    return histories_of(dataset, known, moment)


def targets_of(dataset: Dataset, windows: Windows, window: int) -> sp.csr_matrix:
    """Label weight of what each user took in a window, (n_users, n_items)."""
    keep = windows.window == window
    data = (dataset.weight[keep], (dataset.user_pos[keep], dataset.item_pos[keep]))
    return sp.csr_matrix(data, shape=(len(dataset.users), len(dataset.items)))


T = TypeVar("T")


def _timed(clock: dict[str, float], name: str, work: Callable[[], T]) -> T:
    began = time.monotonic()
    result = work()
    clock[name] = round(time.monotonic() - began, 1)
    return result

"""Judges settings on the ranker's window, and computes again only what a changed setting changes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy.sparse as sp

from features import pairs
from features.cold_items import with_cold_items
from features.dataset import Dataset
from features.snapshot import Snapshot
from recsys.bundle import load_arrays, save_arrays
from recsys.cf_tower import CFTower, als_factors, ease_weights, neighbour_weights, warm_items
from recsys.config import RECENCY, Config
from recsys.errors import DataError
from recsys.ids import IdMap
from recsys.split import Windows
from recsys.types import BoolArray, FloatArray, IntArray
from recsys.whole import replacing
from training.moments import Moment
from training.pipeline import Stage, fit_text, fit_vectors, recency
from training.ranker import Group, can_be_judged, cross_validate, draw_users, pairs_of
from training.text_space import TextSpace

T = TypeVar("T")


@dataclass(frozen=True)
class Quality:
    """What settings came to.

    Args:
        ndcg: NDCG@10 of each user by the kind that would ship, (n_users,).
        chosen: that kind, "trees" or "fusion".
        n_trees: how many trees the folds stopped at.
    """

    ndcg: FloatArray
    chosen: str
    n_trees: int

    @property
    def value(self) -> float:
        """Mean over the users."""
        return float(np.mean(self.ndcg))


class Workbench:
    """The ranker's window of a data set, ready to judge settings.

    The number is the one that the ranker's guard goes by: NDCG@10 over all users with a history (of `ranker.max_users`) who
    took something in the ranker's window that could have been recommended, each scored by trees and by a fusion that
    learned from other users (three folds), of the kind that would ship. What a user took beyond their
    candidates counts as missed, so settings with other candidates compare.

    Args:
        dataset: without the report window; see `without_report`.
        windows: of that data set.
        space: its texts, encoded. The encoder is not trained again for other settings.
        config: whose settings are varied.
    """

    def __init__(self, dataset: Dataset, windows: Windows, space: TextSpace, config: Config) -> None:
        self._early = Moment.of(dataset, windows, 1)
        self._space = space.at(self._early.exists, config.seed)
        self._views = self._space.views
        self._kept: dict[str, OrderedDict[Hashable, object]] = {}
        self.made: dict[str, int] = {}

    def judge(self, config: Config) -> Quality:
        """What settings come to; the same settings always come to the same.

        Raises:
            DataError: too few users took one of their candidates to judge anything.
        """
        config = self._as_trained(config)
        group, fold, n_relevant, is_stranger = self._pairs(config)
        columns = tuple(pairs.NAMES.index(name) for name in pairs.FUSED)
        tried = cross_validate(group, fold, n_relevant, config, columns).among(~is_stranger)
        return Quality(tried.ndcg[tried.chosen], tried.chosen, tried.n_trees)

    def _as_trained(self, config: Config) -> Config:
        """The settings with the recency that training would learn beside them, where it is to be learned."""
        cf = config.cf
        if not cf.learn_recency:
            return config
        key = (cf.neighbours, cf.ease_items, cf.ease_regularization, cf.ease_text_share)
        chosen = self._once(
            "recency",
            key,
            64,
            lambda: recency(self._early, self._space, config).cf.model_dump(include=set(RECENCY)),
        )
        return config.model_copy(update={"cf": cf.model_copy(update=chosen)})

    def _pairs(self, config: Config) -> tuple[Group, IntArray, IntArray, BoolArray]:
        """Candidates with features, the fold of each user, how much each user took, and who has no history."""

        def make() -> tuple[Group, IntArray, IntArray, BoolArray]:
            snapshot = self._snapshot(config)
            targets = snapshot.countable(self._early.targets)
            users, fold = draw_users(targets, config, np.random.default_rng([config.seed, 3]))
            group = pairs_of(snapshot, users, targets)
            if not can_be_judged(group, fold):
                raise DataError(
                    f"events: {len(users)} users took something new in the ranker's window, too few of it among their "
                    "candidates to judge settings; widen data.window_share, or bring more data"
                )
            return group, fold, np.diff(targets[users].indptr), self._early.histories.n_events[users] == 0

        # the largest thing here by far, so only the last one is kept; dials reach it through these three alone
        return self._once("pairs", (config.text, config.cf, config.candidates), 1, make)

    def _snapshot(self, config: Config) -> Snapshot:
        text = config.text
        key = (text.temperature, text.history_decay, text.head_steps)
        vectors = self._once("text", key, 4, lambda: fit_vectors(self._early, self._space, config))
        return self._early.snapshot(vectors, self._cf(config), config)

    def _cf(self, config: Config) -> CFTower:
        cf, days = config.cf, config.cf.half_life_days
        confidence = self._once("confidence", (days,), 2, lambda: self._early.histories.confidence(days))
        key: Hashable = (days, cf.factors, cf.regularization, cf.alpha, cf.iterations)
        factors = self._once("als", key, 4, lambda: als_factors(confidence, cf, config.seed))
        similarity = self._once("item-item", (days, cf.neighbours), 4, lambda: neighbour_weights(confidence, cf))
        key = (days, cf.neighbours, cf.ease_items, cf.ease_regularization, cf.ease_text_share)
        ease: sp.csr_matrix = self._once("ease", key, 4, lambda: ease_weights(confidence, self._views, cf))
        tower = CFTower(cf, factors, similarity, ease, warm_items(confidence))
        return with_cold_items(tower, self._views[0], self._space.readings)

    def _once(self, stage: str, key: Hashable, most: int, make: Callable[[], T]) -> T:
        """What a stage makes of some settings; made when it is not among the last few kept."""
        kept = self._kept.setdefault(stage, OrderedDict())
        if key not in kept:
            while len(kept) >= most:  # before the new one is made: two at a time may not fit
                kept.popitem(last=False)
            kept[key] = make()
            self.made[stage] = self.made.get(stage, 0) + 1
        kept.move_to_end(key)
        found: T = kept[key]  # type: ignore[assignment]
        return found


def without_report(dataset: Dataset, windows: Windows) -> tuple[Dataset, Windows]:
    """A data set and its windows without any event of the report window, nor users who have no other."""
    keep = windows.window < 2
    records, hidden = dataset.events()[keep], dataset.hidden
    users = np.unique(records["user"])
    is_early = hidden["split"] < 2 if dataset.has_split else hidden["timestamp"] < windows.starts[1]
    hidden = hidden[is_early & np.isin(hidden["user"], users)]
    records = np.concatenate([records, hidden])
    records["user"] = np.searchsorted(users, records["user"])
    known = dataset.with_events(records, IdMap(dataset.users.ids[users]))
    return known, replace(windows, window=windows.window[keep])


def encoded(dataset: Dataset, windows: Windows, config: Config, stage: Stage, folder: Path) -> TextSpace:
    """The texts of a data set, by an encoder fine-tuned once; a folder keeps what it made of them."""
    path, early = folder / "tuned.safetensors", Moment.of(dataset, windows, 1)
    if config.text.epochs and path.exists():
        frozen = config.model_copy(update={"text": config.text.model_copy(update={"epochs": 0.0})})
        return replace(fit_text(dataset, early, windows, frozen, stage), tuned=load_arrays(path)["tuned"])
    space = fit_text(dataset, early, windows, config, stage, work=folder)
    if config.text.epochs:
        with replacing(path) as unfinished:
            save_arrays(unfinished, tuned=space.tuned)
    return space

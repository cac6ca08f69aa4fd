"""The same job for notebooks: frames in, frames out, outside ids always."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from features import pairs
from features.candidates import gather
from features.caps import catalogue_caps
from features.cold_order import score_pairs
from features.dataset import Dataset
from features.histories import Histories
from features.snapshot import Snapshot
from recsys.config import Config, load_config, parse_config
from recsys.errors import ConfigError, DataError, shown
from recsys.ids import IdMap, fits
from recsys.moments import moment_of
from recsys.progress import Reporter
from recsys.schema import lists_frame
from recsys.types import IntArray
from serving.door import dataset_of
from serving.models import fetched_version
from serving.score import Scorer, Stamp
from serving.soundness import sound_model
from training.evaluate import Evaluation
from training.model import Model
from training.pipeline import train

Ids = Iterable[object] | str | int | np.integer[Any]


class Recommender:
    """A model that is fitted on a data set, or loaded from the registry, and recommends from it.

    Args:
        config: settings; of the data section only how windows are cut, since the data come as a Dataset.
        reporter: where progress goes.

    Raises:
        ConfigError: `config` is none.
    """

    def __init__(self, config: Config | None = None, reporter: Reporter | None = None) -> None:
        if not isinstance(config, Config | None):
            raise ConfigError(
                f"a Config is needed, not {type(config).__name__}; Recommender.from_config(path) reads a recsys.toml, "
                "recsys.config.parse_config makes one of a dictionary"
            )
        data = {"events": "frame", "items": "frame", "event_weights": {"event": 1.0}}
        self.config = config or parse_config({"data": data})
        self.reporter = reporter or Reporter()
        self.evaluation: Evaluation | None = None
        self._model: Model | None = None
        self._dataset: Dataset | None = None
        self._snapshot: Snapshot | None = None
        self._version = "fitted"

    def __repr__(self) -> str:
        return f"Recommender({self._version}, {self._dataset})" if self._model else "Recommender(not fitted)"

    @classmethod
    def from_config(cls, path: str | Path) -> "Recommender":
        """With the settings of a recsys.toml."""
        return cls(load_config(path))

    @classmethod
    def load(cls, path: str | Path, version: str = "champion", as_of: str | date | None = None) -> "Recommender":
        """A registered version over the tables of a recsys.toml, ready to recommend: what tonight's lists are made with.

        Args:
            version: a number, or champion, challenger or previous.
            as_of: only what came before it is known; a date, a moment or ISO 8601 text, now by default.

        Raises:
            ConfigError: the config is wrong, or `as_of` is no moment.
            DataError: the tables cannot be read.
            ModelError: there is no such version, or it is damaged.
        """
        made = cls.from_config(path)
        moment = pd.Timestamp.now(tz="UTC") if as_of is None else moment_of(as_of, "as_of")
        fetched = fetched_version(made.config, version, made.reporter)
        made._dataset = dataset_of(made.config, moment)
        sound = sound_model(fetched, made._dataset, made.config, made.reporter)
        made._model, made._snapshot, made._version = sound.model, sound.snapshot, fetched.version.version
        return made

    def fit(self, dataset: Dataset) -> "Recommender":
        """Trains both towers and the ranker; `evaluation` then holds the per-source table.

        Raises:
            ConfigError: what is given is no data set, it lacks the `data.split_column` or a type that the rules name, or users
                hide items by what is one of its labels.
            DataError: a rule counts categories or brands, and no item has one.
        """
        if not isinstance(dataset, Dataset):
            raise ConfigError(
                f"fit takes a Dataset, not {type(dataset).__name__}; make one with Dataset.from_frames(events, items)"
            )
        if self.config.data.split_column and not dataset.has_split:
            named = shown(self.config.data.split_column)
            raise ConfigError(
                f"data.split_column names {named}, and the data set has no split; give from_frames(..., split_column={named}), or "
                "take it out of the settings to cut by time"
            )
        for rule in ("seen_by", "hidden_by"):
            if strange := [name for name in getattr(self.config.rules, rule) if name not in dataset.types]:
                raise ConfigError(
                    f"rules.{rule}: no event of the data set is of type {', '.join(map(shown, strange))}; name one of "
                    f"{', '.join(map(shown, dataset.types))}"
                )
        catalogue_caps(self.config.rules, dataset.catalogue)
        dataset = dataset.under(self.config.rules)
        if liked := np.unique(dataset.hidden["type"][dataset.hidden["weight"] > 0]).tolist():
            raise ConfigError(
                f"rules.hidden_by: {shown(dataset.types[liked[0]])} is a label of the data set, so it speaks for an item; give "
                "from_frames(..., event_weights=) without it"
            )
        trained = train(dataset, self.config, self.reporter.stage)
        self.evaluation, self._model, self._dataset = trained.evaluation, trained.model, dataset
        self._snapshot, self._version = trained.model.snapshot(dataset, self.config), "fitted"
        return self

    @property
    def model(self) -> Model:
        """The fitted model: `text`, `cf` and `ranker`."""
        return self._fitted()[0]

    def recommend(self, users: Ids, k: int = 10, items: Ids | None = None) -> pd.DataFrame:
        """Recommendations in the contract's columns, by user, then rank; strangers get the popular list, even of what they hid.

        Args:
            users: ids, text or integers; one may stand alone.
            k: items per user, at least 1.
            items: ids of the only ones that may be listed, such as those of a campaign, then without `p`; by default all that
                are available.

        Raises:
            ConfigError: k is below 1.
            DataError: an id is missing, neither text nor an integer, or one of `items` is not in the items table.
        """
        model, dataset, snapshot = self._fitted()
        k, (positions, ids) = _length(k), _with_strangers(dataset.users, _ids(users, "user"))
        if items is not None:
            asked = np.zeros(len(dataset.items), dtype=bool)
            asked[_item_positions(dataset, _ids(items, "item"))] = True
            snapshot = replace(snapshot, is_eligible=snapshot.is_eligible & asked)
        stamp = Stamp("notebook", self._version, f"{dataset.as_of:%Y-%m-%d}")
        scorer = Scorer(snapshot, model.ranker, IdMap(ids), dataset.items, dataset.catalogue["title"], stamp)
        table = lists_frame((scorer if items is None else scorer.without_p()).score(positions, k))
        return table.sort_values(["user_id", "rank"], kind="stable").reset_index(drop=True)

    def similar(self, items: Ids, k: int = 10) -> pd.DataFrame:
        """The k nearest items by text of each item: item_id, similar_item_id, score; none of an item without text, and none
        that may not be recommended.

        Args:
            items: ids, text or integers; one may stand alone.
            k: items per item, at least 1.

        Raises:
            ConfigError: k is below 1.
            DataError: an id is not in the items table, is missing, or neither text nor an integer.
        """
        _, dataset, snapshot = self._fitted()
        k, frames = _length(k), [pd.DataFrame({"item_id": [], "similar_item_id": [], "score": []})]
        for pos in _item_positions(dataset, _ids(items, "item")):
            scores = snapshot.text_vectors @ snapshot.text_vectors[pos]
            order = np.argsort(-scores, kind="stable")
            may = snapshot.is_eligible & snapshot.has_text & snapshot.has_text[pos]
            best = order[(order != pos) & may[order]][:k]
            columns = {
                "item_id": dataset.items.ids[pos],
                "similar_item_id": dataset.items.values(best),
                "score": scores[best],
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames[1:] or frames, ignore_index=True)

    def explain(self, user: object, item: object) -> pd.DataFrame:
        """The row of an item in a user's list, with source and reason; the list is taken as long as it gets.

        Raises:
            DataError: no list of the user holds the item, or one of the two is no id.
        """
        dataset = self._fitted()[1]
        (pos,) = _item_positions(dataset, _ids([item], "item"))
        table = self.recommend([user], k=len(dataset.items))
        row = table[table["item_id"] == dataset.items.ids[pos]]  # which may be the number that a text was asked by
        if row.empty:
            why = self._why_never(user, pos)
            raise DataError(f"item {shown(item)} is in no list of user {shown(user)}, however long: {why}")
        return row.reset_index(drop=True)

    def contributions(self, user: object, item: object) -> pd.DataFrame:
        """Why an item stands where it does in a user's list: feature, value, contribution, largest first.

        A contribution is what the feature adds to the score, less what it adds to those of the user's candidates on the mean.
        All add up to the score: the row `(mean candidate)` is the score of these on the mean, with what no feature says, such
        as the place of an item that nobody took yet among such items. A popular item that only fills a list up has none.

        Raises:
            DataError: the item is no candidate of the user, or one of the two is no id.
        """
        model, dataset, snapshot = self._fitted()
        some, (pos,) = self._history(user), _item_positions(dataset, _ids([item], "item"))
        candidates = gather(snapshot, some)
        row = np.flatnonzero(candidates.item_pos == pos)
        if not len(row):
            raise DataError(f"item {shown(item)} is no candidate of user {shown(user)}; explain(user, item) says why")
        table = pairs.build(snapshot, some, candidates)
        of_all = model.ranker.contributions(table.features, candidates.indptr)
        added = of_all[row[0]] - of_all.mean(axis=0)
        added[-1] = score_pairs(model.ranker, candidates, table)[row[0]] - added[:-1].sum()
        frame = pd.DataFrame(
            {
                "feature": [*pairs.NAMES, "(mean candidate)"],
                "value": [*table.features[row[0]].tolist(), np.nan],
                "contribution": added,
            }
        )
        order = np.argsort(-np.abs(added), kind="stable")
        return frame.iloc[order[added[order] != 0]].reset_index(drop=True)

    def _history(self, user: object) -> Histories:
        _, dataset, snapshot = self._fitted()
        return snapshot.histories.of_users(_with_strangers(dataset.users, _ids([user], "user"))[0])

    def _why_never(self, user: object, item_pos: int) -> str:
        """What keeps an item out of a user's lists, in words."""
        snapshot, some = self._fitted()[2], self._history(user)
        if not snapshot.is_eligible[item_pos]:
            return "it may not be recommended (available, created_at, rules.blocked)"
        if some.hidden and item_pos in some.hidden.item_pos:
            return "they hid it (rules.hidden_by)"
        if snapshot.config.rules.exclude_seen and item_pos in some.seen[1]:
            return "they acted on it before (rules.exclude_seen)"
        what = "it never sold and is like nothing they took"
        return f"{what}, or is one too many of its kind (rules)" if snapshot.caps else what

    def _fitted(self) -> tuple[Model, Dataset, Snapshot]:
        if self._model is None or self._dataset is None or self._snapshot is None:
            raise ConfigError(
                'the recommender is not fitted yet; call fit(dataset), or Recommender.load("recsys.toml")'
            )
        return self._model, self._dataset, self._snapshot


def _ids(given: object, name: str) -> list[object]:
    """Ids as a list; one alone is one, though a text could be read letter by letter. Where some are text, all are.

    >>> _ids("100001", "user"), _ids([7, "x"], "user")
    (['100001'], ['7', 'x'])
    """
    if isinstance(given, pd.DataFrame):
        raise DataError(f"{name} ids: a frame is no list of ids; give its column, such as frame['{name}_id']")
    if isinstance(given, np.ndarray):
        given = given.ravel()  # one id in an array of no dimension is iterable by name only
    ids = list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else [given]
    for place, one in enumerate(ids):
        if isinstance(one, bool) or not isinstance(one, str | Integral):
            raise DataError(
                f"{name} ids: {shown(one)} at place {place} is neither text nor an integer; leave it out, or give the id "
                f"as the {'events' if name == 'user' else 'items'} table has it"
            )
    return list(map(str, ids)) if any(isinstance(one, str) for one in ids) else ids


def _item_positions(dataset: Dataset, items: list[object]) -> IntArray:
    """Positions of items, (n,), all of which are in the items table."""
    positions = dataset.items.positions(items)
    if (positions < 0).any():
        unknown = items[int(positions.argmin())]
        raise DataError(f"item {shown(unknown)} is not in the items table; {dataset.items.look}")
    return positions


def _length(k: int) -> int:
    """A length of lists that can be asked for."""
    if not isinstance(k, Integral) or k < 1:
        raise ConfigError(f"k: {shown(k)} is no length of a list; ask for 1 item or more, such as k=10")
    return int(k)


def _with_strangers(known: IdMap, users: list[object]) -> tuple[IntArray, pd.Index]:
    """Positions of users, ascending, and the ids that they are positions of: those of strangers follow the known ones."""
    asked = pd.Index(users).unique().sort_values()
    positions = known.positions(asked)
    is_stranger = positions < 0
    positions[is_stranger] = len(known) + np.arange(is_stranger.sum())  # a position of no history
    return np.sort(positions), _appended(known.ids, asked[is_stranger])


def _appended(known: pd.Index, strangers: pd.Index) -> pd.Index:
    """Both, in the type of the known ones; as text where a stranger does not fit it."""
    if not len(strangers):
        return known
    if is_integer_dtype(known.dtype) and is_integer_dtype(strangers.dtype) and fits(strangers, known).all():
        return known.append(strangers.astype(known.dtype))
    return known.astype("str").append(strangers.astype("str"))

"""A cut in time: what was known then, and what users took until the next one."""

from dataclasses import dataclass
from functools import cached_property

import scipy.sparse as sp

from features.dataset import Dataset
from features.histories import Histories
from features.snapshot import ItemFacts, Snapshot, countable
from recsys.cf_tower import CFTower
from recsys.config import Config
from recsys.split import Windows, split_by_column, split_by_time
from recsys.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Moment:
    """The moment when a window begins.

    Args:
        window: which: 1 the ranker's, 2 the report's; 3 is tonight, after which nothing is known.
        histories: all events before it.
        facts: of the items then.
        available: False where an item is withdrawn by now, (n_items,).
        targets: label weight of what each user took in the window, (n_users, n_items).
    """

    window: int
    histories: Histories
    facts: ItemFacts
    available: BoolArray
    targets: sp.csr_matrix

    @classmethod
    def of(cls, dataset: Dataset, windows: Windows, window: int) -> "Moment":
        """The moment when a window of a data set begins."""
        histories = _known_before(dataset, windows, window)
        facts = ItemFacts.build(histories, dataset.catalogue)
        return cls(window, histories, facts, dataset.available, _targets(dataset, windows, window))

    @property
    def exists(self) -> BoolArray:
        """True where an item was there, (n_items,)."""
        return self.facts.exists

    @cached_property
    def is_eligible(self) -> BoolArray:
        """True where an item was there and may be recommended, (n_items,)."""
        return self.available & self.exists

    def countable(self, config: Config) -> sp.csr_matrix:
        """The targets that could have been recommended, (n_users, n_items)."""
        return countable(self.targets, self.histories, self.is_eligible, config.rules.exclude_seen)

    def snapshot(self, text_vectors: FloatArray, cf: CFTower, config: Config) -> Snapshot:
        """The world then, as towers that know nothing later see it."""
        return Snapshot(self.histories, text_vectors, cf, self.facts, self.is_eligible, config)


def cut(dataset: Dataset, config: Config) -> Windows:
    """The three windows, by the split column where there is one, else by time."""
    if dataset.split is not None:
        return split_by_column(dataset.split, dataset.timestamp)
    end = int(dataset.as_of.value // 1000)
    return split_by_time(dataset.timestamp, end, share=config.data.window_share, days=config.data.window_days)


def _known_before(dataset: Dataset, windows: Windows, window: int) -> Histories:
    """Events of the windows before one, as of the moment it begins."""
    known = windows.window < window
    moment = (*windows.starts, windows.end)[window - 1]
    if dataset.split is not None:  # windows overlap in time there: "now" is just after the last known event
        moment = int(dataset.timestamp[known].max()) + 1
    return Histories.of(dataset, known, moment, dataset.hidden[dataset.hidden["split"] < window])  # -1 without a column


def _targets(dataset: Dataset, windows: Windows, window: int) -> sp.csr_matrix:
    keep = windows.window == window
    data = (dataset.weight[keep], (dataset.user_pos[keep], dataset.item_pos[keep]))
    return sp.csr_matrix(data, shape=(len(dataset.users), len(dataset.items)))

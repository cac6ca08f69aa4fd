"""All that scores users as of a moment: histories, item vectors, CF tower, item facts, what may be served."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp

from features.caps import Cap, caps_of, codes_of
from features.histories import Histories, Past
from recsys.cf_tower import CFTower
from recsys.config import Config
from recsys.nearest import DIRECTIONS, DenseSearch
from recsys.split import DAY_US
from recsys.types import BoolArray, FloatArray, IntArray
from recsys.vectors import leading_directions, unit_rows

NEW_DAYS = 30.0  # younger items are put forward as new ones are
SHOPS_EVENTS = 5  # that an item's share of repeats is drawn towards the shop's by


@dataclass(frozen=True)
class ItemFacts:
    """Facts about items that do not depend on who looks, as of a moment; all (n_items,).

    rebought: share of the item's events that repeat one of the same user; age_days: since created or first sold, nan
    where neither is known; price: nan where unknown; category, brand: codes, -1 where unknown.
    """

    counts_1d: FloatArray
    counts_7d: FloatArray
    counts_30d: FloatArray
    counts: FloatArray
    rebought: FloatArray
    age_days: FloatArray
    price: FloatArray
    category: IntArray
    brand: IntArray

    @cached_property
    def log_counts(self) -> dict[str, FloatArray]:
        """log(1 + summed label weight) of the last 1, 7 and 30 days and of all time, made once for all users."""
        counts = {"1d": self.counts_1d, "7d": self.counts_7d, "30d": self.counts_30d, "all": self.counts}
        return {name: np.log1p(values) for name, values in counts.items()}

    @cached_property
    def trend(self) -> FloatArray:
        """The last 7 days against as many of the last 30, as a difference of logs."""
        return np.log1p(self.counts_7d) - np.log1p(self.counts_30d * 7 / 30)

    @cached_property
    def exists(self) -> BoolArray:
        """False where an item was created at or after the moment, (n_items,); an item without a time exists."""
        return ~(self.age_days <= 0)

    @cached_property
    def columns(self) -> dict[str, FloatArray]:
        """What the ranker sees of an item, by feature."""
        counts = {f"count_{name}": values for name, values in self.log_counts.items()}
        return counts | {
            "trend": self.trend, "age_days": self.age_days, "rebought": self.rebought, "price": self.price,
        }  # fmt: skip

    @cached_property
    def table(self) -> FloatArray:
        """The same side by side, (n_items, n_columns) float32: one look at the memory per pair, not one per feature."""
        return np.stack(list(self.columns.values()), axis=1).astype(np.float32)

    @classmethod
    def build(cls, histories: Past, catalogue: pd.DataFrame) -> "ItemFacts":
        """Counts from the histories, the rest from the catalogue."""
        first_seen = np.full(histories.n_items, np.iinfo(np.int64).max)
        spans = (1, 7, 30, None)  # days
        counts = np.zeros((len(spans), histories.n_items))
        n_events, n_buyers = np.zeros((2, histories.n_items))
        carried: IntArray = np.zeros(0, dtype=np.int64)
        for block in histories.blocks():
            n_events += np.bincount(block.item_pos, minlength=histories.n_items)
            bought, carried = _first_buys(block, carried)
            n_buyers += np.bincount(bought, minlength=histories.n_items)
            np.minimum.at(first_seen, block.item_pos, block.timestamp)
            counts += [block.popularity(days) for days in spans]
        age_days = np.where(first_seen < histories.as_of, (histories.as_of - first_seen) / DAY_US, np.nan)
        if "created_at" in catalogue:
            created = pd.to_datetime(catalogue["created_at"], utc=True)
            as_of = pd.Timestamp(histories.as_of, unit="us", tz="UTC")
            stated = ((as_of - created).dt.total_seconds() / 86_400).to_numpy(dtype=float, na_value=np.nan)
            age_days = np.fmax(stated, age_days)  # what sold was there, whatever an import wrote later
        price = pd.to_numeric(catalogue["price"], errors="coerce") if "price" in catalogue else None
        nothing = np.full(histories.n_items, np.nan)
        return cls(
            counts[0],
            counts[1],
            counts[2],
            counts[3],
            _rebought(n_events, n_buyers),
            age_days,
            nothing if price is None else price.to_numpy(dtype=float, na_value=np.nan),
            codes_of(catalogue, "category"),
            codes_of(catalogue, "brand"),
        )


def _first_buys(block: Histories, carried: IntArray) -> tuple[IntArray, IntArray]:
    """Item of each (user, item) that no earlier block has, and the pairs of the last user, who may go on in the next."""
    if not len(block.user_pos):  # of events that do not count
        return np.zeros(0, dtype=np.int64), carried
    pairs = np.unique(block.user_pos.astype(np.int64) * block.n_items + block.item_pos)
    new = np.setdiff1d(pairs, carried, assume_unique=True)
    known = np.concatenate([carried, new])
    return new % block.n_items, known[known // block.n_items == block.user_pos[-1]]


def _rebought(n_events: FloatArray, n_buyers: FloatArray) -> FloatArray:
    """Share of each item's events that repeat one of the same user, (n_items,).

    A few events say little: as many of the whole shop's as `SHOPS_EVENTS` are added to them.
    """
    shops = 1 - n_buyers.sum() / max(1.0, n_events.sum())
    return np.asarray((n_events - n_buyers + SHOPS_EVENTS * shops) / (n_events + SHOPS_EVENTS))


@dataclass(frozen=True)
class Snapshot:
    """The world as of a moment.

    Args:
        histories: events before it.
        text_vectors: (n_items, dim) unit rows; zeros where an item has no text.
        cf: the CF tower over the same items.
        facts: of the items.
        is_eligible: True where an item may be recommended at all, (n_items,); none that is created later.
        config: for decays and rules.
    """

    histories: Past
    text_vectors: FloatArray
    cf: CFTower
    facts: ItemFacts
    is_eligible: BoolArray
    config: Config

    def text_users(self, some: Histories) -> FloatArray:
        """User vectors of the text tower, (n_users, dim) unit rows; zero for an empty history."""
        decayed = some.decayed(self.config.text.history_decay)
        return unit_rows(decayed @ self.text_vectors)

    def cf_users(self, some: Histories) -> FloatArray:
        """User factors of the CF tower, (n_users, factors)."""
        return self.cf.fold_in(self.cf_confidence(some))

    def cf_confidence(self, some: Histories) -> sp.csr_matrix:
        """Confidence that CF learns from and folds in by, (n_users, n_items)."""
        return some.confidence(self.config.cf.half_life_days)

    def countable(self, targets: sp.csr_matrix) -> sp.csr_matrix:
        """Targets that could have been recommended, (n_users, n_items); see `countable`."""
        return countable(targets, self.histories, self.is_eligible, self.config.rules.exclude_seen)

    @cached_property
    def days(self) -> float:
        """How long ago the first event of all was, at least 1."""
        return max(1.0, (self.histories.as_of - self.histories.oldest) / DAY_US)

    @cached_property
    def text_basis(self) -> FloatArray:
        """The directions in which texts differ most, (dim, directions) float32: enough for candidates and features."""
        return leading_directions(self.text_vectors, DIRECTIONS)

    @cached_property
    def short_text_vectors(self) -> FloatArray:
        """The text vectors on these, (n_items, directions) float32."""
        return self.text_vectors @ self.text_basis

    @cached_property
    def has_text(self) -> BoolArray:
        """False where an item says nothing: it is near no other, (n_items,)."""
        return np.asarray(self.text_vectors.any(axis=1))

    @cached_property
    def has_factors(self) -> BoolArray:
        """False where nobody took an item and it borrowed nothing, (n_items,)."""
        return np.asarray(self.cf.item_factors.any(axis=1))

    @cached_property
    def text_search(self) -> DenseSearch:
        """Over the text vectors."""
        return DenseSearch.over(self.text_vectors, self.text_basis)

    @cached_property
    def cf_search(self) -> DenseSearch:
        """Over the CF factors."""
        return DenseSearch.over(self.cf.item_factors)

    @cached_property
    def is_new(self) -> BoolArray:
        """Eligible items nobody took yet or that are younger than 30 days, (n_items,)."""
        return self.is_eligible & ((self.facts.counts == 0) | (self.facts.age_days < NEW_DAYS))

    @property
    def caps(self) -> tuple[Cap, ...]:
        """What the rules allow of one kind in a list."""
        return caps_of(self.config.rules, {"category": self.facts.category, "brand": self.facts.brand})

    @cached_property
    def popular(self) -> dict[str, IntArray]:
        """Eligible items, most event weight first, ties by position: of the last 7 days, of 30, of all time."""
        facts = self.facts
        masses = {"recent": facts.counts_7d, "popular": facts.counts_30d, "all_time": facts.counts}
        return {name: _by_mass(mass * self.is_eligible) for name, mass in masses.items()}


def countable(targets: sp.csr_matrix, histories: Past, is_eligible: BoolArray, exclude_seen: bool) -> sp.csr_matrix:
    """Targets that could have been recommended, (n_users, n_items).

    Args:
        targets: label weight of what each user took, (n_users, n_items).
        histories: before it.
        is_eligible: items that existed and are not withdrawn, (n_items,).
        exclude_seen: only what was new to the user counts.
    """
    targets = histories.loaded().listable(targets, exclude_seen)
    targets = sp.csr_matrix(targets @ sp.diags(is_eligible.astype(np.float32)))
    targets.eliminate_zeros()
    return targets


def _by_mass(mass: FloatArray) -> IntArray:
    """Positions of the items with any mass, most first."""
    order = np.argsort(-mass, kind="stable")
    return order[mass[order] > 0]

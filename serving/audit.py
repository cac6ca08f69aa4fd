"""Gates between a finished scoring and its publication: each names its number, its limit and the remedy."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import AuditConfig
from recsys.errors import AuditError
from recsys.metrics import gini
from recsys.types import BoolArray, FloatArray, IntArray

COLUMNS = ("user_id", "item_id", "rank", "score", "p", "source")  # what an audit reads of a table
FALLBACKS = ("recent", "popular")
MAX_SHORT_SHARE = 0.05  # a user who acted on nearly all items has a reason for a short list; many users have not
MAX_FLAT_SHARE = 0.5  # the few candidates of a cold user can tie; half of all lists cannot
SLACK = 1e-6  # float32 scores that were sorted in float64

DEFECT = "this is a defect: report it"

Outcome = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Gate:
    """One check: its number, the limit it is held against, its outcome and what to do."""

    name: str
    number: float
    limit: str
    outcome: Outcome
    remedy: str


@dataclass(frozen=True)
class AuditContext:
    """What the lists are judged by.

    Args:
        eligible_users: how many users should have a list.
        k: items a list should have.
        catalogue: (n_items,) unique ids that may be recommended: known, available, not blocked.
        last_release: `user_id` and `item_id` of what is served, or None: then nothing is compared.
        model_age_days: from the end of the model's data to the moment of scoring; below 0 it saw later events.
        data_age_hours: from the newest event to the moment of scoring.
        config: the limits.
    """

    eligible_users: int
    k: int
    catalogue: pa.Array
    last_release: pa.Table | None
    model_age_days: float
    data_age_hours: float
    config: AuditConfig


@dataclass(frozen=True)
class AuditResult:
    """All gates of one audit."""

    gates: tuple[Gate, ...]

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Gates that refuse to publish."""
        return tuple(g for g in self.gates if g.outcome == "fail")

    @property
    def warnings(self) -> tuple[Gate, ...]:
        """Gates worth a word."""
        return tuple(g for g in self.gates if g.outcome == "warn")

    @property
    def is_refused(self) -> bool:
        """Whether any gate failed."""
        return bool(self.failed)

    def raise_if_refused(self) -> None:
        """Raises AuditError with every failed gate: number, limit, remedy."""
        if self.failed:
            lines = [f"  {g.name}: {g.number:g}, limit {g.limit}; {g.remedy}" for g in self.failed]
            raise AuditError(
                "audit refused to publish; what was served stays, the lists are in quarantine\n" + "\n".join(lines)
            )


def audit(table: pa.Table, context: AuditContext) -> AuditResult:
    """Runs all gates on a recommendation table; a number that is nan fails its gate.

    Args:
        table: has `COLUMNS`; sorted by user, then rank, or the gate of ranks fails.
        context: what to judge by.
    """
    lists = _Lists(table)
    limits = context.config
    gates = [*_shape(lists, context), *_scores(lists), *_exposure(lists, context)]
    if context.last_release is not None and context.last_release.num_rows:
        gates += _against_last(lists, context.last_release, limits)
    return AuditResult((*gates, *_ages(context)))


@dataclass(frozen=True)
class _Lists:
    """A recommendation table as arrays over its rows; ids become codes, so that strings are touched once."""

    table: pa.Table

    @cached_property
    def users(self) -> pa.DictionaryArray:
        return self.table["user_id"].combine_chunks().dictionary_encode()

    @cached_property
    def items(self) -> pa.DictionaryArray:
        return self.table["item_id"].combine_chunks().dictionary_encode()

    @property
    def n_rows(self) -> int:
        return self.table.num_rows

    @property
    def n_users(self) -> int:
        return len(self.users.dictionary)

    @cached_property
    def is_complete(self) -> BoolArray:
        """(n_rows,) True where both ids are there; the arrays below hold only such rows."""
        both = pc.and_(pc.is_valid(self.table["user_id"]), pc.is_valid(self.table["item_id"]))
        return np.asarray(both.to_numpy(), dtype=np.bool_)

    @cached_property
    def user(self) -> IntArray:
        return _codes(self.users)[self.is_complete]

    @cached_property
    def item(self) -> IntArray:
        return _codes(self.items)[self.is_complete]

    @cached_property
    def sizes(self) -> IntArray:
        """(n_users,) rows of each user's list."""
        return np.bincount(self.user, minlength=self.n_users)

    @cached_property
    def pairs(self) -> IntArray:
        """One number per (user, item)."""
        return self.user * max(1, len(self.items.dictionary)) + self.item

    @cached_property
    def starts(self) -> BoolArray:
        """True where a row's user differs from the row before."""
        return np.diff(self.user, prepend=-1) != 0

    def column(self, name: str) -> FloatArray:
        """A numeric column as float64; nan where null."""
        return np.asarray(self.table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)[self.is_complete]

    def column_is_valid(self, name: str) -> BoolArray:
        """True where a column is not null: NaN is a value, and a broken one."""
        return np.asarray(pc.is_valid(self.table[name]).to_numpy(), dtype=np.bool_)[self.is_complete]


def _shape(lists: _Lists, context: AuditContext) -> list[Gate]:
    limit = context.config.min_users_covered
    wanted = min(context.k, len(context.catalogue))
    nulls = lists.n_rows - int(lists.is_complete.sum())
    covered = np.count_nonzero(lists.sizes) / max(1, context.eligible_users)
    short = float((lists.sizes < wanted).mean()) if lists.n_users else 1.0
    longest = int(lists.sizes.max(initial=0))
    repeated = len(lists.pairs) - len(np.unique(lists.pairs))
    row = np.arange(len(lists.user))
    first_row = np.maximum.accumulate(np.where(lists.starts, row, 0))
    misranked = int((lists.column("rank") != row - first_row + 1).sum())
    return [
        _gate("rows without an id", nulls, "0", nulls == 0, DEFECT),
        _gate("users covered", covered, f">= {limit}", covered >= limit, "see who has no list, then score again"),
        _gate(
            "short lists, share", short, f"<= {MAX_SHORT_SHARE}", short <= MAX_SHORT_SHARE,
            "raise candidates.per_source or lower serving.k",
        ),
        _gate("longest list", longest, f"<= {context.k}", longest <= context.k, DEFECT),
        _gate("item twice in a list", repeated, "0", repeated == 0, DEFECT),
        _gate("ranks out of order", misranked, "0", misranked == 0, DEFECT),
    ]  # fmt: skip


def _scores(lists: _Lists) -> list[Gate]:
    scores = lists.column("score")
    infinite = int((~np.isfinite(scores)).sum())
    rising = int((~lists.starts[1:] & (scores[1:] > scores[:-1] + SLACK)).sum())
    p, is_said = lists.column("p"), lists.column_is_valid("p")
    impossible = int((is_said & ~((p >= 0) & (p <= 1))).sum())
    unruly = int((~lists.starts[1:] & (p[1:] > p[:-1] + SLACK)).sum())
    spread = float(np.ptp(scores)) if len(scores) and not infinite else 0.0
    moves = np.bincount(lists.user[1:], ~lists.starts[1:] & (scores[1:] != scores[:-1]), lists.n_users)
    flat = float((moves[lists.sizes > 1] == 0).mean()) if (lists.sizes > 1).any() else 0.0
    return [
        _gate("scores not finite", infinite, "0", infinite == 0, "a tower gave NaN or infinity: train again"),
        _gate("scores out of order", rising, "0", rising == 0, DEFECT),
        _gate("p outside 0 to 1", impossible, "0", impossible == 0, "the calibration is broken: train again"),
        _gate("p out of order", unruly, "0", unruly == 0, DEFECT),
        _gate("spread of scores", spread, "> 0", spread > 0, "all scores are equal: train again"),
        _gate(
            "lists with one score, share", flat, f"<= {MAX_FLAT_SHARE}", flat <= MAX_FLAT_SHARE,
            "scores do not tell items apart: train again",
        ),
    ]  # fmt: skip


def _exposure(lists: _Lists, context: AuditContext) -> list[Gate]:
    limits = context.config
    positions = _found_in(lists.items.dictionary, context.catalogue)[lists.item]
    forbidden = int((positions < 0).sum())
    counts = np.bincount(positions[positions >= 0], minlength=len(context.catalogue))
    coverage = np.count_nonzero(counts) / max(1, len(counts))
    inequality = gini(counts)
    is_own = ~pc.is_in(lists.table["source"], pa.array(FALLBACKS, lists.table["source"].type)).to_numpy()
    n_own = np.bincount(lists.user, is_own[lists.is_complete], lists.n_users)
    fallback = float((n_own[lists.sizes > 0] == 0).mean()) if len(lists.user) else 1.0
    return [
        _gate("items that may not be shown", forbidden, "0", forbidden == 0,
              "check available in the items table, score again"),
        _gate("catalogue coverage", coverage, f">= {limits.min_coverage}", coverage >= limits.min_coverage,
              "few items are shown: look at the lists, or lower min_coverage"),
        _gate("exposure Gini", inequality, f"<= {limits.max_gini}", inequality <= limits.max_gini,
              "a few items fill all lists: look at them, or raise max_gini"),
        _gate("users served a popularity list, share", fallback, f"<= {limits.max_fallback_share}",
              fallback <= limits.max_fallback_share,
              "many users have no history: check the events, or raise max_fallback_share"),
    ]  # fmt: skip


def _against_last(lists: _Lists, last: pa.Table, limits: AuditConfig) -> list[Gate]:
    change = abs(lists.n_rows / last.num_rows - 1)
    overlap = _overlap(lists, last)
    outcome: Outcome = "pass" if overlap <= limits.max_overlap else "warn"
    remedy = "nothing moved: are the events new?"
    if not overlap >= limits.min_overlap:
        outcome, remedy = "fail", "lists or user ids changed wholly: compare both days, or lower min_overlap"
    return [
        _gate("rows against last release", change, f"<= {limits.max_rows_change}", change <= limits.max_rows_change,
              "compare the tables of both days, or raise max_rows_change"),
        Gate("overlap with last release", overlap, f"{limits.min_overlap} to {limits.max_overlap} (above warns)",
             outcome, remedy),
    ]  # fmt: skip


def _overlap(lists: _Lists, last: pa.Table) -> float:
    """Mean share of a list that was in the same user's last list, over users who had one; 0 when no user had."""
    user = _found_in(last["user_id"].combine_chunks(), lists.users.dictionary)
    item = _found_in(last["item_id"].combine_chunks(), lists.items.dictionary)
    had_list = np.bincount(user[user >= 0], minlength=lists.n_users) > 0
    compared = had_list & (lists.sizes > 0)
    if not compared.any():
        return 0.0
    before = (user * max(1, len(lists.items.dictionary)) + item)[(user >= 0) & (item >= 0)]
    kept = np.bincount(lists.user, np.isin(lists.pairs, before), lists.n_users)
    return float((kept[compared] / lists.sizes[compared]).mean())


def _ages(context: AuditContext) -> list[Gate]:
    limits = context.config
    is_ahead = context.model_age_days < 0
    model = "it saw events after this moment: for a fair backfill train with --as-of" if is_ahead else "recsys train"
    return [
        _aged("model age, days", context.model_age_days, limits.model_warn_days, limits.model_max_days, model),
        _aged("newest event, hours", context.data_age_hours, limits.data_warn_hours, limits.data_max_hours,
              "check the events export"),
    ]  # fmt: skip


def _aged(name: str, age: float, warn: float, limit: float, remedy: str) -> Gate:
    outcome: Outcome = "pass" if 0 <= age <= warn else "warn"
    if not age <= limit:
        outcome = "fail"
    return Gate(name, round(age, 2), f"{warn:g} warns, {limit:g} fails", outcome, remedy)


def _gate(name: str, number: float, limit: str, is_fine: bool | np.bool_, remedy: str) -> Gate:
    return Gate(name, float(number), limit, "pass" if is_fine else "fail", remedy)


def _codes(encoded: pa.DictionaryArray) -> IntArray:
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _found_in(values: pa.Array, known: pa.Array) -> IntArray:
    """Position of each value in `known`, (n,) int64; -1 where it is not there. Ids of two types meet as text."""
    if values.type != known.type:
        values, known = values.cast(pa.large_string()), known.cast(pa.large_string())
    return pc.index_in(values, value_set=known).fill_null(-1).to_numpy().astype(np.int64)

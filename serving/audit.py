"""Gates between a finished scoring and its publication: each names its number, its limit and the remedy."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.caps import Cap
from recsys.config import AuditConfig
from recsys.errors import AuditError
from recsys.metrics import gini
from recsys.types import BoolArray, FloatArray, IntArray

COLUMNS = ("user_id", "item_id", "rank", "score", "p", "source")  # what an audit reads of a table
FALLBACKS = ("recent", "popular")
MAX_SHORT_SHARE = 0.05  # a user who acted on nearly all items has a reason for a short list; many users have not
MAX_FLAT_SHARE = 0.5  # the few candidates of a cold user can tie; half of all lists cannot
SLACK = 1e-6  # float32 scores that were sorted in float64

_MODEL, _NEWEST = "model age, days", "newest event, hours"
_OLD_DATA = "check the events export; for a moment of the past give --as-of"
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

    def sentence(self) -> str:
        """One line of an error."""
        return f"  {self.name}: {self.number:g}, limit {self.limit}; {self.remedy}"


@dataclass(frozen=True)
class LastRelease:
    """What is served, to compare with.

    Args:
        n_rows: of all its lists.
        lists_of: `user_id` and `item_id` of at least the users among some ids, (n_users,).
    """

    n_rows: int
    lists_of: Callable[[pa.Array], pa.Table]


@dataclass(frozen=True)
class AuditContext:
    """What the lists are judged by.

    Args:
        eligible_users: how many users should have a list.
        k: items a list may have.
        length: items that a list should have, since nearly every user's can; None: k.
        caps: how many items of one kind a list may hold, over `catalogue`.
        catalogue: (n_items,) unique ids that may be recommended: known, available, not blocked.
        last_release: what is served, or None: then nothing is compared.
        model_age_days: from the end of the model's data to the moment of scoring; below 0 it saw later events.
        data_age_hours: from the newest event to the moment of scoring.
        config: the limits.
    """

    eligible_users: int
    k: int
    catalogue: pa.Array
    last_release: LastRelease | None
    model_age_days: float
    data_age_hours: float
    config: AuditConfig
    length: int | None = None
    caps: tuple[Cap, ...] = ()


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
    def growing(self) -> str:
        """What it warns of that grows with each night until one is refused; "" for nothing."""
        return "; ".join(
            gate.sentence().strip() for gate in self.warnings if gate.name in (_MODEL, _NEWEST) and gate.number >= 0
        )

    @property
    def is_refused(self) -> bool:
        """Whether any gate failed."""
        return bool(self.failed)

    def raise_if_refused(self) -> None:
        """Raises AuditError with every failed gate: number, limit, remedy."""
        if self.failed:
            raise AuditError(
                "audit refused to publish; what was served stays, the lists are in quarantine\n"
                + "\n".join(gate.sentence() for gate in self.failed)
            )


def audit(parts: Iterable[pa.Table], context: AuditContext) -> AuditResult:
    """Runs all gates on a recommendation table; a number that is nan fails its gate.

    Args:
        parts: of the table, one in memory at a time; each has `COLUMNS`, a user's list lies in one of them, and
            they are sorted by user, then rank, or the gate of ranks fails.
        context: what to judge by.
    """
    seen = _Seen(context)
    for part in parts:
        seen.add(_Lists(part))
    limits = context.config
    gates = [*_shape(seen, context), *_scores(seen), *_exposure(seen, limits)]
    if context.last_release is not None and context.last_release.n_rows:
        gates += _against_last(seen, context.last_release, limits)
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


@dataclass
class _Seen:
    """What the gates are held against, summed over the parts.

    counts: by gate, or by what its share is of; exposure: lists that each item of the catalogue is in, (n_items,).
    """

    context: AuditContext
    counts: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    least: float = np.inf
    most: float = -np.inf
    overlap: float = 0.0
    last_user: object = None

    def __post_init__(self) -> None:
        self.exposure = np.zeros(len(self.context.catalogue), dtype=np.int64)

    def share(self, part: str, whole: str, otherwise: float) -> float:
        """One count over another."""
        return self.counts[part] / self.counts[whole] if self.counts[whole] else otherwise

    def add(self, lists: _Lists) -> None:
        """One more part."""
        self._add_shape(lists)
        self._add_scores(lists)
        self._add_exposure(lists)
        if self.context.last_release is not None and self.context.last_release.n_rows and lists.n_users:
            last = self.context.last_release.lists_of(lists.users.dictionary)
            overlap, n_compared = _overlap(lists, last)
            self.overlap += overlap
            self.counts["compared"] += n_compared

    def _add_shape(self, lists: _Lists) -> None:
        wanted = self.context.k if self.context.length is None else self.context.length
        row = np.arange(len(lists.user))
        first_row = np.maximum.accumulate(np.where(lists.starts, row, 0))
        self.counts["rows"] += lists.n_rows
        self.counts["rows without an id"] += lists.n_rows - int(lists.is_complete.sum())
        self.counts["ids of users"] += lists.n_users
        self.counts["listed users"] += int(np.count_nonzero(lists.sizes))
        self.counts["short lists"] += int((lists.sizes < wanted).sum())
        self.longest = max(self.longest, int(lists.sizes.max(initial=0)))
        self.counts["item twice in a list"] += len(lists.pairs) - len(np.unique(lists.pairs))
        self.counts["ranks out of order"] += int((lists.column("rank") != row - first_row + 1).sum())
        if lists.n_users:
            users = pc.min_max(lists.users.dictionary).as_py()
            self.counts["ranks out of order"] += self.last_user is not None and not self.last_user < users["min"]
            self.last_user = users["max"]

    def _add_scores(self, lists: _Lists) -> None:
        scores, is_next = lists.column("score"), ~lists.starts[1:]
        p, is_said = lists.column("p"), lists.column_is_valid("p")
        self.counts["scores not finite"] += int((~np.isfinite(scores)).sum())
        self.counts["scores out of order"] += int((is_next & (scores[1:] > scores[:-1] + SLACK)).sum())
        self.counts["p outside 0 to 1"] += int((is_said & ~((p >= 0) & (p <= 1))).sum())
        self.counts["p out of order"] += int((is_next & (p[1:] > p[:-1] + SLACK)).sum())
        self.least, self.most = min(self.least, scores.min(initial=np.inf)), max(self.most, scores.max(initial=-np.inf))
        moves = np.bincount(lists.user[1:], is_next & (scores[1:] != scores[:-1]), lists.n_users)
        self.counts["lists of several"] += int((lists.sizes > 1).sum())
        self.counts["flat lists"] += int(((moves == 0) & (lists.sizes > 1)).sum())

    def _add_exposure(self, lists: _Lists) -> None:
        positions = _found_in(lists.items.dictionary, self.context.catalogue)[lists.item]
        self.counts["items that may not be shown"] += int((positions < 0).sum())
        self.exposure += np.bincount(positions[positions >= 0], minlength=len(self.exposure))
        for cap in self.context.caps:
            self.counts["too many of a kind in a list"] += _n_beyond(lists.user, cap.of(positions))
        is_own = ~pc.is_in(lists.table["source"], pa.array(FALLBACKS, lists.table["source"].type)).to_numpy()
        n_own = np.bincount(lists.user, is_own[lists.is_complete], lists.n_users)
        self.counts["fallback lists"] += int(((n_own == 0) & (lists.sizes > 0)).sum())


def _shape(seen: _Seen, context: AuditContext) -> list[Gate]:
    limit = context.config.min_users_covered
    covered = seen.counts["listed users"] / max(1, context.eligible_users)
    short = seen.share("short lists", "ids of users", 1.0)
    return [
        _none(seen, "rows without an id", DEFECT),
        _gate("users covered", covered, f">= {limit}", covered >= limit, "see who has no list, then score again"),
        _gate(
            "short lists, share", short, f"<= {MAX_SHORT_SHARE}", short <= MAX_SHORT_SHARE,
            "lower serving.k, or train with a larger candidates.per_source",
        ),
        _gate("longest list", seen.longest, f"<= {context.k}", seen.longest <= context.k, DEFECT),
        _none(seen, "item twice in a list", DEFECT),
        _none(seen, "ranks out of order", DEFECT),
    ]  # fmt: skip


def _scores(seen: _Seen) -> list[Gate]:
    is_whole = seen.counts["rows"] and not seen.counts["scores not finite"] and seen.most >= seen.least
    spread = seen.most - seen.least if is_whole else 0.0
    flat = seen.share("flat lists", "lists of several", 0.0)
    return [
        _none(seen, "scores not finite", "a tower gave NaN or infinity: train again"),
        _none(seen, "scores out of order", DEFECT),
        _none(seen, "p outside 0 to 1", "the calibration is broken: train again"),
        _none(seen, "p out of order", DEFECT),
        _gate("spread of scores", spread, "> 0", spread > 0, "all scores are equal: train again"),
        _gate(
            "lists with one score, share", flat, f"<= {MAX_FLAT_SHARE}", flat <= MAX_FLAT_SHARE,
            "scores do not tell items apart: train again",
        ),
    ]  # fmt: skip


def _exposure(seen: _Seen, limits: AuditConfig) -> list[Gate]:
    coverage = np.count_nonzero(seen.exposure) / max(1, len(seen.exposure))
    inequality = gini(seen.exposure)
    fallback = seen.share("fallback lists", "listed users", 1.0)
    return [
        _none(seen, "items that may not be shown", "check available in the items table and rules.blocked, score again"),
        _none(seen, "too many of a kind in a list", DEFECT),
        _gate("catalogue coverage", coverage, f">= {limits.min_coverage}", coverage >= limits.min_coverage,
              "few items are shown: look at the lists, or lower min_coverage"),
        _gate("exposure Gini", inequality, f"<= {limits.max_gini}", inequality <= limits.max_gini,
              "a few items fill all lists: look at them, or raise max_gini"),
        _gate("users served a popularity list, share", fallback, f"<= {limits.max_fallback_share}",
              fallback <= limits.max_fallback_share,
              "many lists hold popular items alone, for want of history or, where lists are short, by choice: check the events, "
              "or raise max_fallback_share"),
    ]  # fmt: skip


def _n_beyond(user: IntArray, cap: Cap) -> int:
    """Rows beyond what a cap allows in a list; its codes are of the rows, (n_rows,)."""
    counted = cap.codes >= 0
    pairs = user[counted] * (cap.codes.max(initial=0) + 1) + cap.codes[counted]
    n_rows = np.unique(pairs, return_counts=True)[1]
    return int(np.maximum(n_rows - cap.most, 0).sum())


def _against_last(seen: _Seen, last: LastRelease, limits: AuditConfig) -> list[Gate]:
    change = abs(seen.counts["rows"] / last.n_rows - 1)
    overlap = seen.overlap / seen.counts["compared"] if seen.counts["compared"] else 0.0
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


def _overlap(lists: _Lists, last: pa.Table) -> tuple[float, int]:
    """Sum over users who had a list of the share of their list that was in it, and how many they are."""
    user = _found_in(last["user_id"].combine_chunks(), lists.users.dictionary)
    item = _found_in(last["item_id"].combine_chunks(), lists.items.dictionary)
    had_list = np.bincount(user[user >= 0], minlength=lists.n_users) > 0
    compared = had_list & (lists.sizes > 0)
    before = (user * max(1, len(lists.items.dictionary)) + item)[(user >= 0) & (item >= 0)]
    kept = np.bincount(lists.user, np.isin(lists.pairs, before), lists.n_users)
    return float((kept[compared] / lists.sizes[compared]).sum()), int(compared.sum())


def _ages(context: AuditContext) -> list[Gate]:
    limits = context.config
    is_ahead = context.model_age_days < 0
    model = (
        "it saw events after this moment: for a fair backfill train with --as-of"
        if is_ahead
        else "recsys train, then recsys promote challenger"
    )
    return [
        _aged(_MODEL, context.model_age_days, limits.model_warn_days, limits.model_max_days, model),
        _aged(_NEWEST, context.data_age_hours, limits.data_warn_hours, limits.data_max_hours, _OLD_DATA),
    ]


def refuse_old_data(hours: float, limits: AuditConfig) -> None:
    """What `audit` would say of the age of the newest event, before a training is spent on it.

    Raises:
        AuditError: no lists from such data would be published.
    """
    gate = _aged(_NEWEST, hours, limits.data_warn_hours, limits.data_max_hours, _OLD_DATA)
    if gate.outcome == "fail":
        raise AuditError(
            "no lists from these data may be published, so none were made and nothing was trained; what was served stays\n"
            + gate.sentence()
        )


def _aged(name: str, age: float, warn: float, limit: float, remedy: str) -> Gate:
    outcome: Outcome = "pass" if 0 <= age <= warn else "warn"
    if not age <= limit:
        outcome = "fail"
    return Gate(name, round(age, 2), f"{warn:g} warns, {limit:g} fails", outcome, remedy)


def _none(seen: _Seen, name: str, remedy: str) -> Gate:
    """A gate for what must not happen once."""
    return _gate(name, seen.counts[name], "0", not seen.counts[name], remedy)


def _gate(name: str, number: float, limit: str, is_fine: bool | np.bool_, remedy: str) -> Gate:
    return Gate(name, float(number), limit, "pass" if is_fine else "fail", remedy)


def _codes(encoded: pa.DictionaryArray) -> IntArray:
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _found_in(values: pa.Array, known: pa.Array) -> IntArray:
    """Position of each value in `known`, (n,) int64; -1 where it is not there. Ids of two types meet as text."""
    if values.type != known.type:
        values, known = values.cast(pa.large_string()), known.cast(pa.large_string())
    return pc.index_in(values, value_set=known).fill_null(-1).to_numpy().astype(np.int64)

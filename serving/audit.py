"""Gates between a finished scoring and its publication: each names its number, its limit and the remedy."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import AuditConfig
from recsys.errors import AuditError
from recsys.metrics import gini

FALLBACKS = ("recent", "popular")


@dataclass(frozen=True)
class Gate:
    """One check: its number, the limit it is held against, its outcome (pass, warn, fail) and what to do."""

    name: str
    number: float
    limit: str
    outcome: str
    remedy: str


@dataclass(frozen=True)
class AuditContext:
    """What the lists are judged by.

    catalogue: ids that may be recommended; last_release: the table served before, or None; config: limits.
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
    """Runs all gates on a recommendation table."""
    limits = context.config
    frame = pd.DataFrame({name: table[name].to_pandas() for name in ("user_id", "item_id", "rank", "score", "source")})
    gates = [*_shape(frame, context), *_content(frame, table, context), *_exposure(frame, context)]
    if context.last_release is not None and context.last_release.num_rows:
        gates += _against_last(frame, context.last_release, limits)
    gates.append(
        _aged(
            "model age, days",
            context.model_age_days,
            limits.model_warn_days,
            limits.model_max_days,
            "train: recsys train",
        )
    )
    gates.append(
        _aged(
            "newest event, hours",
            context.data_age_hours,
            limits.data_warn_hours,
            limits.data_max_hours,
            "check the events export",
        )
    )
    return AuditResult(tuple(gates))


def _shape(frame: pd.DataFrame, context: AuditContext) -> list[Gate]:
    sizes = frame.groupby("user_id", sort=False).size()
    wanted = min(context.k, len(context.catalogue))
    covered = float((sizes > 0).sum() / max(1, context.eligible_users))
    short = float((sizes < wanted).mean()) if len(sizes) else 1.0
    repeated = int(frame.duplicated(["user_id", "item_id"]).sum())
    limit = context.config.min_users_covered
    return [
        _gate(
            "users covered", covered, f">= {limit}", covered >= limit, "see which users have no list, then score again"
        ),
        _gate("short lists, share", short, "<= 0.05", short <= 0.05, "raise candidates.per_source or lower serving.k"),
        _gate("item twice in a list", repeated, "0", repeated == 0, "this is a defect: report it"),
    ]


def _content(frame: pd.DataFrame, table: pa.Table, context: AuditContext) -> list[Gate]:
    scores = frame["score"].to_numpy()
    infinite = int((~np.isfinite(scores)).sum())
    same_user = frame["user_id"].to_numpy()[1:] == frame["user_id"].to_numpy()[:-1]
    rising = int((same_user & (np.diff(scores) > 1e-6)).sum())
    spread = float(np.ptp(scores)) if len(scores) and not infinite else 0.0
    allowed = pc.is_in(table["item_id"], value_set=context.catalogue)
    unknown = int(table.num_rows - (pc.sum(allowed).as_py() or 0))
    return [
        _gate("scores not finite", infinite, "0", infinite == 0, "a tower gave NaN: train again"),
        _gate("scores out of order", rising, "0", rising == 0, "this is a defect: report it"),
        _gate("spread of scores", spread, "> 0", spread > 0, "all scores are equal: train again"),
        _gate(
            "items that may not be shown", unknown, "0", unknown == 0, "check available in the items table, score again"
        ),
    ]


def _exposure(frame: pd.DataFrame, context: AuditContext) -> list[Gate]:
    limits = context.config
    counts = frame["item_id"].value_counts().to_numpy()
    n_items = max(1, len(context.catalogue))
    coverage = len(counts) / n_items
    inequality = gini(np.concatenate([counts, np.zeros(max(0, n_items - len(counts)))]))
    fallback = frame["source"].isin(FALLBACKS).groupby(frame["user_id"], sort=False).all().mean() if len(frame) else 1.0
    return [
        _gate("catalogue coverage", coverage, f">= {limits.min_coverage}", coverage >= limits.min_coverage, "look at the lists"),
        _gate("exposure Gini", inequality, f"<= {limits.max_gini}", inequality <= limits.max_gini, "a few items fill all lists: look at them"),
        _gate(
            "users served a popularity list, share", float(fallback), f"<= {limits.max_fallback_share}",
            fallback <= limits.max_fallback_share, "many users have no history: check the events, or raise max_fallback_share",
        ),
    ]  # fmt: skip


def _against_last(frame: pd.DataFrame, last: pa.Table, limits: AuditConfig) -> list[Gate]:
    change = abs(len(frame) / last.num_rows - 1)
    before = pd.DataFrame({"user_id": last["user_id"].to_pandas(), "item_id": last["item_id"].to_pandas()})
    sizes = frame.groupby("user_id").size()
    common = sizes.index.intersection(pd.Index(before["user_id"].unique()))
    gates = [
        _gate("rows against last release", change, f"<= {limits.max_rows_change}", change <= limits.max_rows_change,
              "compare the tables of both days, or raise max_rows_change"),
    ]  # fmt: skip
    if len(common):
        shared = frame.merge(before, on=["user_id", "item_id"]).groupby("user_id").size()
        overlap = float((shared.reindex(common, fill_value=0) / sizes[common]).mean())
        fits = limits.min_overlap <= overlap
        gates.append(
            _gate(
                "overlap with last release",
                overlap,
                f">= {limits.min_overlap}",
                fits,
                "lists changed wholly: compare both days",
            )
        )
        if overlap > limits.max_overlap:
            gates.append(
                Gate(
                    "overlap with last release",
                    overlap,
                    f"<= {limits.max_overlap}",
                    "warn",
                    "nothing moved: are the events new?",
                )
            )
    return gates


def _gate(name: str, number: float, limit: str, is_fine: bool | np.bool_, remedy: str) -> Gate:
    return Gate(name, float(number), limit, "pass" if is_fine else "fail", remedy)


def _aged(name: str, age: float, warn: float, limit: float, remedy: str) -> Gate:
    outcome = "fail" if age > limit else "warn" if age > warn else "pass"
    return Gate(name, round(age, 2), f"{warn:g} warns, {limit:g} fails", outcome, remedy)

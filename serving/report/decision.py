"""The decision rule: four steps, the first that applies decides. Thresholds come from the config alone."""

import math
from dataclasses import dataclass
from typing import Literal

from recsys.config import ReportConfig, Verdict
from serving.report.statistics import Effect, users_needed

EXIT_CODES: dict[Verdict, int] = {"PROMOTE": 0, "HOLD": 10, "REJECT": 20, "INVALID": 30}


@dataclass(frozen=True)
class Check:
    """One validity check: "pass", "fail" (the comparison is INVALID) or "unknown" (it could not be made)."""

    name: str
    status: Literal["pass", "fail", "unknown"]
    detail: str


@dataclass(frozen=True)
class Judged:
    """A metric or segment with a margin; `low`..`high` is the interval of B - A, turned so that more is better.

    Args:
        can_fall: False where A is at the floor already, as with a share of 0.
    """

    name: str
    low: float
    high: float
    margin: float
    can_fall: bool = True

    @property
    def is_harmed(self) -> bool:
        """The interval lies wholly below minus the margin."""
        return self.high < -self.margin

    @property
    def is_non_inferior(self) -> bool:
        """The interval lies wholly above minus the margin."""
        return not self.can_fall or self.low >= -self.margin


@dataclass(frozen=True)
class Number:
    """One of the three numbers behind a verdict; `value` is nan where it does not exist."""

    label: str
    value: float
    style: Literal["plain", "percent", "count", "p"] = "plain"


@dataclass(frozen=True)
class Decision:
    """A verdict, the rule (1 to 4) that fired, why, and the three numbers behind it.

    Args:
        unmet: conditions of a promotion that do not hold, one sentence each; empty unless the verdict is HOLD.
    """

    verdict: Verdict
    rule: int
    reason: str
    numbers: tuple[Number, Number, Number]
    unmet: tuple[str, ...] = ()


def decide(
    checks: tuple[Check, ...],
    primary: Effect,
    p_holm: float,
    success: tuple[Judged, ...],
    guardrails: tuple[Judged, ...],
    protected: tuple[Judged, ...],
    config: ReportConfig,
    objections: tuple[str, ...] = (),
) -> Decision:
    """Applies the rule; `objections` are what seeds, windows and the counterfactual hold against a promotion.

    1. A validity check fails: INVALID.
    2. A success or guardrail metric or a protected segment has its interval wholly below minus its margin: REJECT.
    3. On the primary metric Holm p is below alpha, the interval lies above 0 and the lift is at least the
       smallest one worth it, every guardrail is non-inferior, and nothing else objects: PROMOTE.
    4. Otherwise: HOLD.
    """
    failed = [check for check in checks if check.status == "fail"]
    if failed:
        return _invalid(checks, failed)
    harmed = [judged for judged in (*success, *guardrails, *protected) if judged.is_harmed]
    if harmed:
        return _reject(harmed, primary)
    # From nothing to something is a lift without bound.
    lift = math.inf if primary.a == 0 and primary.diff > 0 else primary.relative
    missing = []
    if not p_holm < config.alpha:
        missing.append(f"the Holm p-value of the primary metric is not below {config.alpha:g}")
    if not primary.low > 0:
        missing.append("its interval reaches down to 0 or below")
    if not lift >= config.min_lift:
        missing.append(f"its lift is under {config.min_lift:.1%}")
    missing += [
        f"{judged.name} is not shown to stay within its margin" for judged in guardrails if not judged.is_non_inferior
    ]
    missing += objections
    numbers = (Number("Lift of the primary metric", primary.relative, "percent"), Number("Holm p", p_holm, "p"))
    if not missing:
        reason = (
            "The primary metric is better by more than chance and more than the smallest lift; every guardrail holds, and "
            "nothing else objects."
        )
        return Decision("PROMOTE", 3, reason, (*numbers, Number("Low end of the difference", primary.low)))
    needed = users_needed(primary, config.min_lift * primary.a, config.alpha)
    return Decision(
        "HOLD",
        4,
        "Nothing is proven worse, but " + "; ".join(missing) + ".",
        (*numbers, Number(f"Users needed to see a lift of {config.min_lift:.1%}", needed, "count")),
        tuple(missing),
    )


def _invalid(checks: tuple[Check, ...], failed: list[Check]) -> Decision:
    return Decision(
        "INVALID",
        1,
        "; ".join(f"failed: {check.name} ({check.detail})" for check in failed),
        (
            Number("Checks failed", len(failed), "count"),
            Number("Checks passed", sum(check.status == "pass" for check in checks), "count"),
            Number("Checks not possible", sum(check.status == "unknown" for check in checks), "count"),
        ),
    )


def _reject(harmed: list[Judged], primary: Effect) -> Decision:
    first = harmed[0]
    lift = f" ({primary.relative:+.1%})" if math.isfinite(primary.relative) else ""
    beside = f" The primary metric differs by {primary.diff:+.4f}{lift}." if primary.n else ""
    return Decision(
        "REJECT",
        2,
        "Worse by more than the margin: " + ", ".join(judged.name for judged in harmed) + "." + beside,
        (
            Number(f"{first.name}: low end of the gain", first.low),
            Number(f"{first.name}: high end of the gain", first.high),
            Number("Margin", -first.margin),
        ),
    )

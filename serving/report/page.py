"""The report as one HTML file and as Markdown; whatever a template prints is escaped, without asking."""

import math
import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recsys.config import flat
from recsys.types import FloatArray
from serving.report import figures
from serving.report.figures import Drawing
from serving.report.stability import Repetition
from serving.report.statistics import Effect

if TYPE_CHECKING:
    from serving.report.document import ArmHeader, Report

MAX_SHOWN = 120
_HASH = re.compile(r"[0-9a-f]{64}")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(?:\+00:00|Z)")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Of "@" and ":" only those that can start a mention, a link or an emoji, so that NDCG@10 and 12:30 stay readable.
_MARKDOWN = re.compile(r"[&<>\\`*_\[\]#!|~$]|(?<!\w)@|@(?!\d)|:(?=[^\s\d])|(?<=www)\.", re.IGNORECASE)


def visible(text: str, limit: int = MAX_SHOWN) -> str:
    r"""Text cut to `limit` characters, its control, format and direction characters written out.

    >>> visible("a\u202eb")
    'a\\u{202e}b'
    """
    cut = text[:limit]
    plain = "".join(f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _UNSEEN else c for c in cut)
    return plain + "…" if len(text) > limit else plain


def markdown_text(text: str) -> str:
    """Text that Markdown, and GitHub's links and mentions, take for nothing but text.

    >>> markdown_text("a|b")
    'a&#124;b'
    """
    return _MARKDOWN.sub(lambda found: f"&#{ord(found[0])};" + "\u200b" * (found[0] in "@#"), text)


def number(value: float | int | None, style: str = "plain") -> Markup:
    """A number as the page shows it: three significant digits, a percentage, or a count; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Markup("–")
    if style == "count":
        return Markup(f"{value:,.0f}")
    if style == "percent":
        return Markup(f"{value:+.2%}".replace("-", "−"))
    if style == "p":
        return Markup("&lt;0.0001") if value < 0.0001 else Markup(f"{value:.4f}")
    if style == "tenth":
        return Markup(f"{value:,.1f}")
    text = f"{value:+.4f}" if style == "signed" else f"{value:.4f}"
    return Markup(text.replace("-0.0000", "0.0000").replace("-", "−"))


def brief(value: object) -> str:
    """Text cut short; of a hash its first 16 digits, of a moment in UTC no fractions.

    >>> brief("2024-03-01T10:00:00.5+00:00")
    '2024-03-01 10:00:00 UTC'
    """
    text = str(value)
    if _HASH.fullmatch(text):
        return text[:16]
    found = _MOMENT.fullmatch(text)
    return f"{found[1]} {found[2]} UTC" if found else _short(text)


def _short(value: object) -> str:
    text = str(value)
    return text[:MAX_SHOWN] + "…" * (len(text) > MAX_SHOWN)


def _arm_name(arm: "ArmHeader") -> str:
    """Name and version; a version that was asked for by its number is its own name."""
    return _short(arm.name) if arm.version in ("", arm.name) else f"{_short(arm.name)} {_short(arm.version)}"


def _run_name(run: Repetition) -> str:
    return run.name if run.kind in run.name else f"{run.kind}: {run.name}"


def html(report: "Report") -> str:
    """One page without scripts and without anything from elsewhere."""
    return _environment(is_html=True).get_template("report.html.j2").render(report=report, figures=_figures(report))


def markdown(report: "Report") -> str:
    """The tables for a pull request."""
    return _environment(is_html=False).get_template("report.md.j2").render(report=report)


@cache
def _environment(is_html: bool) -> Environment:
    def finalize(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        # What a user wrote can be longer than what we write; verdicts and commands are ours.
        text = visible(str(value), limit=1_000)
        return text if is_html else Markup(markdown_text(text))

    environment = Environment(
        loader=PackageLoader("serving.report", "templates"),
        autoescape=is_html,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["num"] = number
    environment.filters["moment"] = lambda text: text[:16].replace("T", " ")
    environment.filters["flat"] = flat
    environment.filters["short"] = _short
    environment.filters["brief"] = brief
    environment.filters["run_name"] = _run_name
    environment.filters["arm_name"] = _arm_name
    return environment


def _figures(report: "Report") -> dict[str, Drawing]:
    """Drawings by name; one without anything to show is left out."""
    primary = report.relevance[0]
    axis = f"difference in {primary.metric}, B − A"
    shown = {}
    named = [(row.metric, row.effect) for row in report.relevance if row.effect.n > 1]
    if named:
        shown["relevance"] = figures.forest(
            "relevance", *_columns(named), "Effects with their intervals", "difference B − A"
        )
    inside = [(visible(f"{s.kind}: {s.name} (n={s.n:,})", 40), s.effect) for s in report.segments if s.effect]
    if inside:
        shown["segments"] = figures.forest(
            "segments", *_columns(inside), "Effects inside groups, intervals not adjusted", axis
        )
    active = [(f"{s.name}\nn={s.n:,}", s.effect) for s in report.segments if s.effect and s.kind == "history"]
    if len(active) > 1:
        caption = f"Effect in {primary.metric} by activity"
        shown["activity"] = figures.points("activity", *_columns(active), caption, "events before the window")
    if sum(report.histogram.counts):
        edges, counts = report.histogram.edges, report.histogram.counts
        shown["histogram"] = figures.histogram(edges, counts, f"difference in {primary.metric} of a user, B − A")
    if report.curve.a:
        shown["recall"] = figures.recall(report.curve.a, report.curve.b, report.curve.popularity)
        shown["exposure"] = figures.exposure(report.exposure.a, report.exposure.b, report.exposure.popularity)
    return shown | _over_time(report)


def _over_time(report: "Report") -> dict[str, Drawing]:
    """Windows by the day they start, or parts of the window where nothing was trained again; seeds beside."""
    windows = report.stability.of("window")
    runs = windows if len(windows) > 1 else report.stability.of("part")
    shown = {}
    caption = f"Effect in {report.relevance[0].metric}"
    if len(runs) > 1:
        in_order = sorted(runs, key=lambda run: run.start)
        rows = [(f"{run.start[:10]}\nn={run.effect.n:,}", run.effect) for run in in_order]
        shown["windows"] = figures.points("windows", *_columns(rows), f"{caption}, windows over time", "labels from")
    seeds = [(run.name.removeprefix("the seed "), run.effect) for run in report.stability.of("seed")]
    if len(seeds) > 1:
        shown["seeds"] = figures.points("seeds", *_columns(seeds), f"{caption}, training seeds", "trained with")
    return shown


def _columns(rows: list[tuple[str, Effect]]) -> tuple[list[str], FloatArray, FloatArray, FloatArray]:
    values = np.array([[effect.diff, effect.low, effect.high] for _, effect in rows])
    return [name for name, _ in rows], values[:, 0], values[:, 1], values[:, 2]

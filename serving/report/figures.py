"""Figures as inline SVG: same numbers, same bytes; lines and letters take the page's colour."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recsys.types import FloatArray, IntArray


@dataclass(frozen=True)
class Drawing:
    """A figure for the page and what it shows."""

    svg: Markup
    caption: str


_INK = "#010203"  # stands for the page's text colour until the SVG is written
_A, _B = "#8a8a8a", "#2f81f7"


def forest(
    key: str, names: Sequence[str], diffs: FloatArray, lows: FloatArray, highs: FloatArray, caption: str, xlabel: str
) -> Drawing:
    """A point and its interval per row, first row on top, with a line at 0; `key` tells the page's forests apart."""
    figure, axes = _figure(0.6 + 0.22 * len(names))
    row = -np.arange(len(names))
    with np.errstate(invalid="ignore"):
        axes.hlines(row, lows, highs, color=_B, linewidth=2)
    axes.plot(diffs, row, "s", color=_B, markersize=5)
    axes.axvline(0, color=_INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(row, names)
    axes.set_ylim(-len(names) + 0.5, 0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(xlabel)
    return _drawing(figure, key, caption)


def histogram(edges: Sequence[float], counts: Sequence[int], xlabel: str) -> Drawing:
    """Users by their difference; the height is logarithmic, as most differ by nothing."""
    figure, axes = _figure(2.4)
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_B, edgecolor=_INK, linewidth=0.3)
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("users (log scale)")
    return _drawing(figure, "histogram", "Difference of each user; the height is logarithmic")


def recall(a: Sequence[float], b: Sequence[float], popular: Sequence[float] | None) -> Drawing:
    """Recall by length of the list: both arms, and the popularity baseline dotted."""
    figure, axes = _figure(2.6)
    _lines(axes, np.arange(1, len(a) + 1), a, b, popular)
    axes.set_xlabel("items shown")
    axes.set_ylabel("recall")
    return _drawing(figure, "recall", "Recall by length of the list")


def exposure(a: Sequence[float], b: Sequence[float], popular: Sequence[float] | None) -> Drawing:
    """Lorenz curves: the nearer to the diagonal, the more evenly items are shown."""
    figure, axes = _figure(2.6)
    share = np.linspace(0, 100, len(a))
    axes.plot([0, 100], [0, 100], color=_INK, linewidth=0.6)
    _lines(axes, share, *(line if line is None else 100 * np.asarray(line) for line in (a, b, popular)))
    axes.set_xlabel("% of the catalogue, least shown first")
    axes.set_ylabel("% of showings")
    return _drawing(figure, "exposure", "Exposure of the catalogue: the nearer to the diagonal, the more evenly")


def _lines(
    axes: Axes,
    x: FloatArray | IntArray,
    a: Sequence[float] | FloatArray | None,
    b: Sequence[float] | FloatArray | None,
    popular: Sequence[float] | FloatArray | None,
) -> None:
    for line, color, style, label in ((b, _B, "-", "B"), (a, _A, "--", "A")):
        if line is not None:
            axes.plot(x, line, style, color=color, label=label)
    if popular is not None:
        axes.plot(x, popular, color=_INK, linestyle=":", linewidth=1, label="popularity")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=_INK)


def points(
    key: str, names: Sequence[str], diffs: FloatArray, lows: FloatArray, highs: FloatArray, caption: str, xlabel: str
) -> Drawing:
    """A point and its interval per column, first one left, with a line at 0; for what has an order."""
    figure, axes = _figure(2.6)
    column = np.arange(len(names))
    axes.vlines(column, lows, highs, color=_B, linewidth=2)
    axes.plot(column, diffs, "s", color=_B, markersize=5)
    axes.axhline(0, color=_INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(column, names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("difference B − A")
    return _drawing(figure, key, caption)


def _figure(height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _drawing(figure: Figure, name: str, caption: str) -> Drawing:
    text = StringIO()
    with (
        mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        # The browser's font draws the letters, so one missing from matplotlib's is no fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # Ids are unique inside one drawing only, and the page holds several.
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    label = escape(caption)
    return Drawing(Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)), caption)

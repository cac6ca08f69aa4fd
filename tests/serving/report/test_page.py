import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.config import ReportConfig
from serving.report import page
from serving.report.compare import compare
from serving.report.document import SCHEMA, Report
from serving.report.world import Arm

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "a | b | c",
    "[click](javascript:alert(1))",
    "line\nbreak\x00\x1b[31m",
    "evil\u202egnp.exe\u2066",
    "@everyone #1 https://evil.example www.evil.example `code` **bold**",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 10_000,
]
DAY = pd.Timestamp("2024-03-01", tz="UTC")


@pytest.fixture(scope="module")
def report() -> Report:
    """Two users per item take it; A gives everyone the same list, B a list turned by the user's number."""
    n_items, n_users = len(HOSTILE), 2 * len(HOSTILE)
    items = pd.DataFrame({"item_id": np.arange(n_items), "title": pd.Series(HOSTILE, dtype=object)})
    events = pd.DataFrame({"user_id": np.arange(n_users), "item_id": np.arange(n_users) % n_items})
    table = pd.DataFrame(
        {"user_id": np.repeat(np.arange(n_users), n_items), "rank": np.tile(np.arange(1, n_items + 1), n_users)}
    )
    table["item_id"] = table["rank"] - 1
    turned = table.assign(item_id=(table["user_id"] + table["rank"] - 1) % n_items)
    turned["reason"] = turned["item_id"].map(dict(enumerate(HOSTILE)))
    turned["source"] = "<b>text</b>"
    people = pd.DataFrame({"user_id": np.arange(n_users), "town": ["<i>$x^2$</i>", "\u202e|town"] * n_items})
    return compare(
        Arm("<b>A</b>", table, "1", {"<u>key</u>": "<script>value</script>"}),
        Arm("B|\u202e", turned, "2"),
        events,
        items,
        ReportConfig(min_segment_users=2),
        test_start=DAY,
        test_end=DAY + pd.Timedelta(days=1),
        now=DAY,
        users=people,
        history=events.iloc[: n_users // 2],
        command="recsys compare '<script>'",
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_hostile_text_makes_no_tag_in_the_page(report: Report) -> None:
    tags = Tags()
    tags.feed(page.html(report))
    assert {"script", "img", "u", "i"}.isdisjoint(tags.seen)
    assert tags.handlers == []
    assert len(tags.ids) == len(set(tags.ids))


def test_hostile_titles_stand_in_the_page_as_text(report: Report) -> None:
    text = page.html(report)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "evil\\u{202e}gnp.exe\\u{2066}" in text
    assert "line\\u{a}break\\u{0}\\u{1b}[31m" in text
    assert "{{ 7 * 7 }}" in text
    assert "x" * 120 + "…" in text
    assert "x" * 121 not in text


@pytest.mark.parametrize("render", [page.html, page.markdown])
def test_no_control_or_direction_character_is_written(report: Report, render: object) -> None:
    assert callable(render)
    text = render(report)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_hostile_titles_are_plain_text_in_markdown(report: Report) -> None:
    text = page.markdown(report)
    assert "<script" not in text
    assert "<img" not in text
    assert "](javascript" not in text
    assert "@everyone" not in text
    assert "https://" not in text
    assert "www.evil" not in text
    assert "a &#124; b &#124; c" in text


def test_every_row_of_a_markdown_table_has_the_cells_of_its_head(report: Report) -> None:
    width = 0
    for line in page.markdown(report).splitlines():
        cells = line.count("|") if line.startswith("|") else 0
        assert cells == width or width == 0 or cells == 0, line
        width = cells


def test_the_page_loads_nothing_and_forbids_scripts(report: Report) -> None:
    text = page.html(report)
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!\#)""", text)
    assert "@import" not in text
    assert "url(http" not in text


def test_json_has_no_nan_and_keeps_the_verdict(report: Report) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    whole = json.loads(report.to_json(), parse_constant=refuse)
    assert (whole["schema"], whole["verdict"]) == ("recsys.compare/3", report.verdict)
    assert len(whole["samples"]) == len(report.samples) > 5


def test_writing_twice_leaves_four_whole_files(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    report.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "per_user.parquet",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert len(pd.read_parquet(tmp_path / "per_user.parquet")) == 2 * len(HOSTILE)


def test_a_lone_surrogate_is_written_out() -> None:
    assert page.visible("a\ud800b") == "a\\u{d800}b"


def test_numbers_say_what_they_are() -> None:
    assert page.number(float("nan")) == "–"
    assert page.number(0.01234, "percent") == "+1.23%"
    assert page.number(12_345.0, "count") == "12,345"
    assert page.number(1e-9, "p") == "&lt;0.0001"


def test_hashes_and_moments_are_cut_for_people() -> None:
    assert page.brief("ab" * 32) == "ab" * 8
    assert page.brief("2024-03-01 10:00:00+00:00") == "2024-03-01 10:00:00 UTC"
    assert page.brief("2024-03-01T10:00:00+02:00") == "2024-03-01T10:00:00+02:00"
    assert page.brief("x" * 200) == "x" * 120 + "…"


def test_a_loss_has_a_minus_and_nothing_has_no_sign() -> None:
    assert page.number(-0.01234, "signed") == "−0.0123"
    assert page.number(-0.5, "percent") == "−50.00%"
    assert page.number(-1e-7) == "0.0000"


def test_every_figure_says_what_it_shows(report: Report) -> None:
    text = page.html(report)
    assert text.count("<figcaption>") == text.count("<figure>") == text.count('<svg role="img"') > 4
    assert len(text.encode()) < 2_000_000


def paths(value: object, at: str = "") -> set[str]:
    """Where something stands in a JSON value; entries of a list share a place."""
    if isinstance(value, dict):
        return {path for key, part in value.items() for path in paths(part, f"{at}.{key}")}
    if isinstance(value, list):
        return {path for part in value for path in paths(part, f"{at}[]")} or {f"{at}[]"}
    return {at}


def test_the_json_has_the_shape_that_its_schema_promises(report: Report) -> None:
    """A place that is gone or named anew needs a new number in SCHEMA; a new place only its line in the file."""
    found = {
        path
        for path in paths(json.loads(report.to_json()))
        if not path.startswith((".header.config.", ".header.packages.", ".header.a.info."))
    }
    stored = (Path(__file__).parent / "schema.txt").read_text().splitlines()
    assert stored[0] == SCHEMA
    assert sorted(found) == stored[1:]


def test_an_arm_asked_for_by_its_number_is_named_once(report: Report) -> None:
    twice = replace(report, header=replace(report.header, a=replace(report.header.a, name="1", version="1")))
    assert "A: 1 · B: " in page.html(twice)
    assert "A: 1 · B: " in page.markdown(twice)
    assert "A: &lt;b&gt;A&lt;/b&gt; 1 · B: " in page.html(report)

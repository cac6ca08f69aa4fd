"""The page in a real browser: hostile text shows as text, nothing runs, nothing is fetched."""

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.config import ReportConfig
from serving.report import page
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.world import Arm

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DAY = pd.Timestamp("2024-03-01", tz="UTC")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]


def hostile(where: str) -> list[str]:
    """Texts that would run a script or call `where`, were they anything but text."""
    mark = "document.documentElement.setAttribute('data-ran','yes')"
    return [
        f"<script>{mark}</script>",
        f'</title></style></svg><img src={where}/img onerror="{mark}">',
        f"<svg/onload={mark}>",
        f'" onmouseover="{mark}" style="background:url({where}/css)',
        f"]]>--><iframe src={where}/frame></iframe>",
        f"<link rel=stylesheet href={where}/sheet><meta http-equiv=refresh content='0;url={where}/meta'>",
        f"<style>@import url({where}/import);</style>",
        "\u202eevil\u2066 right to left",
        "long " + "x" * 10_000,
    ]


def judged(texts: list[str]) -> Report:
    n_items, n_users = len(texts), 20 * len(texts)
    users = np.arange(n_users)
    items = pd.DataFrame({"item_id": np.arange(n_items), "title": texts, "category": texts})
    events = pd.DataFrame({"user_id": users, "item_id": users % n_items, "timestamp": DAY})
    table = pd.DataFrame({"user_id": users.repeat(n_items), "rank": np.tile(np.arange(1, n_items + 1), n_users)})
    table["item_id"] = table["rank"] - 1
    turned = table.assign(item_id=(table["user_id"] + table["rank"] - 1) % n_items)
    turned["reason"] = turned["source"] = turned["item_id"].map(dict(enumerate(texts)))
    people = pd.DataFrame({"user_id": users, "town": [texts[user % n_items] for user in users]})
    return compare(
        Arm(texts[0], table, texts[1], {texts[2]: texts[3]}), Arm(texts[1], turned, texts[0]), events, items,
        ReportConfig(min_segment_users=2), test_start=DAY, test_end=DAY + pd.Timedelta(days=1), now=DAY,
        users=people, history=events.assign(timestamp=DAY - pd.Timedelta(days=9)), command=texts[0],
        code_revision=texts[4],
    )  # fmt: skip


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A host that remembers what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{host.server_port}", asked
        host.shutdown()


def dom(path: Path, folder: Path) -> str:
    """The document as the browser holds it after loading."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-extensions", f"--user-data-dir={folder}"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--timeout=5000"]
    command = [str(BROWSER), *words, *quiet, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_browser_runs_and_fetches_what_is_no_text(server: tuple[str, list[str]], tmp_path: Path) -> None:
    """The trap itself works: the same texts in a careless page do run and do call."""
    where, asked = server
    (tmp_path / "bad.html").write_text("<title>x</title><body>" + "".join(hostile(where)[:2]))
    found = dom(tmp_path / "bad.html", tmp_path / "profile")
    assert 'data-ran="yes"' in found
    assert "/img" in asked


def test_hostile_text_is_text_and_the_page_is_alone(server: tuple[str, list[str]], tmp_path: Path) -> None:
    where, asked = server
    report = judged(hostile(where))
    assert len(report.samples) > 5
    text = page.html(report)
    (tmp_path / "report.html").write_text(text)
    assert len(text.encode()) < 2_000_000
    found = dom(tmp_path / "report.html", tmp_path / "profile")
    # a script that ran would have marked the first tag
    assert re.match(r'<!DOCTYPE html>\s*<html lang="en"><head>', found)
    assert not re.search(r"<(?:script|img|iframe|link|object|embed)\b", found)
    assert found.count("<style") == text.count("<style")
    assert "&lt;script&gt;" in found
    assert "\\u{202e}evil" in found
    assert asked == []

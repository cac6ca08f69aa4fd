"""What people see of ids and titles that try to be more than text."""

import io

import numpy as np
import pandas as pd
from rich.console import Console

from features.ingest import clean_tables
from recsys.config import DataConfig
from serving.show import _first_of_its_text, _print_user


def test_an_id_that_looks_like_markup_is_shown_as_it_is() -> None:
    out = io.StringIO()
    items = pd.DataFrame({"item_id": ["a"], "title": ["[red]tea[/b]"]})
    history = pd.DataFrame({"item_id": ["a"], "timestamp": pd.to_datetime(["2024-01-01"], utc=True)})
    mine = pd.DataFrame(
        {"item_id": ["a"], "rank": [1], "score": [1.0], "p": [0.5], "source": ["text"], "reason": ["x"]}
    )
    _print_user("[/x]", mine, history, items, Console(file=out, width=120), 5)
    assert "user [/x]: 1 events" in out.getvalue()
    assert "[red]tea[/b]" in out.getvalue()


def test_what_a_user_hid_is_nothing_that_they_had() -> None:
    times = ["2024-01-01T00:00Z", "2024-01-02T00:00Z", "2024-01-03T00:00Z"]
    events = pd.DataFrame(
        {"user_id": [7, 7, 8], "item_id": [1, 2, 1], "event_type": ["buy", "hide", "buy"], "timestamp": times}
    )
    items = pd.DataFrame({"item_id": [1, 2], "title": ["tea", "oil"]})
    tables = clean_tables(events, items, DataConfig(events="e", items="i", event_weights={"buy": 1.0}))
    assert tables.history_of(7)["item_id"].tolist() == [1]


def test_a_long_id_is_shown_whole_on_a_narrow_terminal() -> None:
    out, item = io.StringIO(), 2**60 + 1
    history = pd.DataFrame({"item_id": [item], "timestamp": pd.to_datetime(["2024-01-01"], utc=True)})
    mine = pd.DataFrame({
        "item_id": [item], "rank": [1], "score": [1.0], "p": [0.5], "source": ["text"], "reason": ["like what was bought"],
    })  # fmt: skip
    items = pd.DataFrame({"item_id": [item], "title": ["a title of many words"]})
    _print_user("u", mine, history, items, Console(file=out, width=60), 5)
    cells = [line.split("│")[2].strip() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert "".join(cells) == str(item) * 2


def test_items_of_one_text_stand_once_among_those_like_another() -> None:
    """The best of each text, without those that share the text of the item asked for."""
    scores, text_of = np.array([1.0, 1.0, 0.5, 0.9, 0.9]), np.array([0, 0, 1, 2, 2])
    assert _first_of_its_text(scores, text_of, pos=0).tolist() == [False, False, True, True, False]

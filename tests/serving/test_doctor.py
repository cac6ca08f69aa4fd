"""What doctor and validate say of a config before anything is trained."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from recsys.cli import cli
from recsys.errors import ConfigError
from serving import doctor
from serving.doctor import Finding


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop of one event; doctor's encoder is taken for granted."""
    monkeypatch.setattr(doctor, "_encoder", lambda name: Finding("encoder", True, name))
    when = pd.Timestamp("2024-01-01", tz="UTC")
    events = {"user_id": [1], "item_id": [7], "event_type": "buy", "timestamp": when}
    pd.DataFrame(events).to_parquet(tmp_path / "events.parquet")
    items = pd.DataFrame({"item_id": [7], "title": ["Tea"], "author": ["Oak"]})
    (tmp_path / "items").mkdir()
    for part in "ab":
        items.to_parquet(tmp_path / "items" / f"{part}.parquet")
    return tmp_path


def run(folder: Path, command: str, data: str = "", text: str = "", items: str = "items") -> Result:
    (folder / "recsys.toml").write_text(
        f"""[data]
events = "events.parquet"
items = "{items}"
event_weights = {{ buy = 1 }}
{data}
[text]
{text}
"""
    )
    return CliRunner().invoke(cli, [command, "-c", str(folder / "recsys.toml"), "--json"])


def tables(result: Result) -> dict[str, tuple[bool, str]]:
    named = ("events", "items", "users", "impressions")
    return {f["name"]: (f["ok"], f["text"]) for f in json.loads(result.stdout) if f["name"] in named}


def test_doctor_counts_the_files_of_the_tables(folder: Path) -> None:
    found = tables(run(folder, "doctor"))
    assert found == {
        "events": (True, f"{folder}/events.parquet, 1 file"),
        "items": (True, f"{folder}/items, 2 files"),
    }


def test_doctor_names_tables_that_are_not_there(folder: Path) -> None:
    result = run(folder, "doctor", 'users = "u*.csv"\nimpressions = "nowhere://bucket/i.parquet"', items="missing.csv")
    found = tables(result)
    assert result.exit_code == 5
    assert found["events"][0]
    assert found["items"] == (
        False, f"{folder}/missing.csv: no items table there; check data.items in the config",
    )  # fmt: skip
    assert not found["users"][0]
    assert not found["impressions"][0]
    assert found["impressions"][1].startswith("nowhere://bucket/i.parquet: cannot be reached")


def test_what_a_store_raises_is_said_and_not_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_credentials(place: str, name: str) -> None:
        raise RuntimeError("no credentials for https://me:secret@host/x")

    monkeypatch.setattr(doctor, "files_of", no_credentials)
    ok, text = tables(run(folder, "doctor"))["items"]
    assert not ok
    assert "RuntimeError: no credentials for https://host/x" in text


def test_validate_refuses_fields_that_leave_no_item_a_text(folder: Path) -> None:
    items = f"{folder}/items/a.parquet"
    error = run(folder, "validate", text='fields = ["titel", "autor"]', items=items).exception
    assert isinstance(error, ConfigError)
    assert "none of 'titel', 'autor' is a column of the items table" in str(error)
    assert "did you mean 'title' for 'titel', 'author' for 'autor'?" in str(error)
    for fields in ('["title", "brand"]', "[]"):
        assert run(folder, "validate", text=f"fields = {fields}", items=items).exit_code == 0


def test_a_field_that_is_not_there_is_told_unless_tables_often_lack_it(folder: Path) -> None:
    items = f"{folder}/items/a.parquet"
    result = run(folder, "validate", text='fields = ["title", "brand", "autor", "cover"]', items=items)
    assert result.exit_code == 0
    assert (
        "text.fields: 'autor' is no column of the items table; texts are made without it; did you mean 'author'?"
        in result.stderr
    )
    assert "text.fields: 'cover' is no column of the items table; texts are made without it\n" in result.stderr
    assert "brand" not in result.stderr

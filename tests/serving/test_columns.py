"""Exports that lose a column between two nights."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.dataset import Dataset
from recsys.config import Config, parse_config
from recsys.errors import DataError
from serving import releases
from serving.columns import columns_known, refuse_lost_columns
from serving.publish import ReleaseStore

EVENTS = pd.DataFrame(
    {
        "user_id": [1, 2], "item_id": [1, 2], "event_type": "buy", "weight": [1.0, 2.0],
        "timestamp": pd.Timestamp("2024-01-02", tz="UTC"),
    }
)  # fmt: skip
ITEMS = pd.DataFrame({"item_id": [1, 2], "title": "x", "available": [True, False], "author": "y", "shelf": 7})


def config(*, fields: tuple[str, ...] = ("title", "author"), **audit: object) -> Config:
    return parse_config(
        {
            "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}},
            "text": {"fields": list(fields)},
            "serving": {"audit": audit},
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """Serves a release that knew all columns."""
    store, known = ReleaseStore(tmp_path), columns_known(Dataset.from_frames(EVENTS, ITEMS), config())
    assert known == {
        "events": ["weight"],
        "items": ["author", "available", "title"],
    }  # nobody reads the shelf
    with store.lock():
        staging = store.begin("2024-01-02", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [1]}))
        facts = {"key": {}, "run_date": "2024-01-02", "model": {"version": "1"}, "columns": known}
        store.publish(store.finish(staging, facts))
    return store


def test_the_same_columns_or_more_pass_and_so_does_what_nobody_reads(store: ReleaseStore, tmp_path: Path) -> None:
    for items in (ITEMS, ITEMS.assign(brand="z"), ITEMS.drop(columns="shelf")):
        refuse_lost_columns(Dataset.from_frames(EVENTS, items), store, config())
    refuse_lost_columns(
        Dataset.from_frames(EVENTS, ITEMS[["item_id", "title"]]), ReleaseStore(tmp_path / "new"), config()
    )


def test_a_column_that_is_gone_is_named_with_what_it_may_be_called_now(store: ReleaseStore) -> None:
    """Else the item that was withdrawn would be listed again, and nothing would say so."""
    lost = Dataset.from_frames(EVENTS.drop(columns="weight"), ITEMS.rename(columns={"available": "availabel"}))
    with pytest.raises(DataError) as told:
        refuse_lost_columns(lost, store, config())
    assert "events lack 'weight'; items lack 'available' (did you mean 'availabel'?)" in str(told.value)
    assert """--set 'serving.audit.may_lack=["weight", "available"]'""" in str(told.value)
    refuse_lost_columns(lost, store, config(may_lack=["weight", "available"]))


def test_a_column_that_is_empty_is_lost_as_one_that_is_not_there(store: ReleaseStore) -> None:
    """Empty means available, so that all that was withdrawn would be listed again."""
    empty = ITEMS.assign(available=pd.Series([pd.NA, pd.NA], dtype="boolean"), author="")
    with pytest.raises(DataError, match="items lack 'author'; items lack 'available'"):
        refuse_lost_columns(Dataset.from_frames(EVENTS, empty), store, config())


def test_tables_of_an_earlier_date_may_hold_less(store: ReleaseStore) -> None:
    """A shop that began to note what is available later than the date of a backfill."""
    events = EVENTS.assign(timestamp=EVENTS["timestamp"] - pd.Timedelta("1D"))
    early = Dataset.from_frames(events, ITEMS[["item_id", "title"]])
    refuse_lost_columns(early, store, config())


def test_a_field_of_numbers_says_something(store: ReleaseStore) -> None:
    items = ITEMS.assign(author=pd.Series([np.array([1, 2]), None], dtype=object))
    assert "author" in columns_known(Dataset.from_frames(EVENTS, items), config())["items"]


def test_a_column_that_texts_were_made_of_counts_too(store: ReleaseStore) -> None:
    with pytest.raises(DataError, match="items lack 'author'"):
        refuse_lost_columns(Dataset.from_frames(EVENTS, ITEMS.drop(columns="author")), store, config())


def test_a_column_that_texts_are_no_longer_made_of_is_not_lost(store: ReleaseStore) -> None:
    """It said: items lack 'author' (did you mean 'author'?), mend the export."""
    refuse_lost_columns(Dataset.from_frames(EVENTS, ITEMS), store, config(fields=("title",)))


@pytest.mark.parametrize("noted", [{}, {"columns": {"events": ["price"], "items": []}}])
def test_a_release_of_an_earlier_revision_asks_for_nothing_that_is_not_read(
    tmp_path: Path, noted: dict[str, object]
) -> None:
    store = ReleaseStore(tmp_path)
    with store.lock():
        staging = store.begin("2024-01-02", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [1]}))
        store.publish(store.finish(staging, {"key": {}, "run_date": "2024-01-02", "model": {"version": "1"}} | noted))
    refuse_lost_columns(Dataset.from_frames(EVENTS, ITEMS[["item_id", "title"]]), store, config())

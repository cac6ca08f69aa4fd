import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from features.ingest import clean_tables, load_tables
from recsys.config import DataConfig, RulesConfig
from recsys.errors import ConfigError, DataError

ITEMS = pd.DataFrame({"item_id": ["c", "a", "b"], "title": ["Oil", "Tea", ""], "available": ["yes", None, "no"]})
EVENTS = pd.DataFrame(
    {
        "user_id": ["v", "u", "u", "v", "w"],
        "item_id": ["a", "b", "a", "c", "b"],
        "event_type": ["buy", "buy", "click", "view", "buy"],
        "timestamp": pd.to_datetime(["2024-01-03", "2024-01-02", "2024-01-02", "2024-01-04", "2024-01-05"], utc=True),
        "price": [1.0, 2.0, np.nan, 4.0, 5.0],
        "weight": [1.0, 2.0, 0.5, 1.0, 0.0],
        "part": ["train", "train", "valid", "test", "test"],
    }
)
BOTH = {"click": 1.0, "buy": 6.0}


def dataset(events: pd.DataFrame = EVENTS, split_column: str | None = None) -> Dataset:
    config = DataConfig(events="e", items="i", event_weights=BOTH, split_column=split_column)
    return Dataset.from_tables(clean_tables(events, ITEMS, config), pd.Timestamp("2024-02-01", tz="UTC"))


def test_labels_stand_by_user_then_time_then_item_with_type_weight_times_row_weight() -> None:
    data = dataset()
    assert list(data.users.ids) == ["u", "v"]
    assert data.user_pos.tolist() == [0, 0, 1]
    assert data.item_pos.tolist() == [0, 1, 0]
    assert data.weight.tolist() == [0.5, 12, 6]


def test_catalogue_rows_are_item_positions_and_availability_is_read_from_words() -> None:
    data = dataset()
    assert data.catalogue["item_id"].tolist() == list(data.items.ids) == ["a", "b", "c"]
    assert data.available.tolist() == [True, False, True]


def test_shuffled_input_gives_the_same_arrays() -> None:
    one, other = dataset(), dataset(EVENTS.sample(frac=1, random_state=1))
    assert one.sha256 == other.sha256
    for name in ("user_pos", "item_pos", "timestamp", "weight"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_before_keeps_only_earlier_events_and_moves_as_of() -> None:
    moment = pd.Timestamp("2024-01-03", tz="UTC")
    early = dataset().before(moment)
    assert early.item_pos.tolist() == [0, 1]
    assert early.timestamp.max() < moment.value // 1000
    assert early.as_of == moment
    assert dataset().before(pd.Timestamp("2025-01-01", tz="UTC")).as_of == dataset().as_of


def test_split_column_becomes_codes() -> None:
    split = dataset(split_column="part").split
    assert split is not None
    assert split.tolist() == [1, 0, 0]
    assert dataset().split is None


@pytest.mark.parametrize(("column", "part"), [("parts", "part"), ("user_id", "'v'")])
def test_a_split_column_that_is_none_is_named(column: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as error:
        dataset(split_column=column)
    assert "split_column" in str(error.value)


def test_from_frames_counts_every_type_once_and_knows_all_it_was_given() -> None:
    with pytest.warns(
        UserWarning, match=r"3 event types \('buy', 'click', 'view'\) .* all count 1.*event_weights={'buy': 1}"
    ):
        data = Dataset.from_frames(EVENTS.drop(columns="weight"), ITEMS)
    assert data.weight.tolist() == [1] * 5
    assert data.as_of == pd.Timestamp("2024-01-05 00:00:00.000001", tz="UTC")


def test_from_frames_reads_nothing_at_or_after_as_of() -> None:
    data = Dataset.from_frames(EVENTS, ITEMS, event_weights=BOTH, as_of=pd.Timestamp("2024-01-03"))
    assert data.timestamp.size == 2
    assert data.as_of.tzinfo is not None


@pytest.mark.parametrize(
    "as_of",
    [
        "2024-01-03", "2024-01-03T00:00:00Z", "2024-01-03T02:00+02:00", date(2024, 1, 3), datetime(2024, 1, 3),
        datetime.fromisoformat("2024-01-03T01:00+01:00"), np.datetime64("2024-01-03"),
    ],
)  # fmt: skip
def test_as_of_may_be_any_kind_of_moment(as_of: str | date | np.datetime64) -> None:
    data = Dataset.from_frames(EVENTS, ITEMS, event_weights=BOTH, as_of=as_of)
    assert data.as_of == pd.Timestamp("2024-01-03", tz="UTC")


@pytest.mark.parametrize("as_of", ["03.01.2024", "yesterday", "", 20240103, pd.NaT, "1066-01-01"])
def test_what_is_no_moment_is_said_to_be_none(as_of: str) -> None:
    with pytest.raises(ConfigError, match=r"as_of: '.*' is no date or moment; write 2017-12-31"):
        Dataset.from_frames(EVENTS, ITEMS, as_of=as_of)


def test_frames_that_hold_no_event_say_so() -> None:
    with pytest.raises(DataError, match="events frame: it has no rows"):
        Dataset.from_frames(EVENTS[:0], ITEMS)
    with pytest.raises(DataError, match="event_type is empty in all 5 rows; fill it"):
        Dataset.from_frames(EVENTS.assign(event_type=np.nan), ITEMS)


@pytest.mark.parametrize("weight", [0, -1, np.nan, "6"])
def test_a_weight_that_is_none_is_named(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"event_weights: 'click' weighs '{weight}'; a weight is a number above 0"):
        Dataset.from_frames(EVENTS, ITEMS, event_weights={"buy": 6, "click": weight})


def test_a_type_that_weighs_and_never_occurs_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"never holds 'veiw', which event_weights names; did you mean 'view'\?"):
        Dataset.from_frames(EVENTS, ITEMS, event_weights={"buy": 6, "veiw": 1})
    with pytest.raises(DataError, match=r"never holds 'loan'.*found 'buy', 'click', 'view'"):
        Dataset.from_frames(EVENTS, ITEMS, event_weights={"loan": 1})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"event_weights": {"buy": 2e6}}, "data.event_weights"), ({"split_column": 7}, "data.split_column")],
)
def test_what_no_config_could_hold_is_told_as_in_a_config(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"from_frames: .*\n  {told}"):
        Dataset.from_frames(EVENTS, ITEMS, **{"event_weights": BOTH} | wrong)


def test_lists_of_words_are_the_same_texts_from_frames_and_from_files(tmp_path: Path) -> None:
    lists = pd.Series([["Krimi", "Fantasy"], [], None])
    items = ITEMS.assign(category=lists, tags=pd.Series([np.array(["a", "b"], object), np.array(["c"], object), None]))
    events = EVENTS.drop(columns="weight")
    events.to_parquet(tmp_path / "events.parquet")
    items.to_parquet(tmp_path / "items.parquet")
    config = DataConfig(events=f"{tmp_path}/events.parquet", items=f"{tmp_path}/items.parquet", event_weights=BOTH)
    data = Dataset.from_frames(events, items, event_weights=BOTH)
    assert data.catalogue["category"].tolist() == ["", "", "Krimi, Fantasy"]
    assert data.catalogue["tags"].tolist() == ["c", "", "a, b"]
    read = load_tables(config).items
    assert data.catalogue[["category", "tags"]].equals(read[["category", "tags"]])
    broken = items.assign(title=pd.Series(["\ud800Oil", "Tea", ""], dtype=object))  # which no column of text may hold
    assert Dataset.from_frames(events, broken, event_weights=BOTH).sha256 == data.sha256
    tupled = items.assign(category=pd.Series([("Krimi", np.str_("Fantasy")), (), None]))
    assert Dataset.from_frames(events, tupled, event_weights=BOTH).sha256 == data.sha256


def test_inputs_stay_as_they_were() -> None:
    events, items = EVENTS.copy(deep=True), ITEMS.copy(deep=True)
    items["tags"] = [["a"], ["b", "c"], []]
    given = items.copy(deep=True)
    Dataset.from_frames(events, items, event_weights=BOTH)
    pd.testing.assert_frame_equal(events, EVENTS)
    pd.testing.assert_frame_equal(items, given)


def test_blocked_items_are_not_available_whatever_the_type_of_their_ids() -> None:
    events = pd.DataFrame(
        {"user_id": 1, "item_id": [7, 8], "event_type": "buy", "timestamp": pd.Timestamp("2024-01-01", tz="UTC")}
    )
    data = Dataset.from_frames(
        events, pd.DataFrame({"item_id": [7, 8, 9], "title": "x", "available": [True, True, False]})
    )
    assert data.under(RulesConfig(blocked=["8", 5])).available.tolist() == [True, False, False]
    assert data.under(RulesConfig(blocked=[7, "9"])).available.tolist() == [False, True, False]
    assert data.under(RulesConfig()) is data
    assert data.available.tolist() == [True, True, False]


def test_times_without_a_zone_are_of_the_one_that_is_named() -> None:
    events = EVENTS.assign(timestamp=pd.to_datetime(EVENTS["timestamp"], utc=True).dt.tz_localize(None))
    data = Dataset.from_frames(events, ITEMS, event_weights=BOTH, timezone="Europe/Madrid")
    assert Dataset.from_frames(events, ITEMS, event_weights=BOTH).as_of - data.as_of == pd.Timedelta("1h")


def test_a_data_set_tells_its_size_and_not_its_contents() -> None:
    data = Dataset.from_frames(EVENTS, ITEMS, event_weights=BOTH)
    assert re.fullmatch(r"Dataset\(\d+ users, \d+ items, \d+ events, as of 2024-.*\)", repr(data))


def test_events_that_all_weigh_nothing_are_an_error_of_the_table() -> None:
    """A night ended with 5, "holds no part; run again", and so was run again."""
    with pytest.raises(DataError, match="every label has weight 0"):
        Dataset.from_frames(EVENTS.assign(weight=0.0), ITEMS, event_weights=BOTH)


def test_a_split_column_of_no_words_is_refused_by_value() -> None:
    with pytest.raises(DataError, match=r"part holds .*expected train, valid or test"):
        dataset(EVENTS.assign(part=pd.Series([["train"]] * len(EVENTS))), split_column="part")


def test_what_is_no_frame_is_refused_with_what_mends_it() -> None:
    for none in ([1], EVENTS["user_id"], None):
        with pytest.raises(ConfigError, match=rf"events: a pandas frame is needed, not {type(none).__name__}"):
            Dataset.from_frames(none, ITEMS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="users: a pandas frame is needed, not ndarray"):
        Dataset.from_frames(EVENTS, ITEMS, event_weights=BOTH, users=EVENTS["user_id"].to_numpy())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"event_weights: .* names no weights; write such as \{\"buy\": 1\}"):
        Dataset.from_frames(EVENTS, ITEMS, event_weights="buy")  # type: ignore[arg-type]


def test_columns_that_a_frame_lacks_are_renamed_there_and_not_in_a_config() -> None:
    with pytest.raises(DataError, match=r'items frame: .*; rename\(columns=\{"ItemID": "item_id"\}\)$'):
        Dataset.from_frames(EVENTS, ITEMS.rename(columns={"item_id": "ItemID"}), event_weights=BOTH)
    with pytest.raises(DataError, match=r"items frame: item_id is in the index; give items\.reset_index\(\)"):
        Dataset.from_frames(EVENTS, ITEMS.set_index("item_id"), event_weights=BOTH)


def test_a_notebook_may_leave_bad_rows_out() -> None:
    events = EVENTS.assign(item_id=["a", "b", "a", "c", "gone"])
    with pytest.raises(DataError, match=r"or raise data\.max_bad_share"):
        Dataset.from_frames(events, ITEMS, event_weights=BOTH)
    assert len(Dataset.from_frames(events, ITEMS, event_weights=BOTH, max_bad_share=0.2).records) == 4

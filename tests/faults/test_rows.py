"""Rows that repeat, come late, lie about the time or hold odd text."""

import re
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.dataset import Dataset
from tests.faults.conftest import TODAY, YESTERDAY, Shop
from tests.faults.matrix import fault
from tests.faults.test_inputs import refused


@fault(17)
def test_doubled_and_shuffled_rows_are_the_same_night(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    events = yesterday.events()
    yesterday.write_events(pd.concat([events, events]).sample(frac=1, random_state=0, ignore_index=True))
    yesterday.write_items(yesterday.items().sample(frac=1, random_state=0))
    again = yesterday.tonight()
    assert again.code == 0
    assert "nothing to do, the same inputs are published already" in again.out
    assert "1,680 duplicate events" in re.sub(r"\s+", " ", again.err)
    elsewhere = yesterday.tonight("--set", f"serving.output={yesterday.folder}/other")
    assert elsewhere.code == 0
    parts = [yesterday.folder / name / "current" / "part-00000.parquet" for name in ("out", "other")]
    assert parts[0].read_bytes() == parts[1].read_bytes()
    yesterday.assert_today_served()


@fault(17)
def test_events_that_come_late_are_counted(yesterday: Shop) -> None:
    events = yesterday.events()
    late = events[:5].assign(timestamp=pd.Timestamp("2024-04-10T12:00", tz="UTC"))
    today = events[5:8].assign(timestamp=pd.Timestamp("2024-04-11T12:00", tz="UTC"))
    yesterday.write_events(pd.concat([events, late.drop_duplicates("user_id"), today], ignore_index=True))
    n_late = late["user_id"].nunique()
    ended = yesterday.tonight()
    assert ended.code == 0
    assert f"{n_late} events of before {YESTERDAY} 00:00 came late" in ended.err
    assert yesterday.last_run()["late_events"] == n_late
    yesterday.assert_today_served()


@fault(18)
@pytest.mark.parametrize("moment", ["1970-01-01", "9999-12-31"])
def test_absurd_times_are_quarantined(yesterday: Shop, moment: str) -> None:
    times = microseconds(yesterday)
    times[3] = np.datetime64(moment, "us").astype(np.int64)
    write_times(yesterday, pa.array(times).cast(pa.timestamp("us", "UTC")))
    assert yesterday.tonight().code == 0
    rows = pd.read_parquet(yesterday.output / "quarantine" / f"{TODAY}.parquet")
    assert rows[["row", "reason"]].to_numpy().tolist() == [[3, "time out of range"]]
    yesterday.assert_today_served()


@fault(18)
def test_milliseconds_read_as_seconds_stop_the_night(yesterday: Shop) -> None:
    write_times(yesterday, pa.array(microseconds(yesterday) // 1000).cast(pa.timestamp("s", "UTC")))
    refused(yesterday, "events.parquet", "column timestamp", "time out of range")


def microseconds(shop: Shop) -> np.ndarray:
    return shop.events()["timestamp"].astype("datetime64[us, UTC]").astype("int64").to_numpy().copy()


def write_times(shop: Shop, times: pa.Array) -> None:
    path = shop.folder / "events.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", times), path)


@fault(18)
def test_events_of_the_future_are_counted_and_not_read(yesterday: Shop) -> None:
    events = yesterday.events()
    future = events[:50].assign(timestamp=pd.Timestamp("2030-01-01", tz="UTC"))
    yesterday.write_events(pd.concat([events, future.drop_duplicates("user_id")], ignore_index=True))
    ended = yesterday.tonight()
    assert ended.code == 0
    assert f"{future['user_id'].nunique()} events after as-of" in re.sub(r"\s+", " ", ended.err)
    yesterday.assert_today_served()


@fault(18)
def test_four_zones_of_the_machine_give_the_same_bytes_over_a_clock_change(yesterday: Shop) -> None:
    events = yesterday.events()
    local = events["timestamp"].dt.tz_convert("Europe/Madrid").dt.tz_localize(None)  # 2024-03-31 skips an hour
    yesterday.write_events(events.assign(timestamp=local.astype(str)))
    bytes_of = set()
    for zone in ("UTC", "Asia/Kolkata", "America/New_York", "Pacific/Auckland"):
        first = f"import os, time; os.environ['TZ'] = {zone!r}; time.tzset()"
        output = yesterday.folder / zone.replace("/", "-")
        ended = yesterday.tonight(
            "--set", "data.timezone=Europe/Madrid", "--set", f"serving.output={output}", first=first
        )
        assert ended.code == 0, ended.err
        bytes_of.add((output / "current" / "part-00000.parquet").read_bytes())
    assert len(bytes_of) == 1
    yesterday.assert_yesterday_served()


@fault(18)
def test_a_clock_set_back_moves_nothing_and_says_so(yesterday: Shop) -> None:
    first = """
import pandas as pd
pd.Timestamp.now = classmethod(lambda cls, tz=None: pd.Timestamp("2024-04-10T03:00", tz=tz))
import recsys.cli
recsys.cli.pd = type("pd", (), {"Timestamp": type("T", (), {"now": staticmethod(
    lambda tz=None: pd.Timestamp("2024-04-10T03:00", tz=tz))}), "Timedelta": pd.Timedelta})
"""
    ended = yesterday.run("nightly", "--train", "never", first=first)
    assert ended.code == 0, ended.err
    assert "current was not moved: it serves a later date" in ended.out
    yesterday.assert_yesterday_served()


@fault(19)
def test_texts_of_any_kind_come_through_in_bounded_time_and_memory(yesterday: Shop) -> None:
    titles = {
        0: "Cafe\u0301", 1: "Café", 2: "שלום עולם", 3: "🎈👩‍👩‍👧", 4: "a\x00b", 5: "", 6: "   ", 7: "tea " * 2_500_000,
        8: "\u202eevil\u202c", 9: "line\nline\r\n\tend", 10: "\ufffd\uffff",
    }  # fmt: skip
    items = yesterday.items()
    for row, title in titles.items():
        items.loc[row, "title"] = title
    yesterday.write_items(items)
    began = time.monotonic()
    ended = yesterday.tonight("--show-users", "120")
    assert ended.code == 0, ended.err
    assert time.monotonic() - began < 60
    assert int(str(yesterday.last_run()["peak_memory_mib"])) < 1500
    served = yesterday.served()
    reasons = " ".join(reason or "" for reason in served["reason"].to_pylist())
    assert "\x00" not in reasons + ended.out
    assert "\u202e" not in ended.out
    assert max(map(len, ended.out.splitlines())) < 2000
    shown = yesterday.run("similar", "i01", "--json")
    assert shown.code == 0
    yesterday.assert_today_served()


@fault(19)
def test_a_lone_surrogate_is_dropped_from_a_frame_and_refused_in_a_file(yesterday: Shop) -> None:
    titles = ["\ud800x", *["y"] * 79]
    frame = yesterday.items().assign(title=pd.Series(titles, dtype=object))
    assert Dataset.from_frames(yesterday.events(), frame).catalogue["title"].iloc[0] == "x"
    raw = pa.array([t.encode("utf-8", "surrogatepass") for t in titles])
    table = pa.Table.from_pandas(yesterday.items())
    pq.write_table(table.set_column(1, "title", raw), yesterday.folder / "items.parquet")
    refused(yesterday, "items.parquet: cannot be read as a table")

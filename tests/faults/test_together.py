"""Two runs, readers during a run, the same run again, past dates, rollback and retention."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds

from serving.publish import ReleaseStore
from serving.retention import leftovers
from tests.faults.conftest import TODAY, YESTERDAY, Shop, dates
from tests.faults.matrix import fault
from tests.faults.nursery import Nursery
from tests.faults.served import assert_served_whole
from tests.faults.small import release, stage
from tests.faults.test_death import pause, wait_until_here
from tests.faults.test_disk import ENVIRONMENT, PROGRAM
from tests.test_registry import no_server


@fault(7)
def test_the_second_run_is_told_who_holds_the_lock_and_a_dead_one_frees_it(yesterday: Shop) -> None:
    words = yesterday.words("nightly", "--as-of", TODAY)
    pid = yesterday.nursery.start(words, first=pause("serving.score:Scorer.score"))
    wait_until_here(yesterday)
    second = subprocess.run([*PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert second.returncode == 75
    assert f"pid {pid} since 20" in second.stderr
    assert "a run is at work" in subprocess.run(
        [*PROGRAM, *yesterday.words("status")], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    yesterday.assert_yesterday_served()
    os.kill(pid, signal.SIGKILL)
    yesterday.nursery.wait()
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()


@fault(8)
def test_a_reader_during_publication_sees_one_run(tmp_path: Path, publishers: Nursery) -> None:
    first, _ = release(tmp_path / "out", "2024-01-01", "first")
    snippet = "from tests.faults.small import *\n"
    snippet += f"publish_for_ever(Path({str(tmp_path / 'out')!r}), 'n', Path({str(tmp_path / 'acks')!r}))"
    pid = publishers.start(first=snippet)
    seen: set[str] = set()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            folder = (tmp_path / "out" / "current").resolve()  # as a reader must: the link may move between two files
            read = ds.dataset([str(p) for p in sorted(folder.glob("part-*.parquet"))]).to_table()
            assert read.num_rows == 6
            runs = set(read["run_id"].to_pylist())
            assert len(runs) == 1
            seen |= runs
    finally:
        os.kill(pid, signal.SIGKILL)
        publishers.wait()
    assert len(seen) > 3
    assert_served_whole(tmp_path / "out", [first.name, *(tmp_path / "acks").read_text().split()])


@fault(9)
def test_the_same_night_again_does_nothing_and_made_anew_it_has_the_same_bytes(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    release_made = (yesterday.output / "current").resolve()
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in release_made.iterdir()}
    again = yesterday.tonight("--json")
    assert again.code == 0
    assert json.loads(again.out)["released"]["is_new"] is False
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in release_made.iterdir()} == before
    yesterday.assert_today_served()
    (yesterday.output / "current").unlink()
    shutil.rmtree(release_made)
    assert yesterday.tonight().code == 0
    for part in release_made.glob("part-*.parquet"):
        assert part.read_bytes() == before[part.name][0]
    yesterday.assert_today_served()


@fault(10)
def test_a_backfill_reads_only_events_before_its_date_and_leaves_current(yesterday: Shop) -> None:
    past = "2024-04-05"
    asked = ["--as-of", past, "--set", "serving.audit.data_max_hours=1e6", "--json"]
    made = json.loads(yesterday.run("score", *asked).out)
    assert (made["is_new"], made["moved"]) == (True, False)
    yesterday.assert_yesterday_served()
    events = yesterday.events()
    earlier = events[events["timestamp"] < pd.Timestamp(past, tz="UTC")]
    assert 0 < len(earlier) < len(events)
    yesterday.write_events(earlier)  # as the table was on that day
    again = json.loads(yesterday.run("score", *asked, "--set", f"serving.output={yesterday.folder}/other").out)
    paths = [Path(one["release"]) / "part-00000.parquet" for one in (made, again)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert json.loads(yesterday.run("score", *asked, "--move-current").out)["moved"]
    assert dates(yesterday.served()) == {past}


@fault(10)
def test_lists_as_of_a_day_to_come_leave_current(yesterday: Shop) -> None:
    ages = ["--set", "serving.audit.data_max_hours=1e6", "--set", "serving.audit.model_max_days=1e5"]
    made = json.loads(yesterday.run("score", "--as-of", "2093-01-01", *ages, "--json").out)
    assert (made["is_new"], made["moved"], made["is_early"]) == (True, False, True)
    yesterday.assert_yesterday_served()
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()


@fault(11)
def test_a_rollback_of_both_that_finds_the_registry_down_may_be_run_again(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    for _ in range(2):
        with no_server() as port:
            dead = ["--set", f"mlflow.tracking_uri=http://127.0.0.1:{port}", "--set", "mlflow.timeout_s=3"]
            assert yesterday.run("rollback", "--model", *dead).code == 6
        yesterday.assert_yesterday_served()
    again = yesterday.run("rollback", "--model")  # there was no other champion
    assert "no version was champion before" in again.err
    yesterday.assert_yesterday_served()


@fault(11)
def test_a_rollback_takes_under_a_second_and_later_nights_respect_it(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()
    began = time.monotonic()
    assert yesterday.run("rollback").code == 0
    assert time.monotonic() - began < 1
    yesterday.assert_yesterday_served()
    assert "pinned by a rollback" in yesterday.run("status").out
    assert yesterday.run("nightly", "--as-of", "2024-04-12T12:00", "--set", "rules.exclude_seen=false").code in (0, 4)
    yesterday.assert_yesterday_served()
    assert f"recsys rollback -c {yesterday.config} --unpin" in yesterday.run("status").out  # as it can be pasted
    assert yesterday.run("rollback", "--unpin").code == 0
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()


@fault(11)
def test_a_rollback_works_while_a_night_is_running_and_the_night_respects_it(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    with ReleaseStore(tmp_path).lock() as _:
        assert store.rollback() == first
    third, moved = release(tmp_path, "2024-01-03", "c")
    assert not moved
    assert (store.current(), store.previous()) == (first, second)
    store.unpin()
    assert store.publish(third)
    assert_served_whole(tmp_path, [first.name, second.name, third.name])


@fault(12)
def test_retention_spares_current_previous_pinned_and_aliased(yesterday: Shop) -> None:
    for day in range(1, 5):  # of a model version that no alias names
        release(yesterday.output, f"2024-03-0{day}", "old", version="77")
    named = yesterday.output / "releases" / "2024-03-02.old"
    (yesterday.output / "before-the-sale").symlink_to(Path("releases") / named.name)
    assert yesterday.tonight().code == 0
    back = json.loads(yesterday.run("rollback", "--json").out)
    assert (back["current"][:10], back["pinned"]) == (YESTERDAY, True)
    keep_two = ["--set", "serving.keep_releases=2"]
    told = yesterday.run("gc", *keep_two)
    listed = {Path(line.split(": ")[1]).name for line in told.out.splitlines()}
    assert listed == {"2024-03-01.old", "2024-03-03.old", "2024-03-04.old"}
    as_json = json.loads(yesterday.run("gc", *keep_two, "--json").out)
    assert {Path(path).name for path in as_json["would_delete"]} == listed
    assert len(ReleaseStore(yesterday.output).all()) == 6  # a dry run by default
    assert yesterday.run("gc", *keep_two, "--delete").code == 0
    left = {p.name[:10] for p in ReleaseStore(yesterday.output).all()}
    assert left == {"2024-03-02", YESTERDAY, TODAY}
    yesterday.assert_yesterday_served()


@fault(12)
def test_the_newest_release_of_each_aliased_version_stays_and_of_all_where_the_registry_is_down(tmp_path: Path) -> None:
    for day, version in enumerate("12123344", start=1):
        release(tmp_path, f"2024-01-{day:02d}", "r", version=version)
    store = ReleaseStore(tmp_path)

    def goes(aliased: set[str] | None) -> list[int]:
        return sorted(int(one.path.name[8:10]) for one in leftovers(store, 1, aliased))

    assert goes(set()) == [1, 2, 3, 4, 5, 6]  # 8 is current, 7 previous
    assert goes({"1", "3"}) == [1, 2, 4, 5]
    assert goes(None) == [1, 2, 5]
    assert_served_whole(tmp_path)


@fault(12)
def test_retention_while_a_night_runs_is_refused_and_takes_leftovers_after_it(yesterday: Shop) -> None:
    store = ReleaseStore(yesterday.output)
    with store.lock():
        stage(store, "2024-04-12", "dead")
        assert yesterday.run("gc").code == 0
        assert yesterday.run("gc", "--delete").code == 75
    assert yesterday.run("gc", "--delete").code == 0
    assert list(store.staging.iterdir()) == []
    yesterday.assert_yesterday_served()


@fault(12)
def test_refused_lists_go_when_newer_ones_fill_the_quarantine(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    store = ReleaseStore(tmp_path)
    for day in range(2, 6):
        with store.lock():
            store.quarantine(stage(store, f"2024-01-{day:02d}", "bad"))
    assert [one.path.name[:10] for one in leftovers(store, 3)] == ["2024-01-02"]
    assert_served_whole(tmp_path, [first.name])

"""Runs that are killed, stopped or out of time."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from serving.publish import ReleaseStore
from serving.retention import remove_leftovers
from tests.faults.conftest import Shop, dates
from tests.faults.matrix import fault
from tests.faults.nursery import Nursery, die_before_step
from tests.faults.served import assert_served_whole
from tests.faults.small import release

NO_LIMITS = ["--set", "serving.audit.data_max_hours=1e6", "--set", "serving.audit.model_max_days=1e6"]
IN_PYTHON = "import time; time.sleep(60)"
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # one call that never looks at signals


def pause(function: str, work: str = IN_PYTHON, calls: int = 1) -> str:
    """A snippet: the n-th call of a function of ours says "here" and never comes back."""
    module, name = function.split(":")
    return f"""
import importlib, sys
owner = importlib.import_module({module!r})
*path, last = {name!r}.split(".")
for part in path:
    owner = getattr(owner, part)
real, seen = getattr(owner, last), 0
def paused(*args, **kwargs):
    global seen
    seen += 1
    if seen == {calls}:
        print("here", file=sys.stderr, flush=True)
        {work}
    return real(*args, **kwargs)
setattr(owner, last, paused)
"""


def wait_until_here(shop: Shop) -> None:
    until = time.monotonic() + 60
    while "here" not in (shop.nursery.folder / "err").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


@fault(1)
def test_death_at_every_step_of_publication(tmp_path: Path, publishers: Nursery) -> None:
    output, deaths = tmp_path / "out", 0
    first, _ = release(output, "2024-01-01", "first")
    for step in range(1, 200):
        snippet = die_before_step(step, output) + _published(output, f"r{step}")
        code = publishers.run(first=snippet).code
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert_served_whole(output, [first.name])
        again, moved = release(output, "2024-01-02", f"r{step}")
        assert moved
        assert ReleaseStore(output).current() == again
        assert_served_whole(output, [first.name, again.name])
        remove_leftovers(ReleaseStore(output), keep=2)
        first = again
    assert 25 < deaths < 199  # the last publisher ran through, so every step was tried


@fault(1)
def test_150_kills_at_any_moment_of_publication(tmp_path: Path, publishers: Nursery) -> None:
    kill_publishers(tmp_path, publishers, 150)


@fault(1)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_1000_kills_at_any_moment_of_publication(tmp_path: Path, publishers: Nursery) -> None:
    kill_publishers(tmp_path, publishers, 1000)


def kill_publishers(tmp_path: Path, publishers: Nursery, n_kills: int) -> None:
    output, acks, rng = tmp_path / "out", tmp_path / "acks", random.Random(0)
    release(output, "2024-01-01", "first")
    latest, n_acknowledged = 0.06, 0
    for number in range(n_kills):
        acks.write_text("")
        pid = publishers.start(first=_publishing(output, f"n{number}", acks))
        time.sleep(rng.uniform(0.005, latest))
        os.kill(pid, signal.SIGKILL)
        assert publishers.wait().code == -signal.SIGKILL
        acknowledged = acks.read_text().split()
        n_acknowledged += len(acknowledged)
        latest = max(0.06, latest * (0.9 if acknowledged else 1.2))  # a busy machine publishes slower, dies later
        assert_served_whole(output, acknowledged)
        remove_leftovers(ReleaseStore(output), keep=2)
    assert n_acknowledged > n_kills / 2  # publications did run
    healed, _ = release(output, "2024-02-01", "heals")
    assert ReleaseStore(output).current() == healed
    assert_served_whole(output, [healed.name])


def _published(output: Path, run: str) -> str:
    return f"\nfrom tests.faults.small import *\nrelease(Path({str(output)!r}), '2024-01-02', {run!r})\n"


def _publishing(output: Path, name: str, acks: Path) -> str:
    return f"from tests.faults.small import *\npublish_for_ever(Path({str(output)!r}), {name!r}, Path({str(acks)!r}))\n"


@fault(1)
def test_20_kills_at_any_moment_of_a_night(yesterday: Shop) -> None:
    kill_nights(yesterday, 20)


@fault(1)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_300_kills_at_any_moment_of_a_night(yesterday: Shop) -> None:
    kill_nights(yesterday, 300)


def kill_nights(shop: Shop, n_kills: int) -> None:
    rng = random.Random(0)
    words = ["--train", "never", *NO_LIMITS, "--set", "serving.users_per_shard=20"]
    for number in range(n_kills):
        date = f"{2025 + number // 300}-{1 + number % 12:02d}-{1 + number // 12 % 25:02d}"
        pid = shop.nursery.start(shop.words("nightly", "--as-of", date, *words))
        time.sleep(rng.uniform(0.0, 0.5))
        os.kill(pid, signal.SIGKILL)
        assert shop.nursery.wait().code in (-signal.SIGKILL, 0)
        shop.served()
        if number % 5 == 4:
            ended = shop.run("nightly", "--as-of", date, *words, "--move-current")
            assert ended.code == 0, ended.err
            assert dates(shop.served()) == {date}
            remove_leftovers(ReleaseStore(shop.output), keep=2)
            shop.acknowledged = []


@fault(1)
def test_death_at_every_seventh_step_of_a_night_is_shown_and_the_rerun_publishes(yesterday: Shop) -> None:
    die_in_nights(yesterday, every=7)


@fault(1)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_death_at_every_step_of_a_night(yesterday: Shop) -> None:
    die_in_nights(yesterday, every=1)


def die_in_nights(shop: Shop, every: int) -> None:
    for step in range(1, 400, every):
        night = ["--as-of", f"{2025 + step // 300}-{1 + step % 12:02d}-{1 + step // 12 % 25:02d}", "--train", "never"]
        night += [*NO_LIMITS, "--move-current"]
        ended = shop.run("nightly", *night, first=die_before_step(step, shop.output))
        shop.served()
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        if step > 12:  # the record of a run is there from about then on
            assert "killed" in shop.run("status").out
        assert shop.run("nightly", *night).code == 0
        assert dates(shop.served()) == {night[1]}
    assert 30 < step < 399


@fault(2)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "place",
    ["features.ingest:read_table", "serving.score:Scorer.score", "serving.publish:ReleaseStore.finish"],
    ids=["reading", "scoring", "publishing"],
)
def test_a_signal_ends_the_night_in_five_seconds_and_the_next_goes_on(
    yesterday: Shop, place: str, number: signal.Signals, code: int
) -> None:
    pid = yesterday.nursery.start(yesterday.words("nightly", "--as-of", "2024-04-12"), first=pause(place))
    wait_until_here(yesterday)
    stop(yesterday, pid, number, code)
    assert yesterday.last_run()["outcome"] == "stopped"
    assert yesterday.tonight().code == 0
    yesterday.assert_today_served()


@fault(2)
def test_a_signal_during_one_long_call_into_c_ends_the_night_too(yesterday: Shop) -> None:
    first = pause("serving.score:Scorer.score", IN_C)
    pid = yesterday.nursery.start(yesterday.words("nightly", "--as-of", "2024-04-12"), first=first)
    wait_until_here(yesterday)
    stop(yesterday, pid, signal.SIGTERM, 143)


@fault(2)
def test_a_signal_during_training_leaves_the_champion(yesterday: Shop) -> None:
    words = yesterday.words("nightly", "--as-of", "2024-04-12", "--train", "always")
    pid = yesterday.nursery.start(words, first=pause("training.pipeline:fit_ranker"))
    wait_until_here(yesterday)
    stop(yesterday, pid, signal.SIGTERM, 143)
    assert "champion is version 1" in yesterday.run("status").out


def stop(shop: Shop, pid: int, number: signal.Signals, code: int) -> None:
    began = time.monotonic()
    os.kill(pid, number)
    ended = shop.nursery.wait()
    assert time.monotonic() - began < 5
    assert ended.code == code
    assert "recsys: stopped" in ended.err
    shop.assert_yesterday_served()
    with ReleaseStore(shop.output).lock():
        pass


@fault(33)
def test_past_the_deadline_finished_shards_wait_for_the_next_run(yesterday: Shop) -> None:
    words = ["--set", "serving.users_per_shard=30"]
    ended = yesterday.tonight("--deadline", "2s", *words, first=pause("serving.score:Scorer.score", calls=3))
    assert ended.code == 124
    assert "deadline" in ended.err
    yesterday.assert_yesterday_served()
    assert "goes on where it stopped" in yesterday.run("status").out
    again = yesterday.tonight(*words)
    assert again.code == 0
    assert "2 of 4 shards kept" in again.err
    yesterday.assert_today_served()

"""What goes by age, what stays, and that nothing is reached through a link."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from features.text import VectorCache, pooled_vectors
from recsys.cli import cli
from recsys.config import Config, parse_config
from recsys.text_tower import TextTower
from serving.publish import ReleaseStore
from serving.retention import DEAD_DAYS, RECORD_DAYS, UNUSED_DAYS, aliased_in, leftovers, remove_leftovers
from tests.faults.small import release, stage
from training.model import Model

VECTORS = f"cache/{'c' * 32}.safetensors"
CHECKPOINT = f"checkpoints/text-{'d' * 24}.safetensors"
RERUN = f"compare/reruns/{'e' * 12}-{'f' * 12}-20000-d6e68c8b9b65-changes"
RUN = "runs/2024-01-01T030000.123456Z.0123abcd.json"
COPY = "models/" + "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "out")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / ".recsys" / "cache"


def aged(path: Path, days: float) -> Path:
    """A file, or a folder with one where the name has no ending, last written so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_text("{}")
    else:
        (path / "text").mkdir(parents=True)
        (path / "text" / "weights").write_bytes(b"1234567")
    set_age(path, days)
    return path


def set_age(path: Path, days: float) -> None:
    then = time.time() - 86_400 * days
    for one in (path, *path.rglob("*")):
        os.utime(one, (then, then))


def kept_release(store: ReleaseStore, model_sha256: str) -> Path:
    with store.lock():
        model = {"version": "1", "sha256": model_sha256}
        done = store.finish(stage(store, "2024-01-02", "a"), {"run_date": "2024-01-02", "key": {}, "model": model})
        store.publish(done)
    return done


def going(store: ReleaseStore, cache: Path, aliased: Collection[str] | None = ()) -> list[Path]:
    return [one.path for one in leftovers(store, 5, aliased, cache)]


def test_what_is_no_release_is_neither_deleted_nor_counted_as_one(store: ReleaseStore, tmp_path: Path) -> None:
    """A copy that somebody kept beside the releases went in their place, or kept one of them from its place."""
    releases = [release(store.output, f"2024-01-0{day}", "a")[0] for day in range(1, 5)]
    shutil.copytree(releases[0], store.releases / "kept.of-january")
    (store.releases / "read.me").write_text("mine")
    assert [one.path for one in leftovers(store, 2)] == [releases[1], releases[0]]


def test_a_deletion_that_dies_leaves_no_half_release(store: ReleaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = [release(store.output, f"2024-01-0{day}", "a")[0] for day in range(1, 4)]

    def dies(path: Path, **_: object) -> None:
        next(path.glob("*.parquet")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("serving.retention.shutil.rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            remove_leftovers(store, 1)
    assert store.all() == releases[1:]
    assert [one.path.parent for one in remove_leftovers(store, 1)] == [store.staging]
    assert list(store.staging.iterdir()) == []


def test_what_a_rollback_that_died_was_going_to_stays(store: ReleaseStore) -> None:
    """Between its two moves both links lead to the newest release; the pin alone names the other."""
    first, second = (release(store.output, f"2024-01-0{day}", "a")[0] for day in (1, 2))
    store.pin.write_text(first.name)
    store._point("previous", second)
    assert leftovers(store, 1) == []
    assert store.rollback() == first


@pytest.mark.parametrize(
    ("place", "days"),
    [
        ("out/quarantine/2024-01-01.parquet", RECORD_DAYS),
        (f"out/quarantine/.2024-01-01.parquet.{'0' * 32}.tmp", DEAD_DAYS),
        (f"out/runs/.2024-01-01T000000.000000Z.{'0' * 8}.json.{'0' * 32}.tmp", DEAD_DAYS),
        (f"out/compare/reruns/.{'a' * 12}.json.{'0' * 32}.tmp", DEAD_DAYS),
        (f".recsys/models/.champion.recsys.json.{'0' * 32}.tmp", DEAD_DAYS),
        (f"out/{RERUN}.json", UNUSED_DAYS),
        (f"out/{RERUN}.parquet", UNUSED_DAYS + 1),
        (f"out/{RUN}", RECORD_DAYS),
        (f".recsys/{VECTORS}", UNUSED_DAYS),
        (f".recsys/cache/.{'c' * 32}.safetensors.{'0' * 32}.tmp", DEAD_DAYS),
        (f".recsys/{CHECKPOINT}", DEAD_DAYS),
        (f".recsys/checkpoints/.text-{'d' * 24}.safetensors.{'0' * 32}.tmp", DEAD_DAYS),
        (".recsys/checkpoints/bundle-soa9ka6m", DEAD_DAYS),
        (".recsys/tune/0123456789ab", UNUSED_DAYS),
        (".recsys/models/.fetch-soa9ka6m", DEAD_DAYS),
        (f".recsys/{COPY}", UNUSED_DAYS),
    ],
)
class TestByAge:
    def test_the_old_goes_and_the_young_stays(
        self, store: ReleaseStore, cache: Path, tmp_path: Path, place: str, days: int
    ) -> None:
        path = aged(tmp_path / place, days + 0.1)
        (found,) = leftovers(store, 5, (), cache)
        assert (found.path, f"untouched for {days} day" in found.why) == (path, True)
        assert found.n_bytes == sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file()) > 0
        assert path.exists()  # only listed
        assert [one.path for one in remove_leftovers(store, 5, (), cache)] == [path]
        assert not path.exists()
        aged(path, days - 0.1)
        assert remove_leftovers(store, 5, (), cache) == []
        assert path.exists()

    def test_a_folder_is_as_young_as_the_youngest_thing_in_it(
        self, store: ReleaseStore, cache: Path, tmp_path: Path, place: str, days: int
    ) -> None:
        path = aged(tmp_path / place, days + 9)
        for inside in path.rglob("weights"):
            os.utime(inside)
        assert going(store, cache) == ([] if path.is_dir() else [path])

    def test_nothing_is_reached_through_a_link(
        self, store: ReleaseStore, cache: Path, tmp_path: Path, place: str, days: int
    ) -> None:
        path, elsewhere = tmp_path / place, tmp_path / "elsewhere"
        there = aged(elsewhere / path.name, 999)
        path.parent.mkdir(parents=True)
        path.symlink_to(there)  # the thing itself
        assert remove_leftovers(store, 5, (), cache) == []
        path.unlink()
        path.parent.rmdir()
        path.parent.symlink_to(elsewhere)  # its folder
        assert remove_leftovers(store, 5, (), cache) == []
        assert there.exists()


def test_what_a_link_in_a_folder_leads_to_neither_goes_nor_counts(
    store: ReleaseStore, cache: Path, tmp_path: Path
) -> None:
    copy, treasure = aged(cache.parent / COPY, 99), aged(tmp_path / "treasure", 0)
    (copy / "link").symlink_to(treasure)
    os.utime(copy / "link", (0, 0), follow_symlinks=False)
    os.utime(copy, (0, 0))
    (found,) = remove_leftovers(store, 5, (), cache)
    assert (found.path, copy.exists()) == (copy, False)
    assert (treasure / "text" / "weights").exists()


@pytest.mark.parametrize(
    "place",
    [
        "out/quarantine/notes.parquet", "out/runs/notes.json", "out/compare/1-2/report.json", "out/compare/reruns/my.json",
        "out/report.html", ".recsys/models/champion.0123456789ab.json", ".recsys/models/mine", f".recsys/models/{'a' * 64}.json",
        ".recsys/cache/mine.safetensors", ".recsys/checkpoints/mine.safetensors", ".recsys/tune/best.toml",
        ".recsys/tune/my-search", "models/" + "b" * 64, "mlartifacts/recsys/bundle", "mlflow.db",
    ],
)  # fmt: skip
def test_what_is_not_ours_stays_at_any_age(store: ReleaseStore, cache: Path, tmp_path: Path, place: str) -> None:
    aged(tmp_path / place, 9999)
    assert going(store, cache) == []


def test_a_copy_stays_that_an_alias_a_kept_release_or_a_record_names(
    store: ReleaseStore, cache: Path, tmp_path: Path
) -> None:
    copies = {letter: aged(cache.parent / "models" / (letter * 64), 99) for letter in "abcdef"}
    kept_release(store, "b" * 64)
    for name, letter, days in (("champion", "c", 999), ("7", "d", 29), ("6", "e", 31)):
        record = aged(cache.parent / "models" / f"{name}.0123456789ab.json", 0)
        record.write_text(json.dumps({"sha256": letter * 64}))
        set_age(record, days)
    aged(cache.parent / "models" / "broken.json", 0).write_text('["no record"]')
    assert going(store, cache, {"1", "a" * 64}) == [copies["e"], copies["f"]]
    assert going(store, cache, None) == []  # the registry is down: who knows what it names


def test_the_newest_record_of_each_command_and_outcome_stays(store: ReleaseStore, cache: Path) -> None:
    names = []
    for day, (command, outcome) in enumerate(
        [("nightly", "done"), ("nightly", "failed"), ("nightly", "done"), ("tune", "done"), ("tune", "done")], start=1
    ):
        path = aged(store.output / "runs" / f"2024-01-0{day}T030000.123456Z.0123abcd.json", 0)
        path.write_text(json.dumps({"command": command, "outcome": outcome}))
        set_age(path, 200)
        names.append(path)
    assert going(store, cache) == [names[0], names[3]]


def test_lists_never_lose_what_vouches_for_them_later(store: ReleaseStore, cache: Path) -> None:
    """The one that is read first goes first: `train_again` believes it."""
    pair = [aged(store.output / f"{RERUN}.{kind}", 40) for kind in ("parquet", "json")]
    assert going(store, cache) == pair[::-1]
    os.utime(pair[1])
    set_age(pair[0], UNUSED_DAYS + 0.5)  # written seconds before the other, half a day over the limit of that one
    assert going(store, cache) == []


def test_a_model_that_is_loaded_and_vectors_that_are_read_count_as_used(
    store: ReleaseStore, cache: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, data = TextTower.from_encoder(str(tiny_encoder)), {"events": "e", "items": "i", "event_weights": {"buy": 1}}
    config = parse_config({"data": data, "text": {"cache": str(cache)}})
    vectors = pooled_vectors(tower, ["tea", "oil"], config.text.cache)
    file = VectorCache(cache, tower.encoder_sha256()).path
    set_age(file, 99)
    assert going(store, cache) == [file]
    np.testing.assert_array_equal(pooled_vectors(tower, ["oil"], config.text.cache), vectors[1:])
    assert going(store, cache) == []

    copy = aged(cache.parent / COPY, 99)
    with pytest.raises(FileNotFoundError):  # no manifest, no model: nothing to mark either
        Model.load(copy)
    (copy / "manifest.json").write_text("{}")
    set_age(copy, 99)
    assert going(store, cache) == [copy]
    with pytest.raises(FileNotFoundError):
        Model.load(copy)  # of a copy this test did not fill: it is marked before anything is read
    assert going(store, cache) == []


def test_two_shops_may_clean_one_cache_at_the_same_time(
    store: ReleaseStore, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, other = aged(cache.parent / COPY, 99), aged(cache.parent / VECTORS, 99)
    unlink = os.unlink

    def late(path: str | Path, **where: int) -> None:
        unlink(path, **where)
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", late)
    assert {one.path for one in remove_leftovers(store, 5, (), cache)} == {copy, other}
    assert not copy.exists()
    assert not other.exists()


@pytest.fixture
def gc(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "recsys.toml").write_text(
        '[data]\nevents = "e"\nitems = "i"\nevent_weights = { buy = 1 }\n[mlflow]\ntracking_uri = "file:/none"\n'
        '[serving]\noutput = "out"\n'
    )
    return lambda *words: CliRunner().invoke(cli, ["gc", "-c", str(tmp_path / "recsys.toml"), *words])


def test_the_listing_says_size_and_reason_and_only_delete_deletes(
    gc: Callable[..., Result], store: ReleaseStore, cache: Path
) -> None:
    old, copy = aged(cache.parent / "models/.fetch-x", 3), aged(cache.parent / COPY, 99)
    told = gc()
    assert told.stdout == f"would delete (run with --delete): {old}: 7 bytes, a download cut off, untouched for 1 day\n"
    assert "every copy of a model" in told.stderr  # the registry is down
    assert json.loads(gc("--json").stdout) == {
        "would_delete": [str(old)],
        "leftovers": [{"path": str(old), "bytes": 7, "why": "a download cut off, untouched for 1 day"}],
    }
    assert old.exists()
    assert gc("--delete").stdout.startswith(f"deleted: {old}: 7 bytes")
    assert not old.exists()
    assert copy.exists()
    assert gc("--delete").stdout == "nothing to delete\n"


def test_a_disk_that_keeps_the_registry_from_answering_does_not_keep_room_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.errors import ResourceError
    from recsys.registry import Registry

    def full(_: Registry) -> None:
        raise ResourceError("mlflow.db: no space left on device")

    monkeypatch.setattr(Registry, "versions", full)
    config: Config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}})
    assert aliased_in(config) is None


def test_an_undo_while_retention_looks_around_leaves_names_to_what_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, 5):
        release(tmp_path, f"2024-01-0{day}", "a", version="1")
    store, real = ReleaseStore(tmp_path), Path.readlink
    store.rollback()
    for day in range(5, 7):  # beside what is pinned
        release(tmp_path, f"2024-01-0{day}", "a", version="2")
    undo = threading.Thread(target=ReleaseStore(tmp_path).undo)

    def slow(link: Path) -> Path:
        target = real(link)
        if threading.current_thread() is threading.main_thread() and undo.ident is None and store.is_locked:
            undo.start()
            undo.join(0.2)
        return target

    with store.lock():
        monkeypatch.setattr(Path, "readlink", slow)
        remove_leftovers(store, keep=2)
    undo.join()
    assert (store.current(), store.previous()) == (store.releases / "2024-01-04.a", store.releases / "2024-01-03.a")
    assert all(store.is_whole(store.releases / f"2024-01-0{day}.a") for day in (3, 4))

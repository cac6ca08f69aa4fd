import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from recsys.cli import cli
from recsys.errors import ConfigError, ModelError, ResourceError
from serving import releases
from serving.publish import ReleaseStore
from serving.retention import leftovers
from tests.faults.served import assert_served_whole
from tests.faults.small import damage, release, stage

ROOT = Path(__file__).parents[2]


def test_current_moves_and_previous_stays(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, moved = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    assert moved
    assert (store.current(), store.previous()) == (second, first)
    assert os.readlink(tmp_path / "current") == "releases/2024-01-02.b"  # noqa: PTH115 - relative: the folder may move
    assert sorted(p.name for p in second.iterdir()) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert_served_whole(tmp_path)


def test_the_manifest_counts_and_keeps_what_it_is_given(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    manifest = releases.manifest(done)
    assert (manifest["rows"], manifest["users"]) == (6, 2)
    assert manifest["schema"] == {"user_id": "int64", "run_id": "string"}
    assert list(manifest["parts"]) == ["part-00000.parquet", "part-00001.parquet"]
    assert manifest["key"] == {"run": "a"}


@pytest.mark.parametrize(
    "wrong", [{"model": None}, {"rows": "x"}, {"users": None}, {"run_date": 5}, {"made": "soon"}, {"made": None}]
)
def test_a_manifest_that_says_what_none_says_is_refused_by_name(tmp_path: Path, wrong: dict[str, object]) -> None:
    done, _ = release(tmp_path, "2024-01-02", "a")
    content = {**releases.manifest(done), **wrong}
    (done / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ResourceError, match=f"{next(iter(wrong))} is .*score this date again"):
        releases.made_hours_ago(done)


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-02", "a")
    (done / "part-00001.parquet").unlink()
    os.mkfifo(done / "part-00001.parquet")
    with pytest.raises(ResourceError, match=r"part-00001\.parquet: missing"):
        releases.verify(done)
    (done / "manifest.json").unlink()
    os.mkfifo(done / "manifest.json")
    with pytest.raises(ResourceError, match="it is no file"):
        releases.verify(done)


def test_publishing_needs_no_heavy_library() -> None:
    heavy = "{'torch', 'mlflow', 'transformers', 'lightgbm', 'implicit', 'pandas'}"
    code = f"import serving.publish, sys; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_disk_too_small_is_refused_with_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReleaseStore(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_999))
    store.check_space(999)
    with pytest.raises(ResourceError, match=r"needs 2,000 bytes, 1,999 are free"):
        store.check_space(1_000)


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00001.parquet"])
def test_a_missing_part_and_a_stray_part_are_named(tmp_path: Path, name: str) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    (done / name).rename(done / "part-00009.parquet")
    with pytest.raises(ResourceError, match=rf"{name}: missing"):
        releases.read(done)
    shutil.copy(done / "part-00009.parquet", done / name)
    with pytest.raises(ResourceError, match=r"part-00009\.parquet: not in the manifest"):
        releases.read(done)


@pytest.mark.parametrize("text", ["[]", "{}", '{"parts": {}}', '{"parts": ["part-00000.parquet"]}'])
def test_a_manifest_that_names_no_parts_is_none(tmp_path: Path, text: str) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    (done / "manifest.json").write_text(text)
    with pytest.raises(ResourceError, match=r"manifest\.json: names no parts; score this date again"):
        releases.manifest(done)


def test_a_release_of_an_earlier_revision_is_as_old_as_its_manifest(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    assert releases.made_hours_ago(done) < 1
    content = releases.manifest(done)
    del content["made"]
    (done / "manifest.json").write_text(json.dumps(content))
    os.utime(done / "manifest.json", (time.time() - 7200,) * 2)
    assert releases.made_hours_ago(done) == pytest.approx(2, abs=0.1)


def test_a_part_damaged_before_the_audit_or_after_it_is_never_released(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    with store.lock():
        staging = stage(store, "2024-01-01", "a")
        damage(staging / "part-00000.parquet")
        with pytest.raises(ResourceError, match=r"part-00000\.parquet"):
            store.finish(staging, {})
        (staging / "part-00000.parquet").write_bytes(b"")
        with pytest.raises(ResourceError, match=r"part-00000\.parquet: cannot be read back"):
            list(releases.each_part(staging))
    assert list(store.releases.iterdir()) == []


def test_nothing_scored_is_no_release(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    with store.lock(), pytest.raises(ResourceError, match="holds 0 parts"):
        store.finish(store.begin("2024-01-01", "a"), {})


def test_parts_of_a_dead_run_are_reused_only_with_the_same_key_and_hash(tmp_path: Path) -> None:
    store, key = ReleaseStore(tmp_path), {"data": "1"}
    with store.lock():
        staging = store.begin("2024-01-01", "a", key)
        for part in range(3):
            releases.write_part(staging, part, pa.table({"user_id": [part]}))
    damage(staging / "part-00001.parquet")
    with store.lock():
        (staging / ".part-00002.parquet.0f.tmp").write_bytes(b"half a part")
        assert store.begin("2024-01-01", "a", key) == staging
        assert not list(staging.glob(".*.tmp"))
        assert [store.staged_part(staging, n) is not None for n in range(4)] == [True, False, True, False]
        releases.write_part(staging, 1, pa.table({"user_id": [1]}))
        assert pa.concat_tables(releases.each_part(staging))["user_id"].to_pylist() == [0, 1, 2]
        store.begin("2024-01-01", "a", {"data": "2"})
        assert store.staged_part(staging, 0) is None
        store.begin("2024-01-01", "a")
        releases.write_part(staging, 0, pa.table({"user_id": [0]}))
        store.begin("2024-01-01", "a")  # without a key nothing is known of what lies there
        assert store.staged_part(staging, 0) is None


def test_rollback_without_an_earlier_or_to_a_damaged_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no earlier release"):
        ReleaseStore(tmp_path / "never").rollback()
    first, _ = release(tmp_path, "2024-01-01", "a")
    store = ReleaseStore(tmp_path)
    with pytest.raises(ConfigError, match="no earlier release"):
        store.rollback()
    second, _ = release(tmp_path, "2024-01-02", "b")
    damage(first / "part-00000.parquet")
    with pytest.raises(ResourceError, match=r"2024-01-01\.a/part-00000\.parquet"):
        store.rollback()
    store._point("previous", second)  # as a publication leaves it that died between its two moves
    with pytest.raises(ConfigError, match="no earlier release"):
        store.rollback()
    assert store.current() == second
    assert not store.is_pinned


def test_a_rollback_that_died_between_its_two_moves_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    moves: list[str] = []

    def only_one(self: ReleaseStore, name: str, to: Path) -> None:
        if moves:
            raise KeyboardInterrupt
        moves.append(name)
        point(self, name, to)

    point = ReleaseStore._point
    with monkeypatch.context() as patch:
        patch.setattr(ReleaseStore, "_point", only_one)
        with pytest.raises(KeyboardInterrupt):
            store.rollback()
    assert store.current() == second
    assert store.rollback() == first
    assert (store.current(), store.previous()) == (first, second)


def test_a_second_rollback_does_not_bring_back_what_the_first_took_away(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    assert store.rollback() == store.rollback() == store.current() == first
    assert store.unpin()
    assert not store.unpin()
    with pytest.raises(ConfigError, match="no earlier release"):
        store.rollback()
    assert store.current() == first
    third, _ = release(tmp_path, "2024-01-03", "c")
    assert store.current() == third
    assert store.rollback() == first


def test_unpinning_a_rollback_that_died_before_its_moves_leaves_the_way_back(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    store.pin.write_text(first.name)
    assert store.unpin()
    assert (store.current(), store.previous(), store.is_pinned) == (second, first, False)
    assert store.rollback() == first


def test_a_rollback_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    with pytest.raises(ConfigError, match="no rollback holds current"):
        store.undo()
    store.rollback()
    assert store.undo() == second
    assert (store.current(), store.previous(), store.is_pinned) == (second, first, False)
    assert store.rollback() == first


@pytest.mark.parametrize("moves", [1, 2])
def test_undoing_a_rollback_goes_on_where_it_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    store.rollback()
    point, done = ReleaseStore._point, []

    def only_some(self: ReleaseStore, name: str, to: Path) -> None:
        point(self, name, to)
        done.append(name)
        if len(done) == moves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReleaseStore, "_point", only_some)
        with pytest.raises(KeyboardInterrupt):
            store.undo()
    assert store.undo() == store.current() == second
    assert (store.previous(), store.is_pinned) == (first, False)


def test_a_copy_that_followed_links_is_told_before_any_work_and_mended_as_told(tmp_path: Path) -> None:
    """Its status was that nothing is published, and each night ended after its scoring with: Is a directory."""
    release(tmp_path / "old", "2024-01-01", "a")
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=False)
    store = ReleaseStore(tmp_path / "new")
    with pytest.raises(ResourceError, match=r"current: a folder, no link .*remove it"), store.lock():
        pytest.fail("no work may begin")
    shutil.rmtree(tmp_path / "new" / "current")
    _, moved = release(tmp_path / "new", "2024-01-02", "b")
    assert moved
    assert_served_whole(tmp_path / "new")


def test_a_backfill_does_not_move_current_unless_asked(tmp_path: Path) -> None:
    newest, _ = release(tmp_path, "2024-01-05", "a")
    past, moved = release(tmp_path, "2024-01-01", "b")
    assert not moved
    assert ReleaseStore(tmp_path).current() == newest
    assert release(tmp_path, "2024-01-01", "b", allow_backfill=True) == (past, True)


def test_the_same_parts_again_leave_the_same_bytes(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in done.iterdir()}
    assert ReleaseStore(tmp_path).find({"run": "a"}) == done
    assert release(tmp_path, "2024-01-01", "a") == (done, True)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in done.iterdir()} == before
    assert ReleaseStore(tmp_path).previous() is None


def test_other_parts_of_the_same_name_take_the_next_and_leave_the_first_as_it_is(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    before = (first / "manifest.json").read_bytes()
    store = ReleaseStore(tmp_path)
    with store.lock():
        staging = stage(store, "2024-01-01", "a")
        releases.write_part(staging, 1, pa.table({"user_id": [9], "run_id": ["a"]}))
        other = store.finish(staging, {"key": {}, "run_date": "2024-01-01", "model": {"version": "1"}})
    assert (other.name, (first / "manifest.json").read_bytes()) == ("2024-01-01.a.2", before)
    assert releases.read(other)["user_id"].to_pylist() == [0, 0, 0, 9]


def test_a_damaged_release_is_replaced_beside_it_and_never_becomes_previous(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    damage(second / "part-00000.parquet")
    store = ReleaseStore(tmp_path)
    assert store.find({"run": "b"}) is None
    assert store.last_whole() is None
    again, moved = release(tmp_path, "2024-01-02", "b")
    assert (again.name, moved) == ("2024-01-02.b.2", True)
    assert (store.current(), store.previous()) == (again, first)
    assert store.find({"run": "b"}) == again
    assert store.last_whole() == again
    shutil.rmtree(second)
    assert_served_whole(tmp_path)


def test_refused_lists_move_to_quarantine(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    for _ in range(2):
        with store.lock():
            kept = store.quarantine(stage(store, "2024-01-01", "a"))
    assert kept == tmp_path / "quarantine" / "2024-01-01.a"
    assert sorted(p.name for p in kept.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]
    assert leftovers(store, keep=1) == []


def test_a_rollback_by_hand_says_what_it_did_and_does_no_more_when_run_twice(tmp_path: Path) -> None:
    (tmp_path / "recsys.toml").write_text('[data]\nevents = "e"\nitems = "i"\nevent_weights = { buy = 1 }\n')

    def roll(*words: str) -> Result:
        return CliRunner().invoke(cli, ["rollback", *words, "-c", str(tmp_path / "recsys.toml")])

    assert roll("--unpin").output == "nothing is pinned\n"  # nor is there a folder
    first, _ = release(tmp_path / "out", "2024-01-01", "a")
    alone = roll("--model")  # lists that cannot go back keep no model from it
    assert "lists stay: " in alone.output
    assert isinstance(alone.exception, ModelError)
    release(tmp_path / "out", "2024-01-02", "b")
    assert "current is now 2024-01-01.a, pinned" in roll().output
    again = roll()
    assert "current is 2024-01-01.a already, pinned by a rollback" in again.output
    assert ReleaseStore(tmp_path / "out").current() == first
    assert "current is 2024-01-02.b again, not pinned" in roll("--undo").output
    assert isinstance(roll("--undo", "--model").exception, ConfigError)

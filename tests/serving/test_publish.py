import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from recsys.errors import AlreadyRunningError, ResourceError
from serving.publish import ReleaseStore

ROOT = Path(__file__).parents[2]

# One process imports once, then forks a publisher per line it reads: "OUT STEP". STEP 0 publishes for ever; STEP n
# dies by SIGKILL just before its n-th change to the file system.
NURSERY = """
import os, signal, sys
import concurrent.futures.thread, pandas  # what pyarrow and we load late: once, not per child
from pathlib import Path
import pyarrow as pa
from serving.publish import ReleaseStore

def release(output, date, run):
    store = ReleaseStore(output)
    with store.lock():
        staging = store.begin(date, run)
        for part in range(2):
            store.write_part(staging, part, pa.table({"user_id": [part] * 3, "run_id": [run] * 3}))
        store.publish(store.finish(staging, {"key": {"run": run}, "run_date": date, "model": {"version": "1"}}))

def die_at(step, output):
    changes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "open"}
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event not in changes or str(output) not in str(args):
            return  # an import, or the kill itself
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def child(output, step):
    if step:
        die_at(step, output)
        release(output, "2024-01-02", f"r{step}")
        return
    for n in range(100_000):
        release(output, "2024-01-02", f"r{os.getpid()}x{n}")

for line in sys.stdin:
    output, step = line.split()
    pid = os.fork()
    if pid == 0:
        child(Path(output), int(step))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, output: Path, step: int) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{output} {step}\n")
        self.process.stdin.flush()
        return self._number()

    def exit_code(self) -> int:
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NURSERY]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Nursery(process)
        process.kill()


def stage(store: ReleaseStore, date: str, run: str) -> Path:
    staging = store.begin(date, run)
    for part in range(2):
        store.write_part(staging, part, pa.table({"user_id": [part] * 3, "run_id": [run] * 3}))
    return staging


def release(output: Path, date: str, run: str, **publish: bool) -> tuple[Path, bool]:
    store = ReleaseStore(output)
    with store.lock():
        done = store.finish(stage(store, date, run), {"key": {"run": run}, "run_date": date, "model": {"version": "1"}})
        return done, store.publish(done, **publish)


def assert_readers_safe(output: Path) -> None:
    """What a reader of `current` gets is one complete, verified release."""
    store = ReleaseStore(output)
    current = store.current()
    assert current is not None
    table = store.read(current)
    assert table.num_rows == store.manifest(current)["rows"] == 6
    assert table["run_id"].unique().to_pylist() == [current.name.split(".")[1]]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_current_moves_and_previous_stays(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, moved = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    assert moved
    assert (store.current(), store.previous()) == (second, first)
    assert os.readlink(tmp_path / "current") == "releases/2024-01-02.b"  # noqa: PTH115 - relative: the folder may move
    assert sorted(p.name for p in second.iterdir()) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert_readers_safe(tmp_path)


def test_the_manifest_counts_and_keeps_what_it_is_given(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    manifest = ReleaseStore(tmp_path).manifest(done)
    assert (manifest["rows"], manifest["users"]) == (6, 2)
    assert manifest["schema"] == {"user_id": "int64", "run_id": "string"}
    assert list(manifest["parts"]) == ["part-00000.parquet", "part-00001.parquet"]
    assert manifest["key"] == {"run": "a"}


def test_publishing_needs_no_heavy_library() -> None:
    heavy = "{'torch', 'mlflow', 'transformers', 'lightgbm', 'implicit', 'pandas'}"
    code = f"import serving.publish, sys; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_death_at_every_step_leaves_one_whole_release_and_the_rerun_heals(tmp_path: Path, nursery: Nursery) -> None:
    output = tmp_path / "out"
    release(output, "2024-01-01", "first")
    deaths = 0
    for step in range(1, 200):
        nursery.start(output, step)
        exit_code = nursery.exit_code()
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        deaths += 1
        assert_readers_safe(output)
        half = output / "releases" / f"2024-01-02.r{step}"
        if half.exists():
            ReleaseStore(output).verify(half)  # a release that exists is whole, served or not
        again, moved = release(output, "2024-01-02", f"r{step}")
        assert moved
        assert ReleaseStore(output).current() == again
        assert_readers_safe(output)
    assert 25 < deaths < 199  # the last publisher ran through, so every step was tried


def test_kill_at_any_moment_leaves_one_whole_release(tmp_path: Path, nursery: Nursery) -> None:
    output = tmp_path / "out"
    release(output, "2024-01-01", "first")
    rng = random.Random(0)
    for _ in range(15):
        pid = nursery.start(output, 0)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert nursery.exit_code() == -signal.SIGKILL
        assert_readers_safe(output)
    assert len(ReleaseStore(output).gc(keep=1)) > 3  # some publications did run
    healed, _ = release(output, "2024-02-01", "heals")
    assert ReleaseStore(output).current() == healed


def test_a_reader_during_publication_sees_one_run(tmp_path: Path, nursery: Nursery) -> None:
    release(tmp_path, "2024-01-01", "first")
    pid = nursery.start(tmp_path, 0)
    seen: set[str] = set()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert_readers_safe(tmp_path)
            plain = ds.dataset(str((tmp_path / "current").resolve() / "part-00000.parquet")).to_table()
            seen |= set(plain["run_id"].to_pylist())
    finally:
        os.kill(pid, signal.SIGKILL)
        nursery.exit_code()
    assert len(seen) > 1


@contextmanager
def failing_call(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The n-th change to the file system fails as a broken disk would; yields the names of calls seen."""
    seen: list[str] = []

    def breaking(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir"):
            patched.setattr(os, name, breaking(name, getattr(os, name)))
        patched.setattr("pyarrow.parquet.write_table", breaking("write", pa.parquet.write_table))
        yield seen


def refused(output: Path, run: str) -> bool:
    """Whether a publication ended in our error, which names a file."""
    try:
        release(output, "2024-01-02", run)
    except ResourceError as error:
        return str(output) in str(error)
    return False


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_an_error_of_any_call_names_a_file_and_harms_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    release(tmp_path, "2024-01-01", "a")
    for number in range(1, 100):
        with failing_call(number, code, monkeypatch) as seen:
            is_refused = refused(tmp_path, f"r{number}")
        assert_readers_safe(tmp_path)
        if len(seen) < number:
            break
        assert is_refused or seen[number - 1] == "mkdir"  # which may fail where the folder is there already
    assert {"fsync", "rename", "replace", "symlink", "mkdir", "write"} <= set(seen)
    assert len(seen) < 99


def test_a_read_only_output_is_refused_at_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        failing_call(1, errno.EROFS, monkeypatch),
        pytest.raises(ResourceError, match="read-only"),
        ReleaseStore(tmp_path / "out").lock(),
    ):
        pytest.fail("the run began")


def test_two_file_systems_are_refused_at_the_lock(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    other = memory / f"releases-{os.getpid()}"
    other.mkdir()
    try:
        (tmp_path / "releases").symlink_to(other)
        with pytest.raises(ResourceError, match="another file system"), ReleaseStore(tmp_path).lock():
            pytest.fail("the run began")
    finally:
        shutil.rmtree(other)


def test_a_disk_too_small_is_refused_with_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReleaseStore(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_999))
    store.check_space(999)
    with pytest.raises(ResourceError, match=r"needs 2,000 bytes, 1,999 are free"):
        store.check_space(1_000)


def test_a_second_run_is_told_who_holds_the_lock_and_a_dead_holder_frees_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, serving.publish as p\n"
        f"with p.ReleaseStore(pathlib.Path({str(tmp_path)!r})).lock():\n    print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(AlreadyRunningError, match=rf"pid {holder.pid} since 20\d\d-.*Z") as caught,
            ReleaseStore(tmp_path).lock(),
        ):
            pytest.fail("two runs at once")
        holder.kill()
    assert caught.value.exit_code == 75
    release(tmp_path, "2024-01-01", "a")
    assert_readers_safe(tmp_path)


def test_every_flipped_bit_and_cut_is_found_and_the_file_named(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    store, rng = ReleaseStore(tmp_path), random.Random(0)
    for name in ("part-00001.parquet", "manifest.json"):
        path, whole = done / name, (done / name).read_bytes()
        broken = [whole[:n] for n in (0, 3, 4, 10, len(whole) - 1)]
        for _ in range(100):
            at = rng.randrange(len(whole))
            broken.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        for content in broken:
            path.write_bytes(content)
            try:
                table = store.read(done)
            except ResourceError as error:
                assert name in str(error)  # noqa: PT017 - both outcomes are allowed for a manifest
            else:
                assert name == "manifest.json"  # white space flipped: what it says is the same
                assert table.num_rows == json.loads(whole)["rows"]
        path.write_bytes(whole)
    assert_readers_safe(tmp_path)


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00001.parquet"])
def test_a_missing_part_and_a_stray_part_are_named(tmp_path: Path, name: str) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    store = ReleaseStore(tmp_path)
    (done / name).rename(done / "part-00009.parquet")
    with pytest.raises(ResourceError, match=rf"{name}: missing"):
        store.read(done)
    shutil.copy(done / "part-00009.parquet", done / name)
    with pytest.raises(ResourceError, match=r"part-00009\.parquet: not in the manifest"):
        store.read(done)


def test_a_part_damaged_before_the_audit_or_after_it_is_never_released(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    with store.lock():
        staging = stage(store, "2024-01-01", "a")
        damage(staging / "part-00000.parquet")
        with pytest.raises(ResourceError, match=r"part-00000\.parquet"):
            store.finish(staging, {})
        (staging / "part-00000.parquet").write_bytes(b"")
        with pytest.raises(ResourceError, match=r"part-00000\.parquet: cannot be read back"):
            store.read_staged(staging)
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
            store.write_part(staging, part, pa.table({"user_id": [part]}))
    damage(staging / "part-00001.parquet")
    with store.lock():
        assert store.begin("2024-01-01", "a", key) == staging
        assert [store.staged_part(staging, n) is not None for n in range(4)] == [True, False, True, False]
        store.write_part(staging, 1, pa.table({"user_id": [1]}))
        assert store.read_staged(staging)["user_id"].to_pylist() == [0, 1, 2]
        store.begin("2024-01-01", "a", {"data": "2"})
        assert store.staged_part(staging, 0) is None
        store.begin("2024-01-01", "a")
        store.write_part(staging, 0, pa.table({"user_id": [0]}))
        store.begin("2024-01-01", "a")  # without a key nothing is known of what lies there
        assert store.staged_part(staging, 0) is None


def test_rollback_is_quick_and_respected_until_unpinned(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, _ = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    with ReleaseStore(tmp_path).lock():  # a night is running
        began = time.monotonic()
        assert store.rollback() == first
        assert time.monotonic() - began < 1
    assert (store.current(), store.previous()) == (first, second)
    third, moved = release(tmp_path, "2024-01-03", "c")
    assert not moved
    assert store.current() == first
    store.unpin()
    assert store.publish(third)
    assert (store.current(), store.previous()) == (third, first)
    assert_readers_safe(tmp_path)


def test_rollback_without_an_earlier_or_to_a_damaged_release_is_refused(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    store = ReleaseStore(tmp_path)
    with pytest.raises(ResourceError, match="no earlier release"):
        store.rollback()
    second, _ = release(tmp_path, "2024-01-02", "b")
    damage(first / "part-00000.parquet")
    with pytest.raises(ResourceError, match=r"2024-01-01\.a/part-00000\.parquet"):
        store.rollback()
    assert store.current() == second
    assert not store.is_pinned


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
    whole = store.last_whole(["run_id"])
    assert whole is not None
    assert whole.column_names == ["run_id"]
    assert_readers_safe(tmp_path)


def test_refused_lists_move_to_quarantine(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    for _ in range(2):
        with store.lock():
            kept = store.quarantine(stage(store, "2024-01-01", "a"))
    assert kept == tmp_path / "quarantine" / "2024-01-01.a"
    assert sorted(p.name for p in kept.iterdir()) == ["part-00000.parquet", "part-00001.parquet"]
    assert store.gc(keep=1) == []


def test_retention_spares_current_previous_and_pinned(tmp_path: Path) -> None:
    for day in range(1, 7):
        release(tmp_path, f"2024-01-{day:02d}", "r")
    store = ReleaseStore(tmp_path)
    store.rollback()
    store.begin("2024-01-07", "dead")
    expected = ["2024-01-04", "2024-01-03", "2024-01-02", "2024-01-01", "2024-01-07"]
    assert [p.name[:10] for p in store.gc(keep=0)] == expected
    assert len(list(store.releases.iterdir())) == 6
    with ReleaseStore(tmp_path).lock(), pytest.raises(AlreadyRunningError):
        store.gc(keep=0, dry_run=False)
    with store.lock():
        assert [p.name[:10] for p in store.gc(keep=0, dry_run=False)] == expected
    assert sorted(p.name[:10] for p in store.releases.iterdir()) == ["2024-01-05", "2024-01-06"]
    assert list(store.staging.iterdir()) == []
    assert_readers_safe(tmp_path)


def test_status_tells_what_is_served_and_how_old_it_is(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    assert store.status() is None
    release(tmp_path, "2024-01-01", "a")
    done, _ = release(tmp_path, "2024-01-02", "b")
    two_hours_ago = time.time() - 7200
    os.utime(done / "manifest.json", (two_hours_ago, two_hours_ago))
    status = store.status()
    assert status is not None
    assert vars(status) == {
        "release": "2024-01-02.b", "run_date": "2024-01-02", "age_hours": 2.0, "rows": 6, "users": 2,
        "model_version": "1", "previous": "2024-01-01.a", "pinned": False,
    }  # fmt: skip

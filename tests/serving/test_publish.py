import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import AlreadyRunningError, ResourceError
from serving.publish import ReleaseStore

ROOT = Path(__file__).parents[2]
PUBLISH_LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests_publish_helper import release
for n in range(10_000):
    release(Path({output!r}), f"2024-01-{{n % 28 + 1:02d}}", f"r{{n:05d}}")
"""
HELPER = """
import pyarrow as pa
from serving.publish import ReleaseStore
def release(output, date, run):
    store = ReleaseStore(output)
    with store.lock():
        staging = store.begin(date, run)
        for part in range(2):
            store.write_part(staging, part, pa.table({"user_id": [part] * 3, "run_id": [run] * 3}))
        store.publish(store.finish(staging, {"key": {"run": run}, "run_date": date, "model": {"version": "1"}}), allow_backfill=True)
"""


def release(output: Path, date: str, run: str, **publish: bool) -> tuple[Path, bool]:
    store = ReleaseStore(output)
    with store.lock():
        staging = store.begin(date, run)
        for part in range(2):
            store.write_part(staging, part, pa.table({"user_id": [part] * 3, "run_id": [run] * 3}))
        done = store.finish(staging, {"key": {"run": run}, "run_date": date, "model": {"version": "1"}})
        return done, store.publish(done, **publish)


def assert_readers_safe(output: Path) -> None:
    """What a reader of `current` gets is one complete, verified release."""
    store = ReleaseStore(output)
    current = store.current()
    assert current is not None
    table = store.read(current)
    assert table.num_rows == store.manifest(current)["rows"] == 6
    assert len(table["run_id"].unique()) == 1


def test_current_moves_and_previous_stays(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    second, moved = release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    assert moved
    assert (store.current(), store.previous()) == (second, first)
    assert_readers_safe(tmp_path)


@pytest.mark.slow
def test_kill_at_any_moment_leaves_one_whole_release(tmp_path: Path) -> None:
    output = tmp_path / "out"
    release(output, "2024-01-01", "first")
    (tmp_path / "tests_publish_helper.py").write_text(HELPER)
    script = PUBLISH_LOOP.format(root=str(tmp_path), output=str(output))
    for kill in range(8):
        child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        time.sleep(0.9 + 0.013 * kill)  # imports take most of it; the rest falls anywhere in a publication
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert_readers_safe(output)
    release(output, "2024-02-01", "heals")
    current = ReleaseStore(output).current()
    assert current is not None
    assert current.name == "2024-02-01.heals"


def test_a_second_run_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    store = ReleaseStore(tmp_path)
    with (
        store.lock(),
        pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()} since"),
        ReleaseStore(tmp_path).lock(),
    ):
        pass
    with store.lock():
        pass


def test_a_flipped_bit_is_found_and_the_file_named(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    part = done / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ResourceError, match=r"part-00001\.parquet"):
        ReleaseStore(tmp_path).read(done)


def test_a_rollback_is_respected_by_the_next_night(tmp_path: Path) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    release(tmp_path, "2024-01-02", "b")
    store = ReleaseStore(tmp_path)
    began = time.monotonic()
    assert store.rollback() == first
    assert time.monotonic() - began < 1
    _, moved = release(tmp_path, "2024-01-03", "c")
    assert not moved
    assert store.current() == first
    assert_readers_safe(tmp_path)


def test_a_backfill_does_not_move_current_unless_asked(tmp_path: Path) -> None:
    newest, _ = release(tmp_path, "2024-01-05", "a")
    past, moved = release(tmp_path, "2024-01-01", "b")
    assert not moved
    assert ReleaseStore(tmp_path).current() == newest
    assert release(tmp_path, "2024-01-01", "b", allow_backfill=True) == (past, True)


def test_the_same_key_is_found_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    done, _ = release(tmp_path, "2024-01-01", "a")
    store = ReleaseStore(tmp_path)
    assert store.find({"run": "a"}) == done
    (done / "part-00000.parquet").unlink()
    assert store.find({"run": "a"}) is None


def test_retention_spares_current_previous_and_pinned(tmp_path: Path) -> None:
    for day in range(1, 7):
        release(tmp_path, f"2024-01-{day:02d}", "r")
    store = ReleaseStore(tmp_path)
    store.rollback()
    assert [p.name[:10] for p in store.gc(keep=2)] == ["2024-01-04", "2024-01-03", "2024-01-02", "2024-01-01"]
    assert len(list(store.releases.iterdir())) == 6
    store.gc(keep=2, dry_run=False)
    assert len(list(store.releases.iterdir())) == 2
    assert_readers_safe(tmp_path)


def test_a_full_disk_names_the_file_and_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(tmp_path, "2024-01-01", "a")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ResourceError, match=r"part-00000\.parquet: the disk is full"):
        release(tmp_path, "2024-01-02", "b")
    assert_readers_safe(tmp_path)

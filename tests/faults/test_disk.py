"""Disks that are full, broken, read-only or elsewhere."""

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys.errors import ResourceError
from serving import releases
from serving.publish import ReleaseStore
from tests.faults.conftest import TODAY, Shop
from tests.faults.matrix import fault
from tests.faults.nursery import ROOT
from tests.faults.served import assert_served_whole
from tests.faults.small import release

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
PROGRAM = [sys.executable, "-c", "import recsys.cli; recsys.cli.main()"]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A mount on a folder for a while; skips where that takes rights we have not."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes on a folder, with what the folder held."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "none"):
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        yield


def leave_free(folder: Path, n_bytes: int) -> Path:
    """Fills the file system of a folder but for so many bytes."""
    ballast = folder / "ballast"
    ballast.write_bytes(b"x" * max(0, shutil.disk_usage(folder).free - n_bytes))
    return ballast


@fault(3)
def test_a_disk_too_small_is_refused_before_scoring_with_bytes_needed_and_free(yesterday: Shop) -> None:
    with small_disk(yesterday.output, 1_000_000):
        leave_free(yesterday.output, 100_000)
        ended = yesterday.tonight()
        assert ended.code == 5
        assert f"{yesterday.output}: needs 144,000 bytes" in ended.err
        assert "are free; make room or run: recsys gc --delete" in ended.err
        assert "scoring" not in ended.err
        yesterday.assert_yesterday_served()
        assert "make room" in yesterday.run("status").out


@fault(3)
def test_a_disk_that_fills_at_any_point_of_publication_harms_no_reader(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first, _ = release(output, "2024-01-01", "first")
    refused = []
    with small_disk(output, 1_000_000):
        for pages in range(60):
            ballast = leave_free(output, 4096 * pages)
            try:
                release(output, "2024-01-02", f"r{pages}")
            except ResourceError as error:
                refused.append(str(error))
            assert_served_whole(output, [first.name])
            ballast.unlink()
        assert ReleaseStore(output).current() != first  # with enough room it was published
    assert len(refused) > 5
    assert all("bytes are free" in text and str(output) in text and "gc --delete" in text for text in refused)


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
        patched.setattr("hashlib.file_digest", breaking("read", __import__("hashlib").file_digest))
        yield seen


def refused(output: Path, run: str) -> bool:
    """Whether a publication ended in our error, which names a file."""
    try:
        release(output, "2024-01-02", run)
    except ResourceError as error:
        return str(output) in str(error)
    return False


@fault(4)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_of_any_call_names_a_file_and_harms_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    first, _ = release(tmp_path, "2024-01-01", "a")
    for number in range(1, 100):
        with failing_call(number, code, monkeypatch) as seen:
            is_refused = refused(tmp_path, f"r{number}")
        assert_served_whole(tmp_path, [first.name])
        if len(seen) < number:
            break
        # mkdir may fail where the folder is there already; what was served and cannot be read is no `previous`
        assert is_refused or seen[number - 1] in ("mkdir", "read")
    assert {"fsync", "rename", "replace", "symlink", "mkdir", "write", "read"} <= set(seen)
    assert len(seen) < 99


@fault(4)
@pytest.mark.parametrize(("call", "step"), [("fsync", 2), ("/^rename", 2), ("/^symlink", 1), ("/^p?write", 7)])
def test_the_kernel_says_input_output_error_at_some_calls(tmp_path: Path, call: str, step: int) -> None:
    break_calls(tmp_path / "out", call, step)


@fault(4)
@pytest.mark.long
@pytest.mark.parametrize("call", ["fsync", "/^rename", "/^symlink", "/^p?write", "/^mkdir", "/^unlink"])
def test_the_kernel_says_input_output_error_at_each_call_in_turn(tmp_path: Path, call: str) -> None:
    break_calls(tmp_path / "out", call, 1)


def break_calls(output: Path, call: str, step: int) -> None:
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    first, _ = release(output, "2024-01-01", "first")
    failures = 0
    for number in range(1, 60, step):
        injected = ["strace", "-qq", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={call}"]
        injected += ["-e", f"inject={call}:error=EIO:when={number}"]
        snippet = f"from tests.faults.small import *; release(Path({str(output)!r}), '2024-01-02', 'r{number}')"
        done = subprocess.run(
            [*injected, sys.executable, "-c", snippet], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert_served_whole(output, [first.name])
        if done.returncode == 0 and call != "/^mkdir":  # which may fail where the folder is there already
            break
        if done.returncode:
            failures += 1
            assert f"ResourceError: {output}" in done.stderr, done.stderr
            assert "Input/output error" in done.stderr
    assert failures
    assert number < 59 or call == "/^mkdir", "every call was tried"


@fault(4)
def test_tables_that_the_disk_cannot_read_end_the_night_with_the_file_named(yesterday: Shop) -> None:
    path = yesterday.folder / "events.parquet"
    first = f"""
import builtins, io
from fsspec.implementations.local import LocalFileOpener
real = LocalFileOpener.read
def read(self, *args):
    if self.path == {str(path)!r}:
        raise OSError(5, "Input/output error", self.path)
    return real(self, *args)
LocalFileOpener.read = read
LocalFileOpener.__getattr__ = (lambda get: lambda self, name: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    if name.startswith("read") and self.path == {str(path)!r} else get(self, name))(LocalFileOpener.__getattr__)
"""
    ended = yesterday.tonight(first=first)
    assert ended.code == 5
    assert f"{path}: " in ended.err
    assert "Input/output error" in ended.err
    yesterday.assert_yesterday_served()


@fault(4)
def test_an_error_at_some_calls_of_a_whole_night_leaves_yesterday(yesterday: Shop) -> None:
    break_nights(yesterday, [1, 3, 6, 10, 15, 21, 28])


@fault(4)
@pytest.mark.long
def test_an_error_at_every_call_of_a_whole_night_leaves_yesterday(yesterday: Shop) -> None:
    break_nights(yesterday, list(range(1, 60)))


def break_nights(shop: Shop, numbers: list[int]) -> None:
    """Each night fails at the n-th fsync, rename or replace under the output folder; the pointers never move."""
    for number in numbers:
        first = f"""
import os
seen = 0
def breaking(real):
    def call(*args, **kwargs):
        global seen
        seen += 1
        if seen == {number}:
            raise OSError(5, "Input/output error", str(args[0]))
        return real(*args, **kwargs)
    return call
for name in ("fsync", "rename", "replace"):
    setattr(os, name, breaking(getattr(os, name)))
"""
        ended = shop.tonight(first=first)
        shop.served()
        assert ended.code in (0, 5), ended.err
        if ended.code:
            assert "Input/output error" in ended.err
            assert str(shop.folder) in ended.err


@fault(4)
def test_a_night_that_fails_after_the_swap_is_not_told_as_one_that_did_not_publish(yesterday: Shop) -> None:
    first = """
from serving.publish import ReleaseStore
real = ReleaseStore._point
def point(self, name, release):
    real(self, name, release)
    if name == "current":
        raise OSError(5, "Input/output error", str(self.output / name))
ReleaseStore._point = point
"""
    assert yesterday.tonight(first=first).code == 5
    yesterday.assert_today_served()
    assert "published, but failed before its end" in yesterday.run("status").out
    assert yesterday.tonight().code == 0
    assert "ok" in yesterday.run("status").out.splitlines()[0]
    yesterday.assert_today_served()


@fault(6)
def test_a_read_only_output_is_refused_before_any_work_in_two_seconds(yesterday: Shop) -> None:
    with mounted(yesterday.output, "--bind", str(yesterday.output)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(yesterday.output)], check=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = yesterday.words("nightly", "--as-of", TODAY)
        done = subprocess.run([*PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 5
        assert str(yesterday.output) in done.stderr
        assert "read-only; mount it writable or set serving.output elsewhere" in done.stderr
        assert "reading tables" not in done.stderr
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # a busy machine takes longer
        yesterday.assert_yesterday_served()


@fault(6)
@pytest.mark.parametrize("folder", ["releases", ".staging"])
def test_two_file_systems_are_refused_before_any_work(yesterday: Shop, folder: str) -> None:
    with small_disk(yesterday.output / folder, 10_000_000):
        ended = yesterday.tonight()
        assert ended.code == 5
        assert "another file system" in ended.err
        assert "reading tables" not in ended.err
        yesterday.assert_yesterday_served()


@fault(14)
def test_every_flipped_bit_and_cut_of_a_release_is_found_and_the_file_named(tmp_path: Path) -> None:
    import json

    done, _ = release(tmp_path, "2024-01-01", "a")
    rng = random.Random(0)
    for name in ("part-00001.parquet", "manifest.json"):
        path, whole = done / name, (done / name).read_bytes()
        broken = [whole[:n] for n in (0, 3, 4, 10, len(whole) - 1)]
        for _ in range(100):
            at = rng.randrange(len(whole))
            broken.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        for content in broken:
            path.write_bytes(content)
            try:
                table = releases.read(done)
            except ResourceError as error:
                assert name in str(error)  # noqa: PT017 - both outcomes are allowed for a manifest
            else:
                assert name == "manifest.json"  # white space flipped: what it says is the same
                assert table.num_rows == json.loads(whole)["rows"]
        path.write_bytes(whole)
    assert_served_whole(tmp_path, [done.name])


@fault(14)
def test_a_damaged_release_is_shown_by_status_and_the_rerun_serves_a_whole_one(yesterday: Shop) -> None:
    assert yesterday.tonight().code == 0
    part = yesterday.output / "current" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    status = yesterday.run("status").out
    assert "BROKEN" in status
    assert "part-00000.parquet: sha256" in status
    assert yesterday.tonight().code == 0
    assert "BROKEN" not in yesterday.run("status").out
    (damaged,) = (p for p in ReleaseStore(yesterday.output).all() if not ReleaseStore(yesterday.output).is_whole(p))
    shutil.rmtree(damaged)
    yesterday.assert_today_served()

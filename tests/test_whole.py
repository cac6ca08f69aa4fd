import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from recsys.whole import refusals_of_disk, replacing, write_whole

WRITER = """
import sys, time
from pathlib import Path
from recsys.whole import replacing
for n in range(200):
    with replacing(Path(sys.argv[1])) as unfinished:
        unfinished.write_text(sys.argv[2] * 10_000)
"""


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as unfinished:
        unfinished.write_text("one")
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_text("\ud800" * 9, encoding="utf-8")
    assert path.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_is_cleared_after_a_day_and_not_before(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".a[1].1.tmp", ".a[1].2.tmp", ".b.1.tmp"))
    for path in (old, new, other):
        path.write_text("half")
    for path, hours in ((old, 25), (new, 23), (other, 25)):
        os.utime(path, (time.time() - hours * 3600,) * 2)
    with replacing(tmp_path / "a[1]") as unfinished:
        unfinished.write_text("whole")
    assert sorted(found.name for found in tmp_path.iterdir()) == [".a[1].2.tmp", ".b.1.tmp", "a[1]"]


def test_two_processes_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_text() in ("a" * 10_000, "b" * 10_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [found.name for found in tmp_path.iterdir()] == ["cache"]


def test_a_file_that_cannot_be_synced_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "one")

    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/\.a\.json\."):
        write_whole(path, "two")
    assert path.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_what_safetensors_says_of_a_disk_is_told_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=str(path)), refusals_of_disk(path):
        save_file({"a": np.zeros(3)}, tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(SafetensorError, match="header"), refusals_of_disk(path):
        raise SafetensorError("Error while deserializing header")

"""Which code a model says it was made by."""

import subprocess
from importlib.metadata import version
from pathlib import Path

from recsys.revision import revision_of


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_checkout_is_named_and_so_are_its_changes(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = revision_of(tmp_path)
    assert len(clean) == 12
    (tmp_path / "code.py").write_text("2")
    assert revision_of(tmp_path) == f"{clean}+changes"


def test_installed_inside_somebodys_checkout_it_is_the_version_and_not_their_revision(tmp_path: Path) -> None:
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "theirs")
    packages = tmp_path / ".venv" / "site-packages"
    packages.mkdir(parents=True)
    assert revision_of(packages) == version("recsys")

"""Which code this is: part of what models and releases note, and of the key that kept work is found by."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def code_revision() -> str:
    """Git revision of the checkout this package runs from, "+changes" when the tree is dirty; its version where it was installed."""
    return revision_of(Path(__file__).parent.parent)


def revision_of(folder: Path) -> str:
    """That of the folder which holds the packages; a checkout around it, where somebody keeps an environment, is not ours."""
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() == folder.resolve():
            revision = _git(folder, "rev-parse", "--short=12", "HEAD")
            return revision + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        pass
    return version("recsys")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()

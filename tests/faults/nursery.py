"""Real processes to break: one imports everything once, then forks a `recsys` command, or a snippet, per order.

A fork is there within milliseconds, so hundreds of kills take seconds; what runs in it is the program itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: killed by that signal) and what it wrote."""

    code: int
    out: str
    err: str


class Nursery:
    """The client's side.

    Args:
        folder: for what commands write.
        snippets: whether only `serving.publish` is imported, for loops over the bare protocol.
    """

    def __init__(self, folder: Path, light: bool = False) -> None:
        self.folder = folder
        command = [sys.executable, __file__, "light" if light else "whole"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, words: Sequence[str] = (), first: str = "", out: Path | None = None) -> int:
        """Begins a command in a fork and returns its pid.

        Args:
            words: of the command line, after `recsys`; none to run only the snippet.
            first: Python that runs in the fork before the command.
            out: where standard output goes, a file in the folder by default.
        """
        order = {"words": list(words), "first": first, "out": str(out or self.folder / "out")}
        self._say(json.dumps(order | {"err": str(self.folder / "err")}))
        return self._number()

    def wait(self) -> Ended:
        """The end of the command begun last. Until then its pid is taken, so that a late kill hits nobody else."""
        self._say("wait")
        code = self._number()
        texts = [(self.folder / name).read_text(errors="replace") for name in ("out", "err")]
        return Ended(code, *texts)

    def run(self, *words: str, first: str = "", out: Path | None = None) -> Ended:
        """Begins a command and waits for its end."""
        self.start(words, first, out)
        return self.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def serve() -> None:
    """Forks a command per line of standard input; answers with its pid and, when asked, with its exit code."""
    for line in sys.stdin:
        order = json.loads(line)
        Path(order["err"]).write_text("")
        pid = os.fork()
        if pid == 0:
            _child(order)
        print(pid, flush=True)  # noqa: T201 - this is the answer
        sys.stdin.readline()  # a child not waited for keeps its pid
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201


def _child(order: dict[str, str]) -> None:
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    try:
        exec(order["first"], {"__name__": "first"})
        if order["words"]:
            import recsys.cli

            sys.argv = ["recsys", *order["words"]]
            recsys.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - printed, as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def die_before_step(number: int, folder: Path) -> str:
    """A snippet: SIGKILL just before the n-th change that the process makes under a folder."""
    return f"""
import os, sys
seen = 0
def hook(event, args):
    global seen
    if event in {CHANGES} and {str(folder)!r} in str(args) and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
        seen += 1
        if seen == {number}:
            os.kill(os.getpid(), {int(signal.SIGKILL)})
sys.addaudithook(hook)
"""


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "open", "shutil.rmtree", "os.truncate"}

if __name__ == "__main__":
    import concurrent.futures.thread  # noqa: F401 - what libraries load late: once, not per fork

    import pandas  # noqa: F401

    from tests.faults import small  # noqa: F401

    if sys.argv[1] == "whole":
        import mlflow.artifacts
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizer  # noqa: F401

        import serving.nightly
        import serving.show  # noqa: F401
    serve()

"""Runs every notebook beside it top to bottom and writes it back with its output: `make notebooks`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> nbformat.NotebookNode:
    """The executed notebook; raises at the first cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent.parent)}})
    executed = client.execute()
    for cell in executed.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in a diff
        if "outputs" in cell:  # warnings of libraries name folders of this machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return executed


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        nbformat.write(run(path), path)
        sys.stdout.write(f"ran {path.name}\n")

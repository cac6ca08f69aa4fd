"""The promise, as one assertion: `current` is one complete, verified release, and nothing acknowledged is lost."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from serving import releases
from serving.publish import ReleaseStore


def assert_served_whole(output: Path, acknowledged: Iterable[str] = ()) -> pa.Table:
    """What a reader of `current` gets, after checking it.

    Args:
        acknowledged: names of releases whose publication was reported as done.
    """
    store = ReleaseStore(output)
    current = store.current()
    assert current is not None, f"{output}: nothing is served"
    table = releases.read(current)  # every byte against the manifest
    facts = releases.manifest(current)
    assert table.num_rows == facts["rows"] > 0
    assert len(table["run_id"].unique()) == 1
    assert current.name.split(".")[1] == table["run_id"][0].as_py()
    for name in acknowledged:
        releases.verify(store.releases / name)
    for release in store.all():
        releases.verify(release)  # one that exists is whole, served or not
    return table

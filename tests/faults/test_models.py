"""Registries that do not answer, aliases that move, models that are corrupt, mixed up or hostile."""

import json
import pickle
import shutil
import sqlite3
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.bundle import MANIFEST, load_arrays, save_arrays
from recsys.config import load_config
from recsys.registry import Registry
from serving.nightly import training_is_due
from tests.faults.conftest import TODAY, Shop
from tests.faults.matrix import fault
from tests.faults.test_death import pause, wait_until_here
from tests.faults.test_scores import register_changed
from tests.test_registry import no_server, refusing_server, silent_server

Change = Callable[[Path], None]


@contextmanager
def locked(shop: Shop) -> Iterator[str]:
    with closing(sqlite3.connect(shop.folder / "mlflow.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield f"sqlite:///{shop.folder}/mlflow.db"


@contextmanager
def over_http(server: Any) -> Iterator[str]:
    with server() as port:
        yield f"http://me:secret@127.0.0.1:{port}"


def broken_registry(name: str, shop: Shop) -> Any:
    servers = {"down": no_server, "slow": silent_server, "500": refusing_server}
    return locked(shop) if name == "locked" else over_http(servers[name])


@fault(23)
@pytest.mark.parametrize("how", ["down", "slow", "500", "locked"])
def test_a_registry_that_does_not_work_leaves_the_last_verified_copy_flagged(yesterday: Shop, how: str) -> None:
    with broken_registry(how, yesterday) as uri:
        began = time.monotonic()
        ended = yesterday.tonight("--set", f"mlflow.tracking_uri={uri}", "--set", "mlflow.timeout_s=4")
        took = time.monotonic() - began
        status = yesterday.run("status", "--set", f"mlflow.tracking_uri={uri}", "--set", "mlflow.timeout_s=2")
    assert ended.code == 0, ended.err
    assert took < 4 + 3  # what it may wait, once, and the night
    assert "the registry is down: scoring with version 1, the last one verified" in ended.err
    assert "model from the last verified copy" in ended.out
    assert "the numbers of this run are not in MLflow" in ended.err
    assert "secret" not in ended.err + ended.out + status.out
    assert yesterday.last_run()["stale_model"] is True
    assert "the registry does not answer" in status.out
    yesterday.assert_today_served()


@fault(23)
def test_a_registry_that_lost_its_store_begins_anew_and_says_so(yesterday: Shop) -> None:
    uri = f"sqlite:///{yesterday.folder}/empty.db"
    ended = yesterday.tonight("--set", f"mlflow.tracking_uri={uri}")
    assert ended.code == 0, ended.err
    assert f"was made by version 1, but {uri} knows no version of 'recsys'" in ended.err
    status = yesterday.run("status", "--set", f"mlflow.tracking_uri={uri}")
    assert "WARNING: published, by a registry that begins anew" in status.out
    yesterday.assert_today_served()


@fault(23)
def test_without_a_verified_copy_yesterday_stays(yesterday: Shop) -> None:
    shutil.rmtree(yesterday.folder / ".recsys" / "models")
    with no_server() as port:
        ended = yesterday.tonight(
            "--set", f"mlflow.tracking_uri=http://127.0.0.1:{port}", "--set", "mlflow.timeout_s=3"
        )
    assert ended.code == 6
    assert "no verified copy in" in ended.err
    yesterday.assert_yesterday_served()


@fault(23)
@pytest.mark.long
def test_a_registry_lost_while_training_costs_the_new_version_not_the_night(yesterday: Shop) -> None:
    words = yesterday.words("nightly", "--as-of", "2024-04-12", "--train", "always", "--set", "mlflow.timeout_s=2")
    yesterday.nursery.start(words, first=pause("training.pipeline:fit_text", "import time; time.sleep(1.5)"))
    wait_until_here(yesterday)
    with locked(yesterday):  # until the night has ended: whatever it waits for, it stops waiting
        ended = yesterday.nursery.wait()
    assert ended.code == 0, ended.err
    assert "the new version is lost, the last verified one serves" in ended.err
    assert "scoring with version 1, the last one verified" in ended.err
    assert yesterday.last_run()["trained"] is False
    assert [found.version for found in Registry(load_config(yesterday.config).mlflow).versions()] == ["1"]
    yesterday.assert_today_served()


@fault(23)
@pytest.mark.long
def test_the_default_wait_for_a_silent_registry_is_thirty_seconds(yesterday: Shop) -> None:
    with silent_server() as port:
        began = time.monotonic()
        ended = yesterday.tonight("--set", f"mlflow.tracking_uri=http://127.0.0.1:{port}")
        assert ended.code == 0
        assert time.monotonic() - began < 33
    yesterday.assert_today_served()


@fault(34)
def test_tables_that_cannot_be_trained_on_are_scored_by_the_champion(yesterday: Shop) -> None:
    events = yesterday.events()
    imported = pd.concat([events.assign(timestamp=events["timestamp"].max())] * 2)  # most of all events at one moment
    yesterday.write_events(pd.concat([events, imported.drop_duplicates(["user_id", "item_id"])]))
    ended = yesterday.run("nightly", "--as-of", TODAY, "--train", "always")
    assert ended.code == 8, ended.err
    assert "is published, by version 1, but tonight's training failed: " in ended.err
    assert "one moment" in ended.err
    assert yesterday.last_run()["trained"] is False
    assert "one moment" in str(yesterday.last_run()["training_error"])
    assert "published, but no new model" in yesterday.run("status").out
    yesterday.assert_today_served()


@fault(34)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ZeroDivisionError('a defect')", "ZeroDivisionError: 'a defect'"),
        ("MemoryError()", "memory is used up"),
        ("OSError(28, 'No space', 'x')", "'x': No space"),
    ],
)
def test_a_defect_or_a_full_machine_in_training_costs_the_new_version_not_the_night(
    yesterday: Shop, error: str, said: str
) -> None:
    first = f"""
import serving.nightly
def broken(*_, **__):
    raise {error}
serving.nightly.train_and_register = broken
"""
    ended = yesterday.run("nightly", "--as-of", TODAY, "--train", "always", first=first)
    assert ended.code == 8, ended.err
    assert f"the new version is lost, the last verified one serves: {said}" in ended.err
    assert ("line " in ended.err and "in broken" in ended.err) == (said.startswith("Zero"))  # where a defect is
    assert "in broken" not in str(yesterday.last_run()["error"])
    yesterday.assert_today_served()
    again = yesterday.run("nightly", "--as-of", TODAY, "--train", "always")
    assert again.code == 0, again.err
    assert yesterday.last_run()["trained"] is True


@fault(34)
def test_a_training_that_takes_the_time_of_the_night_is_cut_off_and_the_champion_scores(yesterday: Shop) -> None:
    first = f"""
import serving.nightly
serving.nightly.TRAINING_SHARE = 0.05
{pause("serving.nightly:train_and_register", calls=1)}"""
    ended = yesterday.run("nightly", "--as-of", TODAY, "--train", "always", "--deadline", "60s", first=first)
    assert ended.code == 8, ended.err
    assert "it took longer than" in ended.err
    assert "--deadline" in ended.err
    yesterday.assert_today_served()


@fault(34)
def test_a_version_that_died_before_it_had_a_name_is_no_training(yesterday: Shop) -> None:
    config = load_config(yesterday.config)
    registry, tonight = Registry(config.mlflow), pd.Timestamp(TODAY, tz="UTC")
    assert not training_is_due(config, tonight, registry)
    assert training_is_due(load_config(yesterday.config, ["cf.factors=3"]), tonight, registry)  # settings never tried
    late = tonight + pd.Timedelta(days=config.serving.train_every_days)
    assert training_is_due(config, late, registry)
    assert training_is_due(
        config, late - pd.Timedelta(days=1, hours=1), registry
    )  # clocks change, and cron has its jitter
    assert not training_is_due(config, late - pd.Timedelta(days=2), registry)  # trained the night before
    with registry.calls() as client:
        client.create_model_version("recsys", "runs:/0/bundle", tags={"data_until": late.isoformat()})
    assert training_is_due(config, late, registry)


@fault(34)
def test_a_first_training_that_fails_has_nothing_to_fall_back_on(yesterday: Shop) -> None:
    first = """
import serving.nightly
def broken(*_, **__):
    raise ZeroDivisionError("a defect")
serving.nightly.train_and_register = broken
"""
    fresh = f"mlflow.tracking_uri=sqlite:///{yesterday.folder}/empty.db"
    ended = yesterday.run("nightly", "--as-of", TODAY, "--set", fresh, first=first)
    assert ended.code == 1
    assert "a defect" in ended.err
    yesterday.assert_yesterday_served()


@fault(24)
@pytest.mark.parametrize("deed", ["moved", "deleted"])
def test_an_alias_that_goes_during_the_run_changes_nothing_of_it(yesterday: Shop, deed: str) -> None:
    register_changed(yesterday, lambda folder: None)
    registry = Registry(load_config(yesterday.config).mlflow)
    assert registry.resolve("champion").version == "2"
    words = yesterday.words("nightly", "--as-of", "2024-04-12")
    yesterday.nursery.start(words, first=pause("serving.score:Scorer.score", "import time; time.sleep(1.5)"))
    wait_until_here(yesterday)
    if deed == "moved":
        registry.promote("1")
    else:
        with registry.calls() as client:
            client.delete_registered_model_alias("recsys", "champion")
    ended = yesterday.nursery.wait()
    assert ended.code == 0, ended.err
    assert "model 2" in ended.out
    assert set(yesterday.served()["model_version"].to_pylist()) == {"2"}
    yesterday.assert_today_served()


def artifacts(shop: Shop) -> Path:
    """Where the registry keeps the files of version 1; the verified copies are gone, so it is fetched again."""
    shutil.rmtree(shop.folder / ".recsys" / "models")
    (manifest,) = shop.folder.glob(f"mlartifacts/**/bundle/{MANIFEST}")
    return manifest.parent


def refused(shop: Shop, *parts: str) -> None:
    ended = shop.tonight()
    assert ended.code == 6, ended.err
    assert "scoring:" not in ended.err
    for part in parts:
        assert part in ended.err, (part, ended.err)
    assert "Traceback" not in ended.err
    shop.assert_yesterday_served()


@fault(25)
@pytest.mark.parametrize("file", ["cf.safetensors", "text/model.safetensors", "ranker.json", "items.parquet"])
def test_a_corrupt_model_file_is_refused_with_both_hashes(yesterday: Shop, file: str) -> None:
    path = artifacts(yesterday) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(yesterday, Path(file).name, "has sha256", "the manifest says")


@fault(25)
def test_a_model_swapped_for_another_sound_one_is_refused_with_both_hashes(yesterday: Shop) -> None:
    from recsys.bundle import open_bundle, seal

    folder = artifacts(yesterday)
    expected = open_bundle(folder).sha256
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    found = seal(folder, {}).sha256
    refused(yesterday, f"has sha256 {found}, registered as {expected}")


@fault(25)
@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        ("cf.safetensors", "item_factors", "CF factors cover 79 items, its id map 80"),
        ("text/head.safetensors", "projection", "the parts make no head"),
        ("text/terms.safetensors", "directions", "terms, but idf of"),
    ],
)
def test_parts_of_other_dimensions_are_refused(yesterday: Shop, file: str, array: str, words: str) -> None:
    def change(folder: Path) -> None:
        arrays = load_arrays(folder / file)
        arrays[array] = arrays[array][:-1]
        save_arrays(folder / file, **arrays)

    sha256 = register_changed(yesterday, change)
    refused(yesterday, f"version 2 (sha256 {sha256})", words)


@fault(25)
def test_the_id_map_of_another_model_is_refused(yesterday: Shop) -> None:
    def change(folder: Path) -> None:
        pq.write_table(pa.table({"item_id": [f"x{n}" for n in range(70)]}), folder / "items.parquet")

    sha256 = register_changed(yesterday, change)
    refused(yesterday, f"version 2 (sha256 {sha256})", "cover 80 items, its id map 70")


class Evil:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def hostile(kind: str, folder: Path, marker: Path) -> None:
    """Turns a registered bundle hostile."""
    evil = pickle.dumps(Evil(marker))
    if kind == "pickle file":
        (folder / "model.pkl").write_bytes(evil)
    elif kind == "pickle under a known name":
        (folder / "cf.safetensors").write_bytes(evil)
    elif kind == "pickle in npz":
        with zipfile.ZipFile(folder / "cf_ease.npz", "w") as archive:
            archive.writestr("data.npy", evil)
    elif kind == "zip bomb":
        with zipfile.ZipFile(folder / "cf_ease.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.npy", b"\0" * 10**8)
    elif kind == "absurd header":
        (folder / "cf.safetensors").write_bytes(struct.pack("<Q", 2**62))
    elif kind == "link":
        (folder / "cf.json").unlink()
        (folder / "cf.json").symlink_to("/etc/hostname")
    elif kind == "leads outside":
        reseal(folder, path="../outside.json")
        return
    reseal(folder)


def reseal(folder: Path, **first: str) -> None:
    """A manifest that fits the files as they are now, as an attacker would write it, and the tag of the version."""
    import hashlib

    from recsys.bundle import _digest

    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        entries.append({"path": str(path.relative_to(folder)), "size": len(content), "sha256": sha256})
    entries[0] |= first
    manifest = {"schema": 1, "meta": {}, "files": entries}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"check": _digest(manifest)}))
    database = next(parent / "mlflow.db" for parent in folder.parents if (parent / "mlflow.db").exists())
    with closing(sqlite3.connect(database)) as rows:
        rows.execute("UPDATE model_version_tags SET value = ? WHERE key = 'bundle_sha256'", (_digest(entries),))
        rows.commit()


@fault(26)
@pytest.mark.parametrize(
    "kind",
    [
        "pickle file",
        "pickle under a known name",
        "pickle in npz",
        "zip bomb",
        "absurd header",
        "link",
        "leads outside",
    ],
)
def test_a_hostile_artifact_is_refused_and_nothing_of_it_runs(yesterday: Shop, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    hostile(kind, artifacts(yesterday), marker)
    refused(yesterday, str(yesterday.folder))
    assert not marker.exists()
    assert int(str(yesterday.last_run()["peak_memory_mib"])) < 1000


@fault(26)
def test_the_trap_works(tmp_path: Path, yesterday: Shop) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))  # noqa: S301 - shows that the marker would be made
    assert (tmp_path / "marker").exists()
    yesterday.assert_yesterday_served()

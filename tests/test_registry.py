import http.server
import logging
import math
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from recsys.bundle import load_arrays, save_arrays, seal
from recsys.config import MlflowConfig
from recsys.copies import Copies
from recsys.errors import ModelError, ResourceError
from recsys.registry import OLDER_THAN, Registry, RegistryDownError

TAGS = {"data_window": "2024-01", "code_revision": "abc"}


def make_bundle(folder: Path, value: float) -> Path:
    (folder / "text").mkdir(parents=True)
    save_arrays(folder / "text" / "weights.safetensors", scale=np.array([value]))
    seal(folder, {"value": value})
    return folder


def register(registry: Registry, folder: Path, **tags: str) -> str:
    with registry.run("train", {}, {}) as run:
        return registry.register(run, folder, TAGS | tags)


def down(registry: Registry, port: int) -> Registry:
    """The same model behind a server that does not answer."""
    config = registry._config.model_copy(update={"tracking_uri": f"http://127.0.0.1:{port}", "timeout_s": 3})
    return Registry(config)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def registry(uri: str, request: pytest.FixtureRequest) -> Registry:
    """An empty model of its own in the one store, since its migrations take seconds."""
    return Registry(MlflowConfig(tracking_uri=uri, experiment="tests", model_name=request.node.name))


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return [make_bundle(tmp_path / f"bundle{value}", value) for value in range(3)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def refusing_server() -> Iterator[int]:
    """Answers everything with 503 and asks to come back in an hour."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@contextmanager
def no_server() -> Iterator[int]:
    yield free_port()


def test_first_version_is_champion_and_later_ones_challenge(registry: Registry, bundles: list[Path]) -> None:
    assert registry.versions() == []
    assert [register(registry, folder) for folder in bundles[:2]] == ["1", "2"]
    newest, first = registry.versions()
    assert (first.version, first.aliases) == ("1", ("champion",))
    assert (newest.version, newest.aliases) == ("2", ("challenger",))
    assert newest.tags.items() >= TAGS.items()
    assert newest.created.tzinfo is not None
    assert registry.resolve("2") == registry.resolve("challenger") == newest
    assert registry.resolve(registry._config.model_name) == newest


def test_unknown_alias_is_named_beside_the_known(registry: Registry, bundles: list[Path]) -> None:
    with pytest.raises(ModelError, match=r"alias 'champion'; train one with: recsys train"):
        registry.resolve("champion")
    register(registry, bundles[0])
    with pytest.raises(ModelError, match=r"alias 'champoin\\n'; use one of challenger, champion, 1$") as told:
        registry.resolve("champoin\n")
    assert told.value.exit_code == 2  # a slip; trying again would not help
    with pytest.raises(ModelError, match="alias 'previous'") as told:
        registry.resolve("previous")
    assert told.value.exit_code == 6


def test_promote_keeps_previous_and_a_rollback_is_not_undone_by_another(
    registry: Registry, bundles: list[Path]
) -> None:
    for folder in bundles:
        register(registry, folder)
    with pytest.raises(ModelError, match=r"no version was champion before .*: recsys promote VERSION"):
        registry.rollback()
    assert registry.promote("challenger").version == "3"
    assert registry.resolve("previous").version == "1"
    assert registry.promote("3").version == "3"
    assert registry.resolve("previous").version == "1"
    assert registry.rollback().version == "1"
    assert registry.resolve("previous").version == "3"
    assert registry.rollback().version == "1"  # whoever runs it twice does not want the bad one back
    assert registry.promote("3").version == "3"  # it was mended, or was not to blame
    assert registry.rollback().version == "1"
    assert registry.promote("2").version == "2"  # the next one's own rollback
    assert registry.rollback().version == "1"


def test_fetched_copy_is_the_registered_bundle(registry: Registry, bundles: list[Path], tmp_path: Path) -> None:
    register(registry, bundles[1])
    cache = tmp_path / "cache"
    fetched = Copies(registry, cache).fetch("champion")
    assert not fetched.stale
    assert fetched.bundle.folder == cache / fetched.version.sha256
    assert fetched.bundle.meta == {"value": 1}
    assert load_arrays(fetched.bundle.folder / "text" / "weights.safetensors")["scale"] == [1.0]
    folder, note = sorted(cache.iterdir(), key=lambda path: path.is_file())
    assert folder.name == fetched.version.sha256
    assert note.name.startswith("champion.")


def test_second_fetch_needs_no_download_and_heals_a_damaged_copy(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    register(registry, bundles[1])
    fetched = Copies(registry, tmp_path).fetch("champion")
    weights = fetched.bundle.folder / "text" / "weights.safetensors"
    inode = weights.stat().st_ino
    assert Copies(registry, tmp_path).fetch("1").bundle == fetched.bundle
    assert weights.stat().st_ino == inode
    weights.write_bytes(b"damaged")
    assert Copies(registry, tmp_path).fetch("champion").bundle == fetched.bundle
    assert load_arrays(weights)["scale"] == [1.0]


def artifacts_of(registry: Registry, version: str) -> Path:
    """Where the registry itself keeps the files of a version."""
    run_id = registry.resolve(version).source.split("/")[1]
    database = Path(registry._uri.removeprefix("sqlite:///"))
    return database.parent / "mlartifacts" / "tests" / run_id / "artifacts" / "bundle"


def test_corrupt_artifact_is_refused_though_an_older_copy_exists(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    register(registry, bundles[0])
    cache = tmp_path / "cache"
    Copies(registry, cache).fetch("champion")
    registry.promote(register(registry, bundles[1]))
    weights = artifacts_of(registry, "2") / "text" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"weights\.safetensors' has sha256 [0-9a-f]{64} .* says '[0-9a-f]{64}'"):
        Copies(registry, cache).fetch("champion")
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_artifact_swapped_for_another_sound_bundle_is_refused(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    register(registry, bundles[0])
    expected = registry.resolve("1").sha256
    kept = artifacts_of(registry, "1")
    kept.rename(kept.with_name("gone"))
    other = seal(make_bundle(kept, 9), {})
    with pytest.raises(ModelError, match=f"has sha256 {other.sha256}, registered as {expected}"):
        Copies(registry, tmp_path / "cache").fetch("champion")


def test_registry_down_serves_the_last_verified_copy_and_says_so(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    register(registry, bundles[0])
    fetched = Copies(registry, tmp_path / "cache").fetch("champion")
    with no_server() as port:
        dead = down(registry, port)
        stale = Copies(dead, tmp_path / "cache").fetch("champion")
        assert stale.stale
        assert (stale.bundle, stale.version) == (fetched.bundle, fetched.version)
        with pytest.raises(RegistryDownError, match="no verified copy"):
            Copies(dead, tmp_path / "cache").fetch("challenger")
        (fetched.bundle.folder / "text" / "weights.safetensors").write_bytes(b"damaged")
        with pytest.raises(RegistryDownError, match=r"no verified copy.*weights\.safetensors"):
            Copies(dead, tmp_path / "cache").fetch("champion")


def test_a_registry_down_never_brings_back_another_model_or_one_that_was_taken_back(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    register(registry, bundles[0])
    Copies(registry, tmp_path).fetch("champion")
    with no_server() as port:
        other = Registry(MlflowConfig(tracking_uri=f"http://127.0.0.1:{port}", timeout_s=3, model_name="another"))
        with pytest.raises(RegistryDownError, match="no verified copy"):
            Copies(other, tmp_path).fetch("champion")
        Copies(registry, tmp_path).forget()
        with pytest.raises(RegistryDownError, match="no verified copy"):
            Copies(down(registry, port), tmp_path).fetch("champion")


def test_a_version_of_older_data_does_not_displace_the_challenger(registry: Registry, bundles: list[Path]) -> None:
    for folder, until in zip(bundles, ("2024-01-01", "2024-03-01", "2024-02-01"), strict=True):
        register(registry, folder, data_until=f"{until}T00:00:00+00:00")
    assert registry.resolve("challenger").version == "2"
    assert registry.resolve("3").tags[OLDER_THAN] == "2"


def test_files_of_a_version_that_are_gone_are_told_with_the_way_out(bundles: list[Path], tmp_path: Path) -> None:
    """It said to train again, which leaves the champion that cannot be fetched."""
    registry = Registry(MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    register(registry, bundles[0])
    shutil.rmtree(tmp_path / "mlartifacts")
    with pytest.raises(ModelError, match=r"files of version 1 cannot be fetched.*promote challenger --force --why"):
        Copies(registry, tmp_path / "cache").fetch("champion")


def test_a_store_that_was_copied_touches_no_model_of_the_one_before_until_its_paths_are_mended(
    bundles: list[Path], tmp_path: Path
) -> None:
    """A copy of a shop wrote its models into the shop that it was copied from."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    register(Registry(MlflowConfig(tracking_uri=f"sqlite:///{old}/mlflow.db")), bundles[0])
    shutil.copytree(old, new)
    config = MlflowConfig(tracking_uri=f"sqlite:///{new}/mlflow.db")
    for call in (
        lambda: register(Registry(config), bundles[1]),
        lambda: Copies(Registry(config), tmp_path).fetch("champion"),
        lambda: Registry(config).attach("1", bundles[0], "report", {}),
    ):
        with pytest.raises(
            ModelError, match=rf"moved or copied here, .*{old}/mlartifacts/recsys.*under 'A shop that moves'$"
        ):
            call()
    assert [v.version for v in Registry(config).versions()] == ["1"]
    page = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text().partition("## A shop that moves")[2]
    program = page.partition("END'")[2].partition("\n")[2].partition("END\n")[0]
    subprocess.run([sys.executable, "-", str(old), str(new)], input=program, text=True, check=True)
    shutil.rmtree(old)
    assert register(Registry(config), bundles[1]) == "2"
    new.rename(tmp_path / "newer")
    new.symlink_to(tmp_path / "newer")  # where it was, a link shows the way
    assert register(Registry(MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/newer/mlflow.db")), bundles[2]) == "3"
    assert Copies(Registry(config), tmp_path).fetch("champion").bundle.meta == {"value": 0}


def test_models_may_lie_on_another_disk_behind_a_link(bundles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "shop" / "mlartifacts").symlink_to(tmp_path / "disk")
    config = MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/shop/mlflow.db")
    assert [register(Registry(config), bundle) for bundle in bundles[:2]] == ["1", "2"]
    assert Copies(Registry(config), tmp_path).fetch("champion").bundle.meta == {"value": 0}


def test_whoever_dies_while_aliases_move_loses_no_sound_version(
    registry: Registry, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in bundles:
        register(registry, folder)
    registry.promote("2")
    client = registry._client
    moved: list[str] = []

    def once(name: str, alias: str, version: str) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(alias)
        type(client).set_registered_model_alias(client, name, alias, version)

    monkeypatch.setattr(client, "set_registered_model_alias", once)
    with pytest.raises(KeyboardInterrupt):
        registry.promote("3")
    assert [registry.resolve(alias).version for alias in ("champion", "previous")] == ["2", "2"]
    monkeypatch.undo()
    registry.promote("3")
    assert [registry.resolve(alias).version for alias in ("champion", "previous")] == ["3", "2"]
    moved.clear()
    monkeypatch.setattr(client, "set_registered_model_alias", once)
    with pytest.raises(KeyboardInterrupt):
        registry.rollback()
    assert [registry.resolve(alias).version for alias in ("champion", "previous")] == ["2", "2"]


def test_a_copy_that_another_run_fetched_meanwhile_is_used(
    registry: Registry, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, bundles[0])
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            shutil.copytree(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert Copies(registry, tmp_path / "cache").fetch("champion").bundle.meta == {"value": 0}


@pytest.mark.parametrize("server", [no_server, silent_server, refusing_server])
def test_dead_server_fails_in_bounded_time(server: object) -> None:
    with server() as port:  # type: ignore[operator]
        registry = Registry(MlflowConfig(tracking_uri=f"http://me:secret@127.0.0.1:{port}", timeout_s=3))
        start = time.monotonic()
        with pytest.raises(RegistryDownError, match=rf"127\.0\.0\.1:{port}.*does not work.*tracking_uri") as raised:
            registry.resolve("champion")
        assert time.monotonic() - start < 3
        assert "secret" not in str(raised.value) + registry.page_command()


def test_unusable_sqlite_files_fail_at_once(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"noise" * 1000)
    with closing(sqlite3.connect(tmp_path / "locked.db")) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        for name, reason in [("noise", "not a database"), ("locked", "locked"), ("no/such/folder", "unable to open")]:
            start = time.monotonic()
            with pytest.raises(RegistryDownError, match=reason):
                Registry(MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/{name}.db", timeout_s=3)).versions()
            assert time.monotonic() - start < 3


def test_run_keeps_finite_metrics_params_texts_and_datasets(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with registry.run("train", {"text": {"epochs": 2}, "seed": 0}, {"kind": "test"}) as run:
        run.log_metrics({"ndcg@10": 0.5, "nothing": math.nan, "endless": math.inf}, step=3)
        run.log_dataset("events", "f" * 64, rows=7, source="https://me:secret@host/e.parquet", context="training")
        run.log_text("hello", "notes/a.txt")
        run.log_artifacts(tmp_path, "files")
    with registry.calls() as client:
        stored = client.get_run(run.id)
        assert stored.info.status == "FINISHED"
        assert stored.data.metrics == {"ndcg_at_10": 0.5}
        assert stored.data.params == {"text.epochs": "2", "seed": "0"}
        assert stored.data.tags["kind"] == "test"
        (dataset,) = (i.dataset for i in stored.inputs.dataset_inputs)
        assert dataset.profile == '{"num_rows": 7, "sha256": "' + "f" * 64 + '"}'
        assert dataset.source == '{"uri": "https://host/e.parquet"}'
        assert {f.path for f in client.list_artifacts(run.id)} == {"notes", "files"}


def test_run_that_raises_is_stored_as_failed(registry: Registry) -> None:
    with pytest.raises(KeyError, match="mine"), registry.run("train", {}, {}) as run:
        raise KeyError("mine")
    with registry.calls() as client:
        assert client.get_run(run.id).info.status == "FAILED"


def test_full_disk_is_no_dead_registry(registry: Registry) -> None:
    with pytest.raises(ResourceError, match="No space left"), registry.calls():
        raise OSError(28, "No space left on device", "/full")


def test_calls_leave_environment_logging_and_warnings_as_they_were(registry: Registry) -> None:
    def state() -> tuple[object, ...]:
        levels = [logging.getLogger(name).level for name in ("", "mlflow", "alembic")]
        return dict(os.environ), levels, list(warnings.filters)

    registry.versions()
    before = state()
    with pytest.raises(ModelError):
        registry.resolve("none")
    assert state() == before


def test_fresh_store_opens_silently_without_telemetry_in_its_own_folder(tmp_path: Path) -> None:
    code = f"""
import os, sys
from recsys.config import MlflowConfig
from recsys.copies import Copies
from recsys.registry import Registry, _quiet
assert "mlflow" not in sys.modules
before = dict(os.environ)
with _quiet(timeout_s=3):
    from mlflow.telemetry import get_telemetry_client
    assert get_telemetry_client() is None  # asked first: without a network it would vanish by itself
registry = Registry(MlflowConfig(tracking_uri="sqlite:///{tmp_path}/mlflow.db"))
with registry.run("train", {{"a": 1}}, {{}}) as run:
    run.log_text("hello", "a.txt")
assert dict(os.environ) == before
"""
    # MLflow switches telemetry off by itself under pytest and CI, so these must not be seen.
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list(tmp_path.rglob("a.txt"))) == 1


def test_page_command_opens_the_store_of_this_config(registry: Registry) -> None:
    words = shlex.split(registry.page_command())
    assert words[1:] == ["MLFLOW_DISABLE_TELEMETRY=true", sys.executable, "-m", "mlflow", "ui", *words[-2:]]
    assert words[-2:] == ["--backend-store-uri", registry._uri]
    remote = Registry(MlflowConfig(tracking_uri="http://host:5000"))
    assert shlex.split(remote.page_command())[1:] == ["-m", "webbrowser", "http://host:5000"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    with (folder / "log").open("w") as log:
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"mlflow server did not start: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_whole_life_of_a_version_over_http(server: tuple[str, Path], bundles: list[Path], tmp_path: Path) -> None:
    uri, folder = server
    registry = Registry(MlflowConfig(tracking_uri=uri, model_name="shop"))
    with registry.run("train", {"seed": 0}, {"kind": "test"}) as run:
        run.log_metrics({"ndcg@10": 0.5})
        run.log_dataset("events", "f" * 64, rows=7, source="events.parquet", context="training")
        assert registry.register(run, bundles[0], TAGS) == "1"
    assert register(registry, bundles[1]) == "2"

    fetched = Copies(registry, tmp_path / "cache").fetch("champion")
    assert (fetched.version.version, fetched.bundle.meta, fetched.stale) == ("1", {"value": 0}, False)
    assert registry.promote("2").version == "2"
    assert Copies(registry, tmp_path / "cache").fetch("champion").bundle.meta == {"value": 1}
    assert registry.rollback().version == "1"
    assert [v.aliases for v in registry.versions()] == [("challenger", "previous"), ("champion",)]

    (weights,) = folder.glob(f"artifacts/**/{run.id}/**/weights.safetensors")
    weights.write_bytes(b"corrupt")
    with pytest.raises(ModelError, match=r"weights\.safetensors' has sha256"):
        Copies(registry, tmp_path / "fresh").fetch("1")

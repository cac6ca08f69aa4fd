"""Runs, versions and aliases in MLflow; the only file that knows it.

A version is a sealed bundle (`recsys.bundle`) logged as plain files, with its sha256 as a tag. MLflow's own
model loaders unpickle, so they are never called: we download, verify (`recsys.copies`), and load with our own code.

    challenger   the version of newest data    champion   what is served
    previous     the champion before this one, where `rollback` goes
"""

import errno
import json
import logging
import math
import os
import re
import shlex
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd

from recsys.bundle import open_bundle
from recsys.config import MlflowConfig, flat
from recsys.errors import ModelError, RecsysError, ResourceError, public, shown

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
MANY = 5  # versions that an error names
TAKEN_BACK = "taken_back"  # tag of a champion that a rollback took away, when; it goes with the next promotion
OLDER_THAN = "older_than_challenger"  # tag of a version that got no alias since its data are older
SHA256 = "bundle_sha256"  # tag of every version
_SQLITE = "sqlite:///"
_PARENT = "mlflow.parentRunId"  # what MLflow's page nests by
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


class UnknownVersionError(ModelError):
    """Somebody asked for a version or an alias that is not there: trying again would not help."""

    exit_code = 2


class RegistryDownError(ModelError):
    """The registry did not answer, or answered that it cannot work now."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered bundle; `created` is UTC, `tags` hold data window and code revision."""

    version: str
    sha256: str
    source: str
    created: pd.Timestamp
    aliases: tuple[str, ...]
    tags: dict[str, str]


@dataclass(frozen=True)
class TrackedRun:
    """An open MLflow run; made by `Registry.run`."""

    id: str
    registry: "Registry"

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Stores finite values; nan and inf are dropped, since MLflow would store inf as 1.8e308.

        MLflow refuses '@' in names: 'ndcg@10' is stored as 'ndcg_at_10'.
        """
        finite = {_name(name): float(value) for name, value in values.items() if math.isfinite(value)}
        with self.registry.calls() as client:
            from mlflow.entities import Metric

            now_ms = int(time.time() * 1000)
            client.log_batch(
                self.id, metrics=[Metric(name, value, now_ms, step or 0) for name, value in finite.items()]
            )

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Stores settings; nested mappings become dotted names, and URLs lose user and password."""
        with self.registry.calls() as client:
            from mlflow.entities import Param

            params = [Param(_name(name), public(str(value))) for name, value in flat(values).items()]
            client.log_batch(self.id, params=params)

    def log_dataset(self, name: str, sha256: str, rows: int, source: str, context: str) -> None:
        """Records an input table of `rows` rows; `context` says what for, such as 'training'."""
        with self.registry.calls() as client:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            profile = json.dumps({"num_rows": rows, "sha256": sha256})
            # 36 characters is all that MLflow keeps of a digest; the whole one stands in the profile.
            dataset = Dataset(name, sha256[:36], "local", json.dumps({"uri": public(source)}), profile=profile)
            client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_artifacts(self, folder: Path, path: str) -> None:
        """Uploads the files of a folder under `path`."""
        with self.registry.calls() as client:
            client.log_artifacts(self.id, str(folder), path)

    def log_text(self, text: str, path: str) -> None:
        """Stores a text as the artifact `path`."""
        with self.registry.calls() as client:
            client.log_text(self.id, text, path)


class Registry:
    """MLflow tracking and registry behind one tracking URI. Nothing is opened before the first call.

    One that did not answer is not asked again by the same object: a run waits for a dead server once.

    Every method raises RegistryDownError when MLflow does not answer (a request and its one retry take
    at most `config.timeout_s` together), ModelError when it refuses, ResourceError when the disk does.
    """

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._uri = config.tracking_uri or f"{_SQLITE}mlflow.db"
        self._down: RegistryDownError | None = None

    @contextmanager
    def run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], parent: TrackedRun | None = None
    ) -> Iterator[TrackedRun]:
        """An open run that ends as FINISHED, or as FAILED when the block raises; shown below its parent, if any."""
        tags = {**tags, _PARENT: parent.id} if parent else dict(tags)
        with self.calls() as client:
            run_id = client.create_run(self._experiment(client), tags=tags, run_name=name).info.run_id
        run = TrackedRun(run_id, self)
        try:
            run.log_params(params)
            yield run
        except BaseException:
            with suppress(RecsysError):  # what stopped the run is the news, not that MLflow went with it
                self._end(run_id, "FAILED")
            raise
        self._end(run_id, "FINISHED")

    def register(self, run: TrackedRun, bundle_folder: Path, tags: Mapping[str, str]) -> str:
        """Uploads a sealed bundle as a new version; the first is `champion`.

        It is the `challenger` too, unless the present one knows newer data: a version for a backfill must not
        displace the one that waits to be judged.

        Returns:
            The version, such as '3'.
        """
        info, model = open_bundle(bundle_folder), self._config.model_name
        run.log_artifacts(bundle_folder, "bundle")
        with self.calls() as client:
            aliases = self._aliases(client)
            if aliases is None:
                client.create_registered_model(model)
            source = f"runs:/{run.id}/bundle"
            created = client.create_model_version(
                model,
                source,
                run_id=run.id,
                tags={**tags, SHA256: info.sha256},
                await_creation_for=self._config.timeout_s,
            )
            challenger = (aliases or {}).get(CHALLENGER)
            if _is_newest(tags, client, model, challenger):
                client.set_registered_model_alias(model, CHALLENGER, str(created.version))
            else:
                client.set_model_version_tag(model, str(created.version), OLDER_THAN, challenger)
            if CHAMPION not in (aliases or {}):
                client.set_registered_model_alias(model, CHAMPION, str(created.version))
        return str(created.version)

    def attach(self, version: str, folder: Path, path: str, tags: Mapping[str, str]) -> None:
        """Stores the files of a folder with the run that made a version, and tags on the version."""
        with self.calls() as client:
            self._found_experiment(client)
            run_id = client.get_model_version(self._config.model_name, version).run_id
            client.log_artifacts(run_id, str(folder), path)
        self.tag(version, tags)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Sets tags on a version."""
        with self.calls() as client:
            for key, value in tags.items():
                client.set_model_version_tag(self._config.model_name, version, key, value)

    def resolve(self, wanted: str) -> ModelVersion:
        """The version behind an alias, a version number, or the model's own name (then the newest).

        Raises:
            ModelError: there is none; the message lists the aliases and the newest versions there are.
        """
        versions = self.versions()
        for version in versions:
            if wanted in (version.version, self._config.model_name, *version.aliases):
                return version
        known = sorted({alias for version in versions for alias in version.aliases})
        numbers = [version.version for version in versions][:MANY]
        known += [*numbers[::-1], *["or an older number"] * (len(versions) > MANY)]
        kind = ModelError if wanted in (CHAMPION, CHALLENGER, PREVIOUS) else UnknownVersionError
        use = f"use one of {', '.join(known)}"
        if wanted == CHAMPION:
            use = f"give the name to one of {', '.join(known)}: recsys promote VERSION --force --why TEXT"
        raise kind(
            f"{self.where}: model {shown(self._config.model_name)} has no version or alias {shown(wanted)}; "
            + (use if versions else "train one with: recsys train")
        )

    def versions(self) -> list[ModelVersion]:
        """All versions that carry a bundle, newest first; empty before the first training."""
        with self.calls() as client:
            aliases = self._aliases(client)
            if aliases is None:
                return []
            found = client.search_model_versions(f'name="{self._config.model_name}"', max_results=10_000)
        ours = [_version(v, aliases) for v in found if SHA256 in v.tags]
        return sorted(ours, key=lambda v: int(v.version), reverse=True)

    def download(self, version: ModelVersion, folder: str) -> Path:
        """The files of a version as the registry has them, nothing of them verified, below `folder`.

        Raises:
            ModelError: the registry names files that are not there, or elsewhere, since its store was moved.
        """
        with self.calls() as client:
            self._found_experiment(client)
        try:
            with self.calls():
                from mlflow.artifacts import download_artifacts

                return Path(download_artifacts(version.source, dst_path=folder, tracking_uri=self._uri))
        except RegistryDownError:
            raise
        except ModelError as error:
            raise ModelError(
                f"the files of version {version.version} cannot be fetched, and no copy is here: {error}; bring them back, or "
                "train (recsys train) and serve what comes of it: recsys promote challenger --force --why 'files lost'"
            ) from error

    def promote(self, wanted: str) -> ModelVersion:
        """Makes a version `champion`, and the champion until now `previous`; a no-op for the champion itself."""
        chosen, model = self.resolve(wanted), self._config.model_name
        if CHAMPION not in chosen.aliases:
            with self.calls() as client:
                champion = self._champion(client)
                self._set_previous(client, champion)  # first: whoever dies between loses no champion
                client.set_registered_model_alias(model, CHAMPION, chosen.version)
                for version in {chosen.version, champion} - {None}:
                    client.delete_model_version_tag(model, version, TAKEN_BACK)
        return self.resolve(CHAMPION)

    def rollback(self) -> ModelVersion:
        """Swaps `champion` and `previous`; called twice it does no more: the first call marks what it takes back.

        Raises:
            ModelError: there is no previous champion.
        """
        if not any(PREVIOUS in version.aliases for version in self.versions()):
            raise ModelError(
                f"{self.where}: no version was champion before the present one, so the model stays; to put another in its "
                "place: recsys promote VERSION"
            )
        before, model = self.resolve(PREVIOUS), self._config.model_name
        if TAKEN_BACK not in before.tags:
            with self.calls() as client:
                champion = self._champion(client)
                if champion is not None:
                    client.set_model_version_tag(model, champion, TAKEN_BACK, datetime.now(UTC).isoformat())
                client.set_registered_model_alias(model, CHAMPION, before.version)
                self._set_previous(client, champion)
        return self.resolve(CHAMPION)

    def page_command(self) -> str:
        """The shell command that opens MLflow's page on this store."""
        if self._uri.startswith(("http://", "https://")):
            return shlex.join([sys.executable, "-m", "webbrowser", self.where])
        page = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.where]
        return shlex.join(["env", "MLFLOW_DISABLE_TELEMETRY=true", *page])

    @contextmanager
    def calls(self) -> Iterator[Any]:
        """An MlflowClient for a few calls, with bounded waits; what MLflow raises becomes our errors."""
        if self._down is not None:
            raise self._down
        with _quiet(self._config.timeout_s):
            try:
                yield self._client
            except RecsysError:
                raise
            except Exception as error:  # MLflow lets those of requests, SQLAlchemy and boto through
                translated = self._translated(error)
                self._down = translated if isinstance(translated, RegistryDownError) else None
                raise translated from error

    @cached_property
    def _client(self) -> Any:
        if self._uri.startswith(_SQLITE):
            # MLflow retries a file it cannot open for minutes, so ask sqlite first.
            with closing(sqlite3.connect(self._uri.removeprefix(_SQLITE), timeout=self._config.timeout_s / 3)) as file:
                file.execute("SELECT name FROM sqlite_master").fetchone()
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    @property
    def where(self) -> str:
        """Its address, without user and password."""
        return public(self._uri)

    @property
    def model_name(self) -> str:
        """What its versions are versions of."""
        return self._config.model_name

    def _end(self, run_id: str, status: str) -> None:
        with self.calls() as client:
            client.set_terminated(run_id, status)

    def _experiment(self, client: Any) -> str:
        found = self._found_experiment(client)
        if found:
            return str(found.experiment_id)
        place = self._artifacts.as_uri() if self._artifacts else None
        return str(client.create_experiment(self._config.experiment, artifact_location=place))

    def _found_experiment(self, client: Any) -> Any:
        """The experiment, or None before the first run.

        Raises:
            ModelError: the local store was moved or copied: MLflow notes whole paths, and would read and write models in the
                folder of before.
        """
        found, place = client.get_experiment_by_name(self._config.experiment), self._artifacts
        noted = str(found.artifact_location) if found and place else ""
        is_ours = noted.startswith("file:") and noted.endswith(f"/mlartifacts/{_name(self._config.experiment)}")
        if is_ours and Path(url2pathname(urlsplit(noted).path)).resolve() != (place and place.resolve()):
            raise ModelError(
                f"{self.where}: moved or copied here, and its models are noted to be in {noted}; note the folder they are in "
                "now, as docs/deploy.md says under 'A shop that moves'"
            )
        return found

    @property
    def _artifacts(self) -> Path | None:
        """Where files of a local store lie; MLflow's default is ./mlruns of whatever folder the first command ran in."""
        if not self._uri.startswith(_SQLITE):
            return None
        database = Path(self._uri.removeprefix(_SQLITE)).resolve()
        return database.parent / "mlartifacts" / _name(self._config.experiment)

    def _aliases(self, client: Any) -> dict[str, str] | None:
        """Alias -> version; None when the model has never been registered."""
        from mlflow.exceptions import MlflowException

        try:
            model = client.get_registered_model(self._config.model_name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return {alias: str(version) for alias, version in model.aliases.items()}

    def _champion(self, client: Any) -> str | None:
        return (self._aliases(client) or {}).get(CHAMPION)

    def _set_previous(self, client: Any, version: str | None) -> None:
        if version is not None:
            client.set_registered_model_alias(self._config.model_name, PREVIOUS, version)

    def _translated(self, error: Exception) -> RecsysError:
        from mlflow.exceptions import MlflowException

        cause = shown(public(str(error)), limit=300)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return ResourceError(f"{error.filename or self.where}: {cause}; free space or rights, then run it again")
        status: int = error.get_http_status_code() if isinstance(error, MlflowException) else 500  # type: ignore[no-untyped-call]
        if status < 500:
            return ModelError(f"{self.where}: MLflow refuses: {cause}; look at it with: {self.page_command()}")
        return RegistryDownError(
            f"{self.where}: MLflow does not work: {cause}; start it, or set [mlflow] tracking_uri to one that runs"
        )


@contextmanager
def _quiet(timeout_s: int) -> Iterator[None]:
    """MLflow with telemetry off, bounded waits and no chatter; all of it is undone afterwards.

    MLflow reads these from the environment at each call and offers no other way in.
    """
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, timeout_s // 3)),  # two attempts, and time for the rest
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for an hour
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        import mlflow  # noqa: F401 - configures its loggers, and so comes before their levels

        loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # errors reach the user through our exceptions
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _version(found: Any, aliases: Mapping[str, str]) -> ModelVersion:
    return ModelVersion(
        version=str(found.version),
        sha256=found.tags[SHA256],
        source=found.source,
        created=pd.Timestamp(found.creation_timestamp, unit="ms", tz="UTC"),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(found.version))),
        tags=dict(found.tags),
    )


def _is_newest(tags: Mapping[str, str], client: Any, model: str, challenger: str | None) -> bool:
    """Whether a version's data reach as far as those of the present challenger."""
    if challenger is None or "data_until" not in tags:
        return True
    theirs = client.get_model_version(model, challenger).tags.get("data_until")
    return theirs is None or pd.Timestamp(tags["data_until"]) >= pd.Timestamp(theirs)


def _name(text: str) -> str:
    """`text` within the characters that MLflow takes.

    >>> _name("ndcg@10"), _name("cold/recall=")
    ('ndcg_at_10', 'cold/recall_')
    """
    return re.sub(r"[^\w./ -]", "_", text.replace("@", "_at_"), flags=re.ASCII)

"""Verified copies of model versions on this machine, one folder a sha256: what loads, and what a night serves when the registry is down."""

import errno
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from recsys.bundle import BundleInfo, open_bundle
from recsys.errors import ModelError, shown
from recsys.registry import CHAMPION, PREVIOUS, SHA256, ModelVersion, Registry, RegistryDownError
from recsys.whole import write_whole


@dataclass(frozen=True)
class Fetched:
    """A verified copy; `stale` when the registry was down and this is the last one it had named."""

    bundle: BundleInfo
    version: ModelVersion
    stale: bool


class Copies:
    """Copies of one registry's versions under `folder`, which several registries may share."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder

    def fetch(self, wanted: str) -> Fetched:
        """A verified copy of a version, by number or alias; downloaded only when not there yet.

        When the registry is down, the last copy that `wanted` named here is verified again and returned
        with `stale` set. A corrupt download is an error, never a reason to serve something older.

        Raises:
            ModelError: the download is not what its tag or manifest says (both hashes are named), or
                the registry is down and there is no verified copy.
        """
        try:
            version = self._registry.resolve(wanted)
            bundle = self._copy_of(version)
        except RegistryDownError as error:
            return self._last_verified(wanted, error)
        self._note(wanted, version)
        return Fetched(bundle, version, stale=False)

    def folder_of(self, sha256: str) -> Path:
        """Where the copy of a bundle lies, if it is here."""
        return self._folder / sha256

    def forget(self) -> None:
        """Drops the notes of which version these aliases last were; whoever moves one calls it before.

        Else a registry that is down tonight would bring back the version that was taken back today.
        """
        for alias in (CHAMPION, PREVIOUS):
            self._note_of(alias).unlink(missing_ok=True)

    def _copy_of(self, version: ModelVersion) -> BundleInfo:
        if not re.fullmatch("[0-9a-f]{64}", version.sha256):
            raise ModelError(
                f"{self._registry.where}: version {version.version} has tag {SHA256} {shown(version.sha256)}, no sha256"
            )
        target = self.folder_of(version.sha256)
        try:
            return _verified(target, version)
        except ModelError:
            shutil.rmtree(target, ignore_errors=True)  # absent or damaged: the registry has the original
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetch-") as unverified:
            downloaded = self._registry.download(version, unverified)
            _verified(downloaded, version)
            try:
                downloaded.rename(target)
            except OSError as error:  # another run was quicker; what it left is verified below
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        return _verified(target, version)

    def _note_of(self, wanted: str) -> Path:
        """Note of the version that `wanted` last was; models of several names may keep their copies in one folder."""
        model = hashlib.sha256(self._registry.model_name.encode()).hexdigest()[:12]
        return self._folder / f"{re.sub('[^a-zA-Z0-9_.-]', '_', wanted)}.{model}.json"

    def _note(self, wanted: str, version: ModelVersion) -> None:
        write_whole(self._note_of(wanted), json.dumps(asdict(version) | {"created": version.created.isoformat()}))

    def _last_verified(self, wanted: str, error: RegistryDownError) -> Fetched:
        try:
            fields = json.loads(self._note_of(wanted).read_text(encoding="utf-8"))
            version = ModelVersion(**fields)
            version = replace(version, created=pd.Timestamp(version.created), aliases=tuple(version.aliases))
            return Fetched(_verified(self.folder_of(version.sha256), version), version, stale=True)
        except (OSError, ValueError, TypeError, ModelError) as missing:
            raise RegistryDownError(
                f"{error}; and no verified copy in {self._folder}: {shown(missing, 200)}"
            ) from error


def _verified(folder: Path, version: ModelVersion) -> BundleInfo:
    bundle = open_bundle(folder)
    if bundle.sha256 != version.sha256:
        raise ModelError(
            f"{folder}: version {version.version} has sha256 {bundle.sha256}, registered as {version.sha256}; "
            "do not load it; train again with: recsys train"
        )
    return bundle

"""Is this machine fit: processor, memory, disk, encoder, libraries; and are the tables of a config there."""

import importlib.metadata
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from features.files import files_of
from recsys.config import Config
from recsys.encoder import PACKAGED_ENCODER
from recsys.errors import RecsysError, public, shown
from recsys.machine import has_bf16
from recsys.text_tower import TextTower

GIB = 2**30
TABLES = ("events", "items", "users", "impressions")  # of [data]
LIBRARIES = ("torch", "transformers", "pandas", "pyarrow", "implicit", "lightgbm", "mlflow")


@dataclass(frozen=True)
class Finding:
    """One examined thing."""

    name: str
    ok: bool
    text: str


def examine(config: Config | None) -> list[Finding]:
    """All findings; with a config, its encoder, output folder and tables too."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = "bfloat16" if has_bf16(device) else "float32 (no fast bfloat16 here: the text tower is slower)"
    memory, free = psutil.virtual_memory(), shutil.disk_usage(_existing(config)).free
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return [
        Finding("python", True, platform.python_version()),
        Finding("compute", True, f"{device.type}, {psutil.cpu_count()} cores, {bf16}"),
        Finding(
            "memory",
            memory.available > 2 * GIB,
            f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, 2 needed",
        ),
        Finding("disk", free > 2 * GIB, f"{free / GIB:.1f} GiB free at {_existing(config)}, 2 needed"),
        _encoder(config.text.encoder if config else PACKAGED_ENCODER),
        Finding("libraries", True, versions),
        *(_tables(config) if config else []),
    ]


def _encoder(name: str) -> Finding:
    try:
        tower = TextTower.from_encoder(name)
    except RecsysError as error:
        return Finding("encoder", False, str(error))
    return Finding("encoder", True, f"{name}, {tower.dim} dimensions")


def _tables(config: Config) -> list[Finding]:
    places = {name: getattr(config.data, name) for name in TABLES}
    return [_table(name, place) for name, place in places.items() if place is not None]


def _table(name: str, place: str) -> Finding:
    """Whether a table's files are there; what is in them is for `recsys validate`."""
    try:
        _, files = files_of(place, name)
    except RecsysError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - every store has errors of its own, and the other findings matter too
        why = shown(public(f"{type(error).__name__}: {error}"), 200)
        return Finding(name, False, f"{public(place)}: cannot be reached: {why}; check data.{name} in the config")
    return Finding(name, True, f"{public(place)}, {len(files):,} file{'s' * (len(files) > 1)}")


def _existing(config: Config | None) -> Path:
    folder = Path(config.serving.output) if config else Path.cwd()
    while not folder.exists():
        folder = folder.parent
    return folder

"""A model as a folder of plain files, sealed by a manifest of sizes and hashes. Nothing in it can run code.

    bundle/
      manifest.json          schema, meta, and per file: path, size in bytes, sha256
      text/model.safetensors
      cf/neighbours.npz      sparse matrices, without pickle and without compression
      ranker/model.txt       LightGBM's own text

Whoever reads a bundle calls `open_bundle` first: it refuses anything unlisted, missing, linked or changed.
"""

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import numpy as np
import safetensors.numpy
import scipy.sparse as sp
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from recsys.errors import ModelError, shown
from recsys.whole import write_whole

MANIFEST = "manifest.json"
SCHEMA = 1
SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".npz", ".parquet", ".md"})
MAX_MANIFEST_BYTES = 16 * 2**20
# Column positions travel as int32 in implicit and scipy; a wider matrix is not one of ours.
MAX_COLUMNS = 2**31 - 1

_REMEDY = "do not load it; fetch the model again, or train one with: recsys train"


@dataclass(frozen=True)
class BundleInfo:
    """A bundle that passed every check.

    Attributes:
        folder: where it lies.
        sha256: hash of the sorted list of (path, size, sha256); the same files give the same hash,
            whatever `meta` says, so two trainings that end in the same weights are the same model.
        meta: what the trainer wrote about it, JSON values.
    """

    folder: Path
    sha256: str
    meta: dict[str, Any]


def seal(folder: Path, meta: dict[str, Any]) -> BundleInfo:
    """Writes `manifest.json` over the files of a folder, in one rename; a sealed folder is not edited after.

    Args:
        folder: holds the model's files, in sub-folders if you like.
        meta: JSON values; nan and inf are refused.

    Raises:
        ModelError: a link, a special file, or a suffix outside `SUFFIXES` lies in the folder.
        ValueError: `meta` is no JSON.
    """
    paths = _files(folder) - {MANIFEST}
    _check_names(folder, paths)
    files = [_entry(folder, path) for path in sorted(paths)]
    content = {"schema": SCHEMA, "meta": meta, "files": files}
    text = json.dumps(content | {"check": _digest(content)}, indent=1, sort_keys=True, allow_nan=False)
    write_whole(folder / MANIFEST, text)
    return open_bundle(folder)


def open_bundle(folder: Path) -> BundleInfo:
    """The bundle in a folder, after checking names, sizes, hashes and the headers of array files.

    Raises:
        ModelError: the manifest is missing or damaged; a file is unlisted, missing, linked, outside
            the folder, of a suffix we do not read, or not what its hash says (both hashes are named);
            an array file holds pickle, is compressed, or claims more than it holds.
    """
    manifest = _read_manifest(folder)
    listed = {str(entry["path"]) for entry in manifest["files"]}
    _check_names(folder, listed)
    found = _files(folder) - {MANIFEST}
    for path in sorted(found ^ listed):
        problem = "listed in the manifest, but not there" if path in listed else "not listed in the manifest"
        raise ModelError(f"{folder}: {shown(path)} is {problem}; {_REMEDY}")
    for expected in manifest["files"]:
        _check_file(folder, expected)
    return BundleInfo(folder, _digest(manifest["files"]), manifest["meta"])


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes named numeric arrays as one safetensors file; strings and objects are refused by the format."""
    # The format stores raw memory: a transposed view written as it lies would come back scrambled.
    safetensors.numpy.save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, by name.

    Raises:
        ModelError: the header is absurd, or disagrees with the file's size.
    """
    with _refused(path):
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load_file(path)
    return arrays


def save_sparse(path: Path, matrix: sp.csr_matrix) -> None:
    """Writes a csr matrix as npz, uncompressed: so a reader can bound memory by the file's size."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a sparse matrix is saved under a name ending in .npz")
    sp.save_npz(path, sp.csr_matrix(matrix), compressed=False)


def load_sparse(path: Path) -> sp.csr_matrix:
    """The csr matrix of a file written by `save_sparse`.

    Raises:
        ModelError: the file holds pickle, is compressed, claims more than it holds, is no csr, has more
            than `MAX_COLUMNS` columns, or its row pointers or column indices lead outside the matrix.
    """
    with _refused(path):
        _check_npz(path)
        matrix: Any = sp.load_npz(path)
        if matrix.format != "csr":
            raise ValueError(f"expected a csr matrix, found {matrix.format}")
        if matrix.shape[1] > MAX_COLUMNS:
            raise ValueError(f"{matrix.shape[1]} columns; at most {MAX_COLUMNS} are possible")
        if matrix.dtype.kind not in "fiub":
            raise ValueError(f"expected numbers, found {matrix.dtype}")
        matrix.check_format(full_check=True)
    return sp.csr_matrix(matrix)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        status = path.lstat()
        if not S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise ModelError(f"{path}: a link, no file, or over {MAX_MANIFEST_BYTES} bytes; {_REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8"))
        check = content.pop("check")
        is_whole = check == _digest(content) and content["schema"] == SCHEMA and isinstance(content["meta"], dict)
        shapes = [(type(e["path"]), type(e["size"]), type(e["sha256"])) for e in content["files"]]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, so this is no finished bundle; train one with: recsys train") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not a manifest: {shown(error)}; {_REMEDY}") from error
    if not is_whole or any(shape != (str, int, str) for shape in shapes):
        raise ModelError(f"{path}: damaged, or not of schema {SCHEMA}: its check is {shown(check)}; {_REMEDY}")
    manifest: dict[str, Any] = content
    return manifest


def _files(folder: Path) -> set[str]:
    """Relative paths of all files under a folder.

    Raises:
        ModelError: a link or a special file lies there, or the folder cannot be listed.
    """

    def unreadable(error: OSError) -> None:
        raise ModelError(f"{folder}: cannot be listed: {shown(error)}; {_REMEDY}") from error

    found = set()
    for where, folders, names in os.walk(folder, onerror=unreadable):
        for name in [*folders, *names]:
            path = Path(where, name)
            if path.is_symlink() or (name in names and not S_ISREG(path.lstat().st_mode)):
                raise ModelError(f"{folder}: {shown(path.relative_to(folder))} is a link or a special file; {_REMEDY}")
        found |= {Path(where, name).relative_to(folder).as_posix() for name in names}
    return found


def _check_names(folder: Path, paths: set[str]) -> None:
    for path in sorted(paths):
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
            raise ModelError(f"{folder}: {shown(path)} leads outside the bundle; {_REMEDY}")
        if pure.suffix not in SUFFIXES:
            raise ModelError(f"{folder}: {shown(path)} is none of {', '.join(sorted(SUFFIXES))}; {_REMEDY}")


def _entry(folder: Path, path: str) -> dict[str, Any]:
    with (folder / path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": path, "size": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _check_file(folder: Path, expected: dict[str, Any]) -> None:
    path = folder / expected["path"]
    found = _entry(folder, expected["path"])
    if (found["size"], found["sha256"]) != (expected["size"], expected["sha256"]):
        raise ModelError(
            f"{folder}: {shown(expected['path'])} has sha256 {found['sha256']} ({found['size']} bytes), "
            f"the manifest says {shown(expected['sha256'])} ({expected['size']} bytes); {_REMEDY}"
        )
    with _refused(path):
        if path.suffix == ".npz":
            _check_npz(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):  # reads the header and holds it against the size
                pass


def _check_npz(path: Path) -> None:
    """Holds every header of an npz against the bytes that are there, before anything is allocated."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed; ours never are")
        # Stored members cannot grow, but overlapping ones could.
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members claim more bytes than the file has")
        for member in members:
            _check_npy(archive, member)


def _check_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{shown(member.filename)} has npy version {version}; expected (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError(f"{shown(member.filename)} holds objects, which only pickle could read")
        # Python integers: a product of absurd axes does not overflow.
        if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{shown(member.filename)} claims shape {shown(shape)}, which its bytes do not hold")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turns what the readers of array files raise on damaged or hostile input into one ModelError."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; {_REMEDY}") from None
    except (
        SafetensorError,
        zipfile.BadZipFile,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
        NotImplementedError,
    ) as error:
        raise ModelError(f"{path}: refused: {shown(error, limit=200)}; {_REMEDY}") from error

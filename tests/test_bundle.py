import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from recsys.bundle import MANIFEST, load_arrays, load_sparse, open_bundle, save_arrays, save_sparse, seal
from recsys.errors import ModelError


class Evil:
    """Unpickling it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "cf").mkdir(parents=True)
    save_arrays(folder / "weights.safetensors", scale=np.array([1.0, 2.0], dtype=np.float32))
    save_sparse(folder / "cf" / "near.npz", sp.csr_matrix(np.array([[0.0, 3.0], [4.0, 0.0]])))
    (folder / "tokenizer.json").write_text("{}")
    seal(folder, {"window": "2024-01"})
    return folder


def edit_manifest(folder: Path, **first_file: object) -> None:
    """Edits the first entry as an attacker would: with the check made right again."""
    from recsys.bundle import _digest

    content = json.loads((folder / MANIFEST).read_text())
    del content["check"]
    content["files"][0].update(first_file)
    (folder / MANIFEST).write_text(json.dumps(content | {"check": _digest(content)}))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def csr_members(indices: list[int], indptr: list[int], shape: list[int]) -> dict[str, bytes]:
    values: dict[str, np.ndarray] = {
        "data": np.ones(len(indices)),
        "indices": np.array(indices, dtype=np.int32),
        "indptr": np.array(indptr),
    }
    values |= {"shape": np.array(shape), "format": np.array(b"csr")}
    return {f"{name}.npy": npy(value) for name, value in values.items()}


def test_sealed_folder_opens_with_its_meta(bundle: Path) -> None:
    info = open_bundle(bundle)
    assert info.folder == bundle
    assert info.meta == {"window": "2024-01"}
    assert len(info.sha256) == 64


def test_hash_follows_the_files_and_neither_place_nor_meta(bundle: Path, tmp_path: Path) -> None:
    first = open_bundle(bundle)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    assert seal(copy, {"window": "other"}).sha256 == first.sha256
    (copy / "tokenizer.json").write_text("[]")
    assert seal(copy, {}).sha256 != first.sha256


def test_every_flipped_bit_of_every_file_is_seen(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    for path in [p for p in bundle.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        for bit in rng.integers(len(whole) * 8, size=8):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << int(bit % 8)
            path.write_bytes(broken)
            with pytest.raises(ModelError, match=path.name):
                open_bundle(bundle)
        path.write_bytes(whole)
    open_bundle(bundle)


def test_changed_file_is_named_with_both_hashes(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("[]")
    empty_object = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    empty_list = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    with pytest.raises(ModelError, match=rf"tokenizer.json' has sha256 {empty_list}.*{empty_object}"):
        open_bundle(bundle)


@pytest.mark.parametrize("size", [0, 3, 10, -1])
def test_cut_file_is_seen(bundle: Path, size: int) -> None:
    for name in ("weights.safetensors", MANIFEST):
        whole = (bundle / name).read_bytes()
        (bundle / name).write_bytes(whole[:size])
        with pytest.raises(ModelError, match=name):
            open_bundle(bundle)
        (bundle / name).write_bytes(whole)


def test_unlisted_missing_and_unfinished_are_refused(bundle: Path) -> None:
    (bundle / "extra.json").write_text("{}")
    with pytest.raises(ModelError, match=r"extra\.json' is not listed"):
        open_bundle(bundle)
    (bundle / "extra.json").unlink()
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json' is listed in the manifest, but not there"):
        open_bundle(bundle)
    (bundle / MANIFEST).unlink()
    with pytest.raises(ModelError, match="no finished bundle"):
        open_bundle(bundle)


def test_links_and_special_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    data = (bundle / "tokenizer.json").read_bytes()
    (bundle / "tokenizer.json").rename(tmp_path / "outside.json")
    (bundle / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json' is a link"):
        open_bundle(bundle)
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").write_bytes(data)
    (bundle / "folder").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="folder' is a link"):
        open_bundle(bundle)
    (bundle / "folder").unlink()
    os.mkfifo(bundle / "pipe.json")
    with pytest.raises(ModelError, match=r"pipe\.json' is a link or a special file"):
        seal(bundle, {})


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_a_manifest_that_is_no_file_is_refused_before_it_is_read(bundle: Path, make: Callable[[Path], None]) -> None:
    (bundle / MANIFEST).unlink()
    make(bundle / MANIFEST)
    with pytest.raises(ModelError, match="no file"):
        open_bundle(bundle)


def test_a_matrix_of_no_numbers_is_refused(tmp_path: Path) -> None:
    sp.save_npz(tmp_path / "m.npz", sp.csr_matrix(np.ones((2, 2)) * 1j), compressed=False)
    with pytest.raises(ModelError, match="expected numbers, found complex128"):
        load_sparse(tmp_path / "m.npz")


@pytest.mark.parametrize("path", ["../outside.json", "/etc/hosts.json", "cf/../../outside.json", "a\\..\\b.json"])
def test_manifest_that_leads_outside_is_refused(bundle: Path, path: str) -> None:
    edit_manifest(bundle, path=path)
    with pytest.raises(ModelError, match="leads outside"):
        open_bundle(bundle)


@pytest.mark.parametrize("entry", [{"size": "1"}, {"sha256": None}, {"path": 3}])
def test_manifest_of_other_types_is_refused(bundle: Path, entry: dict[str, object]) -> None:
    edit_manifest(bundle, **entry)
    with pytest.raises(ModelError, match=r"manifest\.json: damaged"):
        open_bundle(bundle)


def test_pickle_file_is_refused_by_its_suffix(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    with pytest.raises(ModelError, match=r"model\.pkl' is none of"):
        seal(bundle, {})
    assert not (tmp_path / "marker").exists()


def test_pickle_inside_npz_is_refused_and_never_runs(bundle: Path, tmp_path: Path) -> None:
    objects = np.array([Evil(tmp_path / "marker")], dtype=object)
    members = csr_members([1], [0, 1, 1], [2, 2]) | {"data.npy": npy(objects)}
    path = zipped(bundle / "cf" / "near.npz", members)
    with pytest.raises(ModelError, match="holds objects, which only pickle could read"):
        load_sparse(path)
    with pytest.raises(ModelError, match=r"near\.npz: refused"):
        seal(bundle, {})
    raw = zipped(bundle / "cf" / "near.npz", {"data.npy": pickle.dumps(Evil(tmp_path / "marker"))})
    with pytest.raises(ModelError, match="magic string"):
        load_sparse(raw)
    assert not (tmp_path / "marker").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))  # noqa: S301 - shows that the trap works
    assert (tmp_path / "marker").exists()


def test_zip_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "a.npz", {"data.npy": npy(np.zeros(10**6))}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ModelError, match="it is compressed"):
        load_sparse(bomb)


def test_absurd_headers_are_refused(bundle: Path, tmp_path: Path) -> None:
    claim = npy(np.zeros(1)).replace(b"(1,), }" + b" " * 15, b"(1000000000000000,), }")
    with pytest.raises(ModelError, match=r"claims shape '\(1000000000000000,\)'"):
        load_sparse(zipped(tmp_path / "a.npz", {"data.npy": claim}))
    for header in (struct.pack("<Q", 2**62), struct.pack("<Q", 10**9) + b"{}", b""):
        (bundle / "weights.safetensors").write_bytes(header)
        with pytest.raises(ModelError, match=r"weights\.safetensors: refused.*header"):
            load_arrays(bundle / "weights.safetensors")
        with pytest.raises(ModelError, match=r"weights\.safetensors: refused"):
            seal(bundle, {})


@pytest.mark.parametrize(
    "indices, indptr, shape",
    [
        ([0, 1], [0, 1, 3], [2, 2]),  # row pointers end behind the data
        ([0, 1], [0, 2, 1], [2, 2]),  # row pointers fall
        ([0, 1], [0, 1, 2], [3, 2]),  # one row pointer too few
        ([0, 5], [0, 1, 2], [2, 2]),  # a column that is not there
        ([0, -1], [0, 1, 2], [2, 2]),
        ([0, 1], [0, 1, 2], [2, 2**40]),
        ([0, 1], [0, 1, 2], [-2, 2]),
    ],
)
def test_inconsistent_sparse_is_refused(
    tmp_path: Path, indices: list[int], indptr: list[int], shape: list[int]
) -> None:
    path = zipped(tmp_path / "a.npz", csr_members(indices, indptr, shape))
    with pytest.raises(ModelError, match=r"a\.npz: refused"):
        load_sparse(path)


def test_consistent_sparse_made_by_hand_loads(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", csr_members([1, 0], [0, 1, 2], [2, 2]))
    np.testing.assert_array_equal(load_sparse(path).toarray(), [[0, 1], [1, 0]])


def test_arrays_round_trip_whatever_their_memory_layout(tmp_path: Path) -> None:
    whole = {"turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "one": np.array(7), "none": np.zeros((0, 4))}
    save_arrays(tmp_path / "a.safetensors", **whole)
    loaded = load_arrays(tmp_path / "a.safetensors")
    assert set(loaded) == set(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape


def test_sparse_round_trip_keeps_values_and_type(tmp_path: Path) -> None:
    matrix = sp.csr_matrix(np.array([[0, 2, 0], [0, 0, 0]], dtype=np.float32))
    save_sparse(tmp_path / "a.npz", matrix)
    loaded = load_sparse(tmp_path / "a.npz")
    np.testing.assert_array_equal(loaded.toarray(), matrix.toarray())
    assert loaded.dtype == np.float32
    assert isinstance(loaded, sp.csr_matrix)
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        save_sparse(tmp_path / "a", matrix)


def test_crash_before_the_seal_leaves_no_bundle_and_the_rerun_heals(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    with pytest.raises(ModelError, match="no finished bundle"):
        open_bundle(bundle)
    assert seal(bundle, {"window": "2024-02"}).meta == {"window": "2024-02"}


def test_meta_that_is_no_json_is_refused(bundle: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        seal(bundle, {"loss": float("nan")})

"""Feature files: the same bytes from the same input, read by mapping, whole or known to be damaged."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_store import SETTINGS, tensors

from vsim_fast.errors import OutputError
from vsim_fast.feature_store import DamagedFeatures, settings_hash, write_features
from vsim_fast.feature_store.files import FeatureReader

HASH = settings_hash(SETTINGS)
LAYOUTS = ["safetensors", "npy"]
MANY = {
    "a": torch.randn(2, 3).half(), "b": torch.randn(4, 6).bfloat16().T, "c": torch.tensor(3), "d": torch.zeros(0, 5),
    "e": torch.rand(3) > 0.5, "f": torch.rand(5).double(), "g": torch.arange(7, dtype=torch.uint8),
    "h": np.arange(6, dtype=">i4").reshape(2, 3), "i": np.array(2.5, np.float32),
}  # fmt: skip


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def bytes_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_and_facts_come_back(tmp_path, layout):
    facts = {"path": "\udcff/ü", "n": 1.5, "list": [1, None], "numbers": {10: "a", 9: "b"}}
    stored = write_features(tmp_path, "abc-1", HASH, layout, MANY, facts)
    path = tmp_path / stored.file
    assert stored.file == f"features/ab/abc-1.{HASH}" + (".safetensors" if layout == "safetensors" else "")
    reader = FeatureReader(path)
    assert reader.stored == (size_of(path), reader.metadata["digest"]) == stored[1:]
    assert reader.metadata["key"] == "abc-1" and reader.metadata["settings"] == HASH
    assert reader.metadata["facts"] == facts | {"numbers": {"10": "a", "9": "b"}}
    reader.check()
    for arrays in (reader.arrays(), reader.arrays(mmap=False), reader.arrays(iter(["a", "b"]))):
        for name, array in arrays.items():
            expected = torch.as_tensor(MANY[name].astype("i4") if name == "h" else MANY[name])
            if name == "b":
                assert array.dtype == np.float32
                expected = expected.float()
            assert tuple(reader.shape(name)) == array.shape == tuple(expected.shape)
            np.testing.assert_array_equal(array, expected.numpy())
            assert torch.from_numpy(array).shape == expected.shape  # no warning: it may be written to
    with pytest.raises(KeyError, match="has no x; it has a, b"):
        reader.arrays(["x"])


def test_other_programs_read_it(tmp_path):
    stored = write_features(tmp_path, "abc-1", HASH, "safetensors", MANY, {})
    found = safetensors.torch.load_file(tmp_path / stored.file)
    assert torch.equal(found["b"], MANY["b"]) and found["d"].shape == (0, 5) and torch.equal(found["e"], MANY["e"])
    stored = write_features(tmp_path, "abc-1", HASH, "npy", MANY, {})
    np.testing.assert_array_equal(np.load(tmp_path / stored.file / "a.npy"), MANY["a"].numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bytes_depend_on_the_input_alone(tmp_path, layout):
    found = []
    for folder, order in (("x", 1), ("y", -1)):
        given = dict(list(MANY.items())[::order])
        facts = dict([("b", 1), ("a", [2])][::order])
        stored = write_features(tmp_path / folder, "abc-1", HASH, layout, given, facts)
        found.append((stored, bytes_of(tmp_path / folder / stored.file)))
    assert found[0] == found[1]
    other = write_features(tmp_path, "abc-1", HASH, layout, MANY, {"a": [2], "b": 2})
    assert other.digest != found[0][0].digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_maps_the_file(tmp_path, layout):
    stored = write_features(tmp_path, "abc-1", HASH, layout, {"big": np.zeros((1 << 20, 16), np.float32)}, {})
    resident = _resident()
    array = FeatureReader(tmp_path / stored.file).arrays()["big"]
    assert _resident() - resident < 8 << 20
    array[5] = 1  # in memory alone
    assert not np.array(FeatureReader(tmp_path / stored.file).arrays()["big"][5]).any()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_off_anywhere_is_damaged(tmp_path, layout):
    stored = write_features(tmp_path, "abc-1", HASH, layout, tensors(), {"n": 1})
    path = tmp_path / stored.file
    for name, data in bytes_of(path).items():
        file = path / name if path.is_dir() else path
        for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:length])
            with pytest.raises(DamagedFeatures, match=re.escape(path.name)):
                FeatureReader(path)
        file.unlink()
        with pytest.raises(DamagedFeatures):
            FeatureReader(path)
        file.write_bytes(data)
    FeatureReader(path).check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_flipped_bit_is_found(tmp_path, layout):
    stored = write_features(tmp_path, "abc-1", HASH, layout, tensors(), {"n": 1})
    path = tmp_path / stored.file
    for name, data in bytes_of(path).items():
        file = path / name if path.is_dir() else path
        for place in range(0, len(data), 37):
            harmed = bytearray(data)
            harmed[place] ^= 0x10
            if harmed.decode("latin1").split() == data.decode("latin1").split():
                continue  # padding
            file.write_bytes(harmed)
            with pytest.raises(DamagedFeatures):
                FeatureReader(path).check()
        file.write_bytes(data)
    FeatureReader(path).check()


def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (1 << 40, 1 << 62):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(DamagedFeatures, match="less than its header"):
            FeatureReader(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch, layout):
    stored = write_features(tmp_path, "abc-1", HASH, layout, tensors(), {})
    before = bytes_of(tmp_path / stored.file)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"{stored.file}.*: the disk is full"):
        write_features(tmp_path, "abc-1", HASH, layout, tensors(1), {})
    assert bytes_of(tmp_path / stored.file) == before and len(list((tmp_path / "features" / "ab").iterdir())) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_may_write_the_same_content(tmp_path, layout):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: write_features(tmp_path, "abc-1", HASH, layout, tensors(), {}), range(32)))
    assert len(set(found)) == 1 and len(list((tmp_path / "features" / "ab").iterdir())) == 1
    FeatureReader(tmp_path / found[0].file).check()


def test_a_tensor_cannot_name_a_file_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="must be an identifier"):
        write_features(tmp_path, "abc-1", HASH, "npy", {"../x": torch.zeros(1)}, {})
    assert not any(path.is_file() for path in tmp_path.rglob("*"))

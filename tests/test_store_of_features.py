"""The store of a large batch: nothing lost by a kill, nothing overwritten, readers beside a writer, damage found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import vsim_fast
from vsim_fast.feature_store import Done, Failed, State, Store, file_digest

SETTINGS = {"encoder": {"spec": "builtin", "image_size": 224}, "sampling": {"fps": 1.0}, "keep": ["pooled"]}


def tensors(seed: int = 0, count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
    featureless = torch.zeros(count, dtype=torch.bool)
    featureless[0] = True
    return {
        "embedding": embedding, "pooled": torch.randn(count, 8, generator=generator).half(),
        "pts_seconds": torch.arange(count).double(), "featureless": featureless,
    }  # fmt: skip


def done(store: Store, n: int, root: Path | None = None, **more) -> Done:
    """One more video, with an output if there is a `root` for it."""
    path, key = f"/videos/{n}.mp4", f"{n:032x}-{n}"
    outputs = {}
    if root:
        (root / f"{n}_embedding.npy").write_bytes(bytes([n]) * 100)
        outputs = {f"{n}_embedding.npy": file_digest(root / f"{n}_embedding.npy")}
    return Done(key, path, {"n": n}, store.write_features(key, tensors(n), {"n": n}), outputs, **more)


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (*_, data) in files(folder).items()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(folder):
    with Store(folder, write=True, settings=SETTINGS) as opened:
        yield opened


def test_it_is_public():
    assert vsim_fast.Store is Store


def test_what_is_recorded_comes_back(folder, store, tmp_path):
    rows = [done(store, n, tmp_path) for n in range(3)]
    store.record(rows)
    store.record([Failed("k9", "/videos/9.mp4", "failed", "no video stream")])
    store.record([Failed(None, "/videos/8.mp4", "failed", "permission denied", remembered=False)])
    store.set_meta("last_run", {"done": 3})
    paths = [row.path for row in rows] + ["/videos/9.mp4", "/videos/8.mp4", "/videos/7.mp4"]
    keys = [row.key for row in rows] + ["k9", None, "k7"]
    for opened in (store, Store(folder)):
        states = opened.states(paths, keys)
        assert states[1] == State("done", None, 0, {"n": 1}, rows[1].outputs, rows[1].feature_file)
        assert [state.status for state in states] == ["done"] * 3 + ["failed", "new", "new"]
        assert [state.reason for state in states[3:]] == ["no video stream", "permission denied", None]
        assert len(opened) == 3 and opened.meta("last_run") == {"done": 3} and opened.meta("no") is None
        assert opened.settings == SETTINGS and opened.notes == []
        status = opened.status()
        assert (status["videos"], status["files"], status["failed"]) == (3, 3, 2)
        assert [failure["path"] for failure in status["failures"]] == ["/videos/8.mp4", "/videos/9.mp4"]
        assert status["writer"]["pid"] == os.getpid() and status["last_run"] == {"done": 3}
        found = opened.features(rows[2].key)
        assert {name: array.dtype.str for name, array in found.items()} == {
            "embedding": "<f4", "featureless": "|b1", "pooled": "<f2", "pts_seconds": "<f8"
        }  # fmt: skip
        for name, tensor in tensors(2).items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
        assert opened.states(paths[:1], [keys[1]])[0].outputs == {}  # of this content, but another path
        with pytest.raises(KeyError, match="holds no features of k9"):
            opened.features("k9")

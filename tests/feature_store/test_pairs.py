"""The store: contents known by their bytes, features whole or not at all, pair scores of thousands of videos."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vsim_fast.copies import SIGNALS, PairScores
from vsim_fast.errors import OutputError
from vsim_fast.feature_store import DamagedFeatures, content_key
from vsim_fast.feature_store import pairs as module
from vsim_fast.feature_store.pairs import FeatureStore

MIB = 1 << 20


@pytest.fixture
def store(tmp_path):
    with FeatureStore(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("place", [0, 5 * MIB, 20 * MIB, 40 * MIB - 1])
def test_the_key_is_of_the_content(tmp_path, place):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(place))
        os.truncate(path, 40 * MIB)
    assert content_key(paths[0]) == content_key(paths[1])
    with open(paths[1], "r+b") as file:
        file.seek(place)
        file.write(b"\1")
    assert content_key(paths[0]) != content_key(paths[1])
    os.truncate(paths[1], 40 * MIB - 1)
    assert content_key(paths[1]).endswith(f"-{40 * MIB - 1}")


def test_an_unchanged_file_is_not_read_for_its_key(tmp_path, store, monkeypatch):
    path, read = tmp_path / "a", []
    monkeypatch.setattr(module, "content_key", lambda path: read.append(path) or content_key(path))
    path.write_bytes(b"one")
    key = store.key(path)
    assert store.key(path) == key and len(read) == 1
    path.write_bytes(b"two")
    assert store.key(path) != key and len(read) == 2
    path.write_bytes(b"one")
    assert store.key(path) == key


def test_features_come_back_as_they_were(store):
    features = {
        "a": torch.randn(2, 3).half(), "b": torch.randn(4, 4).bfloat16().T, "c": torch.tensor(3),
        "d": torch.zeros(0, 5), "e": torch.rand(3) > 0.5,
    }  # fmt: skip
    pictures = [b"one", b"", b"three"]
    assert store.facts("k", "s") is None
    store.add("k", "s", features, pictures, {"name": "\udcff", "n": 1.5})
    assert store.facts("k", "s") == {"name": "\udcff", "n": 1.5} and store.facts("k", "t") is None
    assert store.thumbnails("k", "s") == pictures
    found = store.features("k", "s")
    assert list(sorted(found)) == list(features)
    for name, tensor in features.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    store.add("k", "s", {}, [], {})
    assert store.features("k", "s") == {} and store.thumbnails("k", "s") == []
    with pytest.raises(DamagedFeatures, match=r"no\.s\.safetensors: damaged features"):
        store.features("no", "s")


def test_failures_are_remembered_until_the_features_are_there(store):
    assert store.failure("k", "s") is None
    store.add_failure("k", "s", "broken")
    assert store.failure("k", "s") == "broken" and store.failure("k", "t") is None
    store.add("k", "s", {}, [], {})
    assert store.failure("k", "s") is None


def test_one_run_at_a_time(tmp_path, store):
    told = rf"store: in use by another run \(process {os.getpid()} on .*\); wait for it, or"
    with pytest.raises(OutputError, match=told):
        FeatureStore(tmp_path / "store")
    store.__exit__()
    with FeatureStore(tmp_path / "store"):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/store: cannot be written"):
        FeatureStore(tmp_path / "file" / "store")


def known(table, count: int) -> np.ndarray:
    return table.scores(np.arange(count), np.arange(count))


def scores(value: float, verdict: str = "different") -> PairScores:
    signals = dict.fromkeys(SIGNALS, value) | {SIGNALS[-1]: float("nan")}
    return PairScores(
        value, 0.5, 0.25, 0.75, 0.75, 0.125, "mirrored", verdict, verdict == "duplicate", "because", signals,
        [(0, 59, 0.5), (1, 58, 0.25)],
    )  # fmt: skip


def test_pairs_are_computed_once(store):
    table = store.pairs("c", ["x", "y", "z"])
    pairs = np.array([[0, 1], [0, 2], [1, 2], [2, 1], [1, 1]])
    assert (table.to_compute(pairs, 0.2) == pairs).all()
    table.add(0, 1, scores(0.5, "duplicate"))
    table.add(2, 1, scores(0.1))
    table.add(1, 1, scores(0.15, "contains"))
    table.flush()
    assert table.to_compute(pairs, 0.2).tolist() == [[0, 2], [1, 2]]
    again = store.pairs("c", ["z", "new", "y", "x"])  # other positions, more videos
    expected = np.full((4, 4), np.nan, np.float32)
    expected[3, 2], expected[0, 2], expected[2, 2] = 0.5, 0.1, 0.15
    np.testing.assert_array_equal(known(again, 4), expected)
    np.testing.assert_array_equal(again.scores(np.array([2, 3]), np.array([2])), [[np.float32(0.15)], [0.5]])
    found = again[3, 2]
    assert found._replace(signals={}) == scores(0.5, "duplicate")._replace(signals={})
    assert found.signals[SIGNALS[0]] == 0.5 and np.isnan(found.signals[SIGNALS[-1]])
    assert {(a, b): s.verdict for a, b, s in again.alike()} == {(3, 2): "duplicate", (2, 2): "contains"}
    assert np.isnan(known(store.pairs("other settings", ["x", "y"]), 2)).all()
    assert np.isnan(known(store.pairs("c", ["x"]), 1)).all() and list(store.pairs("c", ["x"]).alike()) == []


def test_of_what_differs_the_score_alone_is_kept(store):
    table = store.pairs("c", ["x", "y"])
    pairs = np.array([[0, 1], [1, 0]])
    table.to_compute(pairs, 0.2)
    table.add(0, 1, scores(0.2))
    table.add(1, 0, scores(0.1999))
    table.flush()
    assert table[0, 1].score == pytest.approx(0.2)
    assert table[0, 1].reason == "" and table[0, 1].matches == []
    with pytest.raises(KeyError):
        table[1, 0]
    assert table.to_compute(pairs, 0.1).tolist() == [[1, 0]]
    table.add(1, 0, scores(0.1999))
    table.flush()
    assert table.to_compute(pairs, 0.1).tolist() == [] and table[1, 0].score == pytest.approx(0.1999)


def test_thousands_of_videos_take_four_bytes_a_pair(store, tmp_path):
    count = 400
    table = store.pairs("c", [f"k{n:03}" for n in range(count)])
    different = scores(0.05)
    ref, query = np.tril_indices(count, -1)
    for a, b in zip(query.tolist(), ref.tolist(), strict=True):
        table.add(a, b, different)
    table.flush()
    assert np.isfinite(known(table, count)).sum() == count * (count - 1) // 2
    assert (tmp_path / "store" / "ledger.sqlite").stat().st_size < 8 * count * count


def test_nothing_is_half_written(store, monkeypatch):
    table = store.pairs("c", ["x", "y"])
    table.add(0, 1, scores(0.5, "duplicate"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_packed", lambda scores: (_ for _ in ()).throw(KeyboardInterrupt))
        table.flush()
    assert np.isnan(known(table, 2)).all() and list(table.alike()) == []
    table.flush()
    assert known(table, 2)[0, 1] == np.float32(0.5)


def test_a_killed_run_leaves_no_lock(tmp_path):
    script = (
        "import sys, os; sys.path[:0] = sys.argv[2:]\n"
        "from vsim_fast.feature_store.pairs import FeatureStore\n"
        "store = FeatureStore(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "store", *sys.path])
    assert ended.returncode == -9
    with FeatureStore(tmp_path / "store") as store:
        assert store.notes == []

"""What other tools read: the vectors of a store, row by row, in their formats."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from vsim_fast.errors import UsageError, VsimError
from vsim_fast.exports import export_lance, export_parquet, export_vsc
from vsim_fast.feature_store import Done, Store

NAMES = ["a", "b", "b~2", "c"]


@pytest.fixture
def store(tmp_path):
    """Videos a, b and c of 3, 4 and 5 frames, the first of each featureless; two files have b's content."""
    with Store(tmp_path / "store", write=True, settings={}) as store:
        for n, key in enumerate(("ka", "kb", "kc")):
            count = 3 + n
            tensors = {
                "embedding": torch.nn.functional.normalize(torch.randn(6), dim=0), "pooled": torch.randn(count, 6),
                "pts_seconds": torch.arange(count).double() / 2, "featureless": torch.arange(count) == 0,
            }  # fmt: skip
            store.record([Done(key, f"/v/{key[1]}.mp4", {}, store.write_features(key, tensors, {}))])
        store.record([Done("kb", "/w/b.mp4", {}, store.write_features("kb", store.features("kb"), {}))])
        names = store.names(["/v/a.mp4", "/v/b.mp4", "/w/b.mp4", "/v/c.mp4"], "abbc")
        assert [name.split("~")[0] for name in names] == list("abbc")
        yield store


def expected(store) -> tuple[list[str], np.ndarray]:
    videos, vectors = store.embeddings()
    rows = [(name, n) for n, video in enumerate(videos) for name in video.names]
    assert len(rows) == 4
    return [name for name, _ in rows], vectors[[n for _, n in rows]]


def test_parquet(store, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("vsim_fast.exports.ROWS", 3)
    assert export_parquet(store, tmp_path / "out" / "v.parquet") == 4
    table = parquet.read_table(tmp_path / "out" / "v.parquet")
    assert [(field.name, str(field.type).split("[")[0]) for field in table.schema] == [
        ("id", "string"), ("embedding", "fixed_size_list<element: float>")
    ]  # fmt: skip
    names, vectors = expected(store)
    assert table["id"].to_pylist() == names
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), vectors)
    first = (tmp_path / "out" / "v.parquet").read_bytes()
    export_parquet(store, tmp_path / "out" / "v.parquet")
    assert (tmp_path / "out" / "v.parquet").read_bytes() == first


@pytest.mark.filterwarnings("ignore")
def test_lance_is_written_at_once(store, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    assert export_lance(store, tmp_path / "db") == 4
    table = lancedb.connect(tmp_path / "db").open_table("videos")
    names, vectors = expected(store)
    assert table.to_arrow()["id"].to_pylist() == names and len(table.list_versions()) == 1
    assert table.search(vectors[3]).limit(1).to_list()[0]["id"] == names[3]
    assert export_lance(store, tmp_path / "db") == 4
    assert lancedb.connect(tmp_path / "db").open_table("videos").count_rows() == 4


def test_vsc(store, tmp_path):
    assert export_vsc(store, tmp_path / "v.npz") == 2 + 3 + 3 + 4
    with np.load(tmp_path / "v.npz", allow_pickle=False) as found:
        ids, features, timestamps = found["video_ids"], found["features"], found["timestamps"]
    names, _ = expected(store)
    assert ids.tolist() == [name for name, count in zip(names, (2, 3, 3, 4), strict=True) for _ in range(count)]
    assert features.dtype == timestamps.dtype == np.float32 and features.shape == (12, 6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    pooled = store.features("kc")["pooled"][1:]
    np.testing.assert_allclose(features[8:], pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-6)
    assert timestamps[8:].tolist() == [0.5, 1, 1.5, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "v.npz"]


@pytest.mark.parametrize("export", [export_parquet, export_vsc, export_lance])
def test_an_empty_store_is_told(tmp_path, export):
    if export is not export_vsc:
        pytest.importorskip("pyarrow")
    if export is export_lance:
        pytest.importorskip("lancedb")
    with Store(tmp_path / "store", write=True, settings={}) as store, pytest.raises(UsageError, match="nothing to"):
        export(store, tmp_path / "out")
    assert not (tmp_path / "out").is_file()


@pytest.mark.parametrize(("export", "extra"), [(export_parquet, "parquet"), (export_lance, "lance")])
def test_a_missing_library_names_its_extra(store, tmp_path, monkeypatch, export, extra):
    for name in ("pyarrow", "pyarrow.parquet", "lancedb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(VsimError, match=rf"is not installed: pip install 'vsim_fast\[{extra}\]'"):
        export(store, tmp_path / "out")

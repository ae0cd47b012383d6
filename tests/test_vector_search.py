"""Search in a store by image, video and vector, and its near-duplicates: against all products, on every backend."""

from __future__ import annotations

import csv
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

import vsim_fast
from vsim_fast import vector_search
from vsim_fast.batch import embed
from vsim_fast.encode import load_encoder
from vsim_fast.errors import CorruptVideo, OpenError, OutputError, UnsupportedVideo, UsageError, VsimError
from vsim_fast.feature_store import Done, Store
from vsim_fast.inputs import path_id
from vsim_fast.vector_search import VectorSearch, near_duplicates, search, write_near_duplicates
from vsim_fast.video import Limits, Sampling, open_video, read_image

D, T = 24, 5
SETTINGS = {
    "encoder": {"spec": "builtin", "id": "builtin+x", "dtype": "float32", "image_size": 112},
    "sampling": {"rule": "time_grid", "fps": 2.0}, "keep": ["pooled"],
}  # fmt: skip
BACKENDS = ["exact", "faiss", "lance"]


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def fill(folder, count, *, keep=("pooled",), dtype=torch.float16, featureless=()):
    """Random features of `count` videos; the second frame of each shows nothing."""
    with Store(folder, write=True, settings=SETTINGS | {"keep": list(keep)}) as store:
        rows = []
        for n in range(count):
            generator = torch.Generator().manual_seed(n)
            frames = torch.randn(T, D, generator=generator)
            blank = (torch.arange(T) == 1) | (n in featureless)
            shown = frames[:1] if blank.all() else frames[~blank]
            embedding = torch.nn.functional.normalize(shown.sum(0), dim=0)
            tensors = {
                "embedding": embedding, "pts_seconds": torch.arange(T).double() / 2, "featureless": blank,
                **{name: frames.to(dtype) for name in keep if name == "pooled"},
                **{name: frames.flip(1).to(dtype) for name in keep if name == "cls"},
            }  # fmt: skip
            facts = {"frames": T, "featureless_frames": int(blank.sum())}
            rows.append(Done(f"{n:032x}", f"/v/{n}.mp4", facts, store.write_features(f"{n:032x}", tensors, facts)))
        store.names([row.path for row in rows], [f"v{n}" for n in range(count)])
        store.record(rows)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("filled") / "store", 60)


def test_they_are_public():
    assert vsim_fast.search is search and vsim_fast.near_duplicates is near_duplicates
    assert vsim_fast.VectorSearch is VectorSearch


@pytest.mark.parametrize("kind", ["array", "tensor", "half", "file"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_videos_like_a_vector(folder, tmp_path, backend, kind):
    pytest.importorskip({"faiss": "faiss", "lance": "lancedb"}.get(backend, "numpy"))
    videos, vectors = Store(folder).embeddings()
    query = np.random.default_rng(0).standard_normal(D).astype(np.float32)
    given = {"array": query, "tensor": torch.from_numpy(query), "half": query.astype(np.float16)}.get(kind)
    if kind == "file":
        np.save(given := tmp_path / "v.npy", query)
    got = search(given, folder, k=7, backend=backend)
    scores = vectors @ unit(query)
    order = np.argsort(-scores)[:7]
    assert [hit.path for hit in got.hits] == [videos[n].paths[0] for n in order]
    np.testing.assert_allclose([hit.score for hit in got.hits], scores[order], atol=1e-3 if kind == "half" else 1e-6)
    assert [hit.rank for hit in got.hits] == list(range(1, 8)) and got.exact and got.videos == got.vectors == 60
    assert [hit.name for hit in got.hits] == [f"v{n}" for n in order]
    assert got.query == ("v.npy" if kind == "file" else "vector") or got.query == path_id(given)
    assert got.encoder == "builtin+x" and not got.notes
    for hit, n in zip(got.hits, order, strict=True):  # its frame most like the query, never one that shows nothing
        frames = np.array(Store(folder).features(videos[n].key)["pooled"], np.float32)
        cosines = unit(frames) @ unit(query)
        cosines[1] = -2
        assert hit.pts_seconds == cosines.argmax() / 2 and hit.query_pts_seconds is None


@pytest.mark.parametrize("k", [1, 9, 60, 100])
@pytest.mark.parametrize("backend", BACKENDS)
def test_videos_by_their_best_frame(folder, backend, k):
    pytest.importorskip({"faiss": "faiss", "lance": "lancedb"}.get(backend, "numpy"))
    vectors, numbers, pts = Store(folder).frame_vectors()
    query = np.random.default_rng(1).standard_normal(D).astype(np.float32)
    scores = vectors.astype(np.float32) @ unit(query).astype(vectors.dtype if backend == "exact" else np.float32)
    best = np.array([scores[numbers == n].max() for n in range(60)])
    got = search(query, folder, k=k, level="frame", backend=backend)
    order = np.argsort(-best)[:k]
    np.testing.assert_allclose([hit.score for hit in got.hits], best[order], atol=1e-3)
    assert len({hit.path for hit in got.hits}) == min(k, 60) and got.vectors == 60 * (T - 1)
    for hit in got.hits:
        n = int(hit.name[1:])
        assert hit.pts_seconds == pts[numbers == n][scores[numbers == n].argmax()]


def test_a_video_of_many_frames_does_not_hide_the_others(folder, monkeypatch):
    """All of the first results may be frames of one video."""
    search_in = VectorSearch(folder, level="frame")
    search_in._video_of[:] = np.repeat(range(60), T - 1)
    frames = search_in._index._vectors
    frames[: 40 * (T - 1)] = frames[0]  # forty videos' worth of one frame, here of one video
    search_in._video_of[: 40 * (T - 1)] = 0
    monkeypatch.setattr(vector_search, "MOST_RESULTS", 50)
    got = search_in.search(frames[0].float(), 5)
    assert got.hits[0].name == "v0" and len({hit.name for hit in got.hits}) == 5
    rest = (frames[40 * (T - 1) :].float() @ frames[0].float()).view(20, T - 1).amax(1).sort(descending=True)
    assert [hit.name for hit in got.hits[1:]] == [f"v{40 + n}" for n in rest.indices[:4].tolist()]


@pytest.mark.parametrize("backend", ["faiss", "lance"])
def test_index_of_lists_is_kept_and_found_again(folder, tmp_path, monkeypatch, backend):
    pytest.importorskip({"faiss": "faiss", "lance": "lancedb"}[backend])
    monkeypatch.setattr(vector_search, "LISTS_FROM", 50)
    query = Store(folder).embeddings()[1][7]
    options = dict(backend=backend, index_folder=tmp_path / "index")
    first = search(query, folder, k=3, **options)
    assert not first.exact and "may have missed some" in first.notes[-1]
    assert first.hits[0].name == "v7" and first.hits[0].score == pytest.approx(1, abs=1e-5)
    made = sorted(tmp_path.rglob("*"))
    assert search(query, folder, k=3, **options) == first and sorted(tmp_path.rglob("*")) == made


@pytest.mark.parametrize(("backend", "module"), [("faiss", "faiss"), ("lance", "lancedb")])
def test_missing_library_names_the_extra(folder, monkeypatch, backend, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VsimError, match=rf"{module} does not import .*: pip install 'vsim_fast\[{backend}\]'"):
        search(np.ones(D, np.float32), folder, backend=backend)


# By file: the store's own encoder and sampling.


def write_clip(path, seed):
    """Three seconds that pan over a picture of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(blocks).resize((384, 128), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for n in range(30):
            frame = np.ascontiguousarray(wide[:, 6 * n : 6 * n + 192])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Three clips, embedded by the batch."""
    root = tmp_path_factory.mktemp("embedded")
    (root / "clips").mkdir()
    for n in range(3):
        write_clip(root / "clips" / f"c{n}.mp4", seed=n)
    (root / "clips" / "copy of c1.mp4").write_bytes((root / "clips" / "c1.mp4").read_bytes())
    embed(
        [root / "clips"], output_dir=root / "out", fps=2, keep=("pooled", "cls"), device="cpu", precision="float32",
        image_size=112, workers=1,
    )  # fmt: skip
    return root


@pytest.mark.parametrize("level", ["video", "frame"])
def test_a_stored_video_finds_itself(embedded, level):
    got = search(embedded / "clips" / "c1.mp4", embedded / "out", level=level, device="cpu")
    assert got.hits[0].path.endswith("c1.mp4") and len(got.hits[0].paths) == 2 and len(got.hits) == 3
    assert got.hits[0].score == pytest.approx(1, abs=1e-4) and got.hits[1].score < 0.99
    if level == "frame":
        assert got.hits[0].pts_seconds == got.hits[0].query_pts_seconds


@pytest.mark.parametrize("level", ["video", "frame"])
def test_a_frame_finds_its_video_and_time(embedded, tmp_path, level):
    with open_video(embedded / "clips" / "c2.mp4", Sampling(fps=2), output="rgb") as reader:
        frames = [(pts, rgb) for batch in reader for pts, rgb in zip(batch.pts_seconds, batch.rgb, strict=True)]
    pts, rgb = frames[3]
    Image.fromarray(rgb.numpy()).save(tmp_path / "frame.png")
    got = search(tmp_path / "frame.png", Store(embedded / "out" / "store"), k=2, level=level, device="cpu")
    assert got.hits[0].name == "c2" and got.hits[0].pts_seconds == pytest.approx(float(pts)) and not got.notes
    assert len(got.hits) == 2 and got.hits[0].query_pts_seconds is None


def test_queries_that_show_nothing_are_told(embedded, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "black.png")
    got = search(tmp_path / "black.png", embedded / "out", device="cpu")
    assert got.notes == ["the query image is black or featureless: what it is like means nothing"]


def test_encoder_must_be_the_stores(embedded, folder):
    other = load_encoder("builtin", device="cpu", precision="float32", image_size=126)
    with pytest.raises(UsageError, match=r"its vectors are of encoder builtin.* which those of builtin.* cannot be"):
        search(embedded / "clips" / "c1.mp4", embedded / "out", encoder=other)
    with pytest.raises(UsageError, match="its vectors are of encoder builtin\\+x"):  # loaded, and another one here
        search(embedded / "clips" / "c1.mp4", folder, device="cpu")
    same = load_encoder("builtin", device="cpu", precision="float32", image_size=112)
    assert search(embedded / "clips" / "c1.mp4", embedded / "out", encoder=same).hits[0].name == "c1"


def test_images_are_read_upright_and_within_limits(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    assert read_image(tmp_path / "turned.jpg").shape == (24, 16, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png"), rgb)
    with pytest.raises(UnsupportedVideo, match="24x16 pixels are more than the 100 allowed"):
        read_image(tmp_path / "plain.png", Limits(max_pixels=100))
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:-200])
    with pytest.raises(CorruptVideo, match="the image does not decode"):
        read_image(tmp_path / "cut.png")


def test_bad_files(embedded, tmp_path):
    searching = VectorSearch(embedded / "out", device="cpu")
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for name in ("missing.png", "missing.mp4", "missing.npy", "bad.png", "bad.npy"):
        with pytest.raises(OpenError, match=name):
            searching.search(tmp_path / name)


# Near-duplicates.


def test_near_duplicates_are_all_pairs_above_the_threshold(folder, tmp_path):
    videos, vectors = Store(folder).embeddings()
    products = np.triu(vectors @ vectors.T, 1)
    want = {(videos[i].paths[0], videos[j].paths[0]) for i, j in zip(*np.nonzero(products > 0.3), strict=True)}
    got = near_duplicates(folder, 0.3, device="cpu")
    assert {(pair.query, pair.ref) for pair in got} == want and len(got) == len(want) > 10
    assert [pair.score for pair in got] == sorted((pair.score for pair in got), reverse=True)
    write_near_duplicates(tmp_path / "pairs.csv", got)
    with open(tmp_path / "pairs.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["query_id", "ref_id", "score"] and rows[1] == [*got[0][:2], f"{got[0].score:.6f}"]
    assert len(vsim_fast.read_pairs(tmp_path / "pairs.csv")) == len(got)
    with pytest.raises(UsageError, match="more than most=3 pairs"):
        near_duplicates(folder, 0.3, most=3, device="cpu")


def test_files_of_one_content_are_near_duplicates(embedded):
    (pair,) = near_duplicates(embedded / "out", 0.999, device="cpu")
    assert pair.query.endswith("c1.mp4") and pair.ref.endswith("copy of c1.mp4") and pair.score == 1


def test_videos_that_show_nothing_are_no_duplicates(tmp_path):
    fill(tmp_path / "store", 6, featureless=(2, 4))
    got = near_duplicates(tmp_path / "store", -1, device="cpu")
    assert len(got) == 6 and not {"/v/2.mp4", "/v/4.mp4"} & {path for pair in got for path in pair[:2]}


# Edges.


def test_empty_store(tmp_path):
    fill(tmp_path / "store", 0)
    got = search(np.ones(D, np.float32), tmp_path / "store")
    assert not got.hits and got.notes == ["the store holds no videos"]
    assert near_duplicates(tmp_path / "store") == []


def test_store_without_frames(tmp_path):
    fill(tmp_path / "store", 3, keep=())
    assert search(np.ones(D, np.float32), tmp_path / "store").hits[0].pts_seconds is None
    with pytest.raises(UsageError, match="has no vectors of frames"):
        search(np.ones(D, np.float32), tmp_path / "store", level="frame")


def test_refused(folder, tmp_path):
    query = np.ones(D, np.float32)
    for change, message in [
        (dict(k=0), "k must be a whole number of at least 1, got 0"),
        (dict(level="patch"), 'level must be "video" or "frame", got \'patch\''),
        (dict(backend="annoy"), "backend must be one of exact, faiss, lance, got 'annoy'"),
        (dict(query=query[1:]), r"must be 24 floating-point numbers, as this store's, got float32 \[23\]"),
        (dict(query=query.astype(int)), "must be 24 floating-point numbers"),
        (dict(query=0 * query), "a query vector must have a length above 0, got 0"),
        (dict(query=query * np.nan), "length above 0, got nan"),
    ]:
        with pytest.raises(UsageError, match=message):
            search(**{"query": query, "store": folder} | change)
    with pytest.raises(UsageError, match=r"threshold must lie in -1 … 1, got 2"):
        near_duplicates(folder, 2)
    with pytest.raises(OutputError, match="no feature store here"):
        search(query, tmp_path)

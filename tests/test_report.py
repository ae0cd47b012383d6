"""Heat maps against matplotlib, statistics.txt, and everything about report.html that needs no browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from vsim_fast.report import HeatmapWriter, ReportData, analysis_page, thumbnail, write_report, write_statistics
from vsim_fast.similarity import Stats

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
VOID = {"meta", "img", "input"}


def smooth_cosines(size: int) -> np.ndarray:
    """A random walk's cosine matrix [size, size]: smooth, symmetric, from about -0.5 to 1."""
    walk = np.random.default_rng(0).normal(size=(size, 6)).cumsum(0)
    walk /= np.linalg.norm(walk, axis=1, keepdims=True)
    return (walk @ walk.T).astype(np.float32)


def make_data(
    *, frames: int = 6, grid: tuple[int, int] = (4, 5), dim: int = 40, title: str = "clip.mp4", patches=None, **changes
) -> ReportData:
    """A small report over random features that decay like those of an encoder; each frame repeats half of the last."""
    generator = torch.Generator().manual_seed(3)
    positions = grid[0] * grid[1]
    if patches is None:
        patches = torch.randn(frames, positions, dim, generator=generator) * torch.arange(1, dim + 1) ** -0.7
        for t in range(1, frames):
            patches[t, ::2] = patches[t - 1, ::2] + 0.02 * patches[t, ::2]
    unit = torch.nn.functional.normalize(patches.float(), dim=-1)
    mean = torch.nn.functional.normalize(patches.float().mean(1), dim=-1)
    by_position = torch.einsum("tpd,spd->pts", unit, unit)
    pictures = np.random.default_rng(1).integers(0, 255, (frames, 90, 160, 3), dtype=np.uint8)
    fields = dict(
        title=title, video={"path": title, "codec": "h264", "corrupt": 0}, settings={"fps": 1.0, "reduce": None},
        encoder={"spec": "builtin", "preprocess": {"size": [64, 80]}}, notes=["Colour matrix guessed: BT.601."],
        pts_seconds=torch.arange(frames, dtype=torch.float64) * 0.5, frame_similarity=mean @ mean.T,
        position_mean=by_position.mean((1, 2)).reshape(grid),
        statistics={"Frame-wise Similarity": Stats((frames, frames), 0.5, 0.25, -0.125, 1.0)},
        thumbnails=[(t, thumbnail(pictures[t])) for t in range(frames)], shown_index=range(frames),
        shown_patches=patches, grid=grid, timings={"decode": 0.5, "encode": 1.25},
    )  # fmt: skip
    return ReportData(**fields | changes)


class Page(HTMLParser):
    """Text and attributes by tag; fails on a tag that is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            kind = dict(self.tags)["script"].get("type") if self.open[-1] == "script" else None
            key = self.open[-1] if kind is None else "data"
            self.text[key] = self.text.get(key, "") + data


def require_closed(page: Page, text: str) -> None:
    """The page may fetch nothing and run nothing but the style and script pinned in it."""
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", text).count("http") == 0


def page_data(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def decode(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def page_cosines(explorer: dict) -> np.ndarray:
    """[S·P, S·P], what the page's script computes from its data block, written again in numpy."""
    scales = decode(explorer["scales"], "<f4")
    kept = decode(explorer["codes"], "i1").reshape(len(scales), explorer["rank"]) * scales[:, None]
    length = np.linalg.norm(kept, axis=1)
    dropped = np.where(scales > 0, np.sqrt(np.maximum(0, 1 - length**2)), 0)
    inner = kept @ kept.T
    cosine = inner / np.maximum(1e-12, length[:, None] * length)
    kappa = np.array(explorer["kappa"])
    bins = np.minimum(len(kappa) - 1, len(kappa) * np.sqrt(np.maximum(0, 1 - cosine) / 2)).astype(int)
    out = (inner + dropped[:, None] * dropped * kappa[bins]).clip(-1, 1)
    np.fill_diagonal(out, scales > 0)
    return out


def exact_cosines(patches: torch.Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(patches.double().flatten(0, 1), dim=-1)
    return (unit @ unit.T).numpy()


@pytest.mark.parametrize("size", [1, 7, 1369, 2500])
def test_heatmap_matches_matplotlib(tmp_path, size):
    """Inside the cells, against imshow with the same colour table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = smooth_cosines(size)
    writer = HeatmapWriter()
    writer.write(tmp_path / "map.png", matrix, title="Position 0 (row 0, col 0)", xlabel="Frame", ylabel="Frame")
    ours = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    assert ours.shape == (2400, 3000, 3)

    left, top, side = next(iter(writer._templates.values())).box
    figure = Figure((side / 300, side / 300), 300)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    canvas.draw()
    theirs = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    error = np.abs(ours[top : top + side, left : left + side] - theirs).max(-1)
    if size <= side:
        assert error.max() <= 4  # 224 colours for 256
    else:  # theirs picks one cell per pixel, ours averages
        assert error.mean() < 4
    frame = np.concatenate([ours[top - 2, left : left + side], ours[top + side + 1, left : left + side]])
    assert (frame == 0).all(), "the frame lies just outside the cells"


def test_heatmap_takes_half_tensors_and_other_ranges(tmp_path):
    writer = HeatmapWriter()
    labels = dict(title="map", xlabel="Patch", ylabel="Patch")
    writer.write(tmp_path / "a.png", torch.full((3, 3), 0.5, dtype=torch.float16), **labels)
    writer.write(tmp_path / "b.png", torch.zeros(3, 3), vmin=-1, **labels)
    pixels = [np.asarray(Image.open(tmp_path / name).convert("RGB"))[1200, 1300] for name in ("a.png", "b.png")]
    assert (pixels[0] == pixels[1]).all(), "both are the middle of their range"


def test_heatmap_shortens_a_title_that_does_not_fit(tmp_path):
    HeatmapWriter().write(tmp_path / "a.png", np.eye(3), title="x" * 400, xlabel="Frame", ylabel="Frame")
    columns = np.flatnonzero((np.asarray(Image.open(tmp_path / "a.png").convert("L"))[:140] < 128).any(0))
    assert columns.min() > 0
    assert columns.max() < 2999


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (np.zeros((3, 4)), {}, r"\[N, N\].*\(3, 4\)"),
        (np.zeros((0, 0)), {}, r"N > 0"),
        (np.full((2, 2), np.nan), {}, "no NaN, got 4"),
        (np.zeros((2, 2)), {"vmin": 1.0}, "vmin must be less"),
    ],
)
def test_heatmap_rejects(tmp_path, matrix, options, message):
    with pytest.raises(ValueError, match=message):
        HeatmapWriter().write(tmp_path / "a.png", matrix, title="", xlabel="", ylabel="", **options)
    assert list(tmp_path.iterdir()) == []


def test_heatmap_leaves_the_process_alone(tmp_path):
    """No pyplot, no changed setting, and a dark style of the user's has no effect on the picture."""
    code = """
import sys, matplotlib, numpy as np, vsim_fast.report as report
matplotlib.rcParams.update({"axes.facecolor": "black", "figure.facecolor": "black", "text.color": "white"})
before = matplotlib.rcParams.copy()
report.HeatmapWriter().write(sys.argv[1], np.eye(4), title="t", xlabel="x", ylabel="y")
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
    assert np.asarray(Image.open(tmp_path / "a.png").convert("L"))[5, 5] == 255


def test_statistics_text(tmp_path):
    sections = {
        "Position-wise Similarities": Stats((1024, 100, 100), 0.81234, 0.1, -0.25, 1.0),
        "Frame-wise Similarity": Stats((100, 100), 0.9, 0.05, 0.5, 1.0),
    }
    write_statistics(tmp_path / "statistics.txt", sections)
    assert (tmp_path / "statistics.txt").read_text() == (
        "Patch Similarity Analysis Statistics\n" + "=" * 50 + "\n\n"
        "Position-wise Similarities:\n  Shape: (1024, 100, 100)\n"
        "  Mean: 0.8123\n  Std: 0.1000\n  Min: -0.2500\n  Max: 1.0000\n\n"
        "Frame-wise Similarity:\n  Shape: (100, 100)\n  Mean: 0.9000\n  Std: 0.0500\n  Min: 0.5000\n  Max: 1.0000\n"
    )


def test_thumbnail_is_small_and_keeps_the_shape():
    for shape, size in (((720, 1280, 3), (320, 180)), ((50, 40, 3), (40, 50)), ((2, 4000, 3), (320, 1))):
        assert Image.open(io.BytesIO(thumbnail(np.zeros(shape, np.uint8)))).size == size


def test_page_is_well_formed_closed_and_self_contained(tmp_path):
    result = write_report(tmp_path / "report.html", make_data())
    text = (tmp_path / "report.html").read_text()
    assert result["bytes"] == len(text.encode())
    page = Page(text)
    require_closed(page, text)
    for tag, attributes in page.tags:
        assert not {"style", "href", "srcset"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("src", "data:").startswith("data:")


def test_page_escapes_every_text(tmp_path):
    hostile = "</script><script>alert(1)</script>" + HOSTILE
    data = make_data(
        title=HOSTILE, notes=[hostile], settings={hostile: hostile}, video={"path": hostile}, flagged={0: hostile}
    )
    write_report(tmp_path / "report.html", data)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert HOSTILE in page.text["h1"]
    assert hostile in page.text["li"]
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)


def test_page_cosines_keep_the_stated_error(tmp_path):
    """All pairs are few enough here for the statement to be about all of them."""
    data = make_data(frames=3, grid=(4, 5), dim=256)
    data.shown_patches[1, 3] = 0
    result = write_report(tmp_path / "report.html", data)
    text = (tmp_path / "report.html").read_text()
    explorer = page_data(text)["explorer"]
    got, exact = page_cosines(explorer), exact_cosines(data.shown_patches)
    error = np.abs(got - exact)
    assert explorer["rank"] == result["explorer_rank"] == 192
    assert error.max() == pytest.approx(result["explorer_max_error"], abs=2e-4)
    assert error.mean() == pytest.approx(result["explorer_mean_error"], abs=2e-4)
    assert result["explorer_mean_error"] < 0.01
    assert f"{result['explorer_mean_error']:.4f}</span>" in text
    assert (got[23] == 0).all(), "a zero patch is similar to nothing"


def test_page_cosines_are_exact_but_for_quantisation_at_full_rank(tmp_path):
    data = make_data(dim=24)
    result = write_report(tmp_path / "report.html", data)
    assert result["explorer_rank"] == 24
    assert result["explorer_max_error"] < 0.02
    assert np.abs(page_cosines(page_data((tmp_path / "report.html").read_text())["explorer"])).max() <= 1


def test_nearly_equal_patches_score_near_one(tmp_path):
    """The dropped part of the vectors must not make the same thing in two frames look different."""
    still = torch.randn(1, 30, 256, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 257) ** -0.3
    patches = still.repeat(8, 1, 1) + 1e-3 * torch.randn(8, 30, 256)
    patches = torch.cat([patches, torch.randn(8, 30, 256) * torch.arange(1, 257) ** -0.3])
    write_report(tmp_path / "report.html", make_data(frames=16, grid=(5, 6), patches=patches))
    got = page_cosines(page_data((tmp_path / "report.html").read_text())["explorer"]).reshape(16, 30, 16, 30)
    diagonal = got[torch.arange(8), :, torch.arange(8)[:, None]][:, :, range(30), range(30)]
    assert diagonal.min() > 0.97


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_page_takes_every_feature_dtype(tmp_path, dtype):
    data = make_data()
    data.shown_patches = data.shown_patches.to(dtype)
    assert write_report(tmp_path / "report.html", data)["explorer_max_error"] < 0.05


def test_page_budget_lowers_rank_then_frames(tmp_path, monkeypatch):
    for budget, rank, frames in ((12 * 20 * 40, 40, 12), (12 * 20 * 34, 34, 12), (5 * 20 * 32, 32, 5), (10, 32, 1)):
        monkeypatch.setattr(analysis_page, "EXPLORER_BYTES", budget)
        write_report(tmp_path / "report.html", make_data(frames=12, dim=64))
        explorer = page_data((tmp_path / "report.html").read_text())["explorer"]
        assert (explorer["rank"], len(explorer["frames"])) == (rank, frames)
        assert len(base64.b64decode(explorer["codes"])) == rank * frames * 20


def test_frame_similarity_in_the_page(tmp_path, monkeypatch):
    data = make_data(frames=9)
    for most, frames in ((1200, list(range(9))), (4, [0, 2, 5, 8])):
        monkeypatch.setattr(analysis_page, "PAGE_FRAMES", most)
        write_report(tmp_path / "report.html", data)
        stored = page_data((tmp_path / "report.html").read_text())["similarity"]
        assert stored["frames"] == frames
        expected = data.frame_similarity.numpy()[np.ix_(frames, frames)][np.triu_indices(len(frames))]
        np.testing.assert_allclose(decode(stored["triangle"], "<i2") / 32767, expected, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        dict(frames=1),
        dict(frames=1, thumbnails=[], notes=[], timings={}),
        dict(shown_index=[], patches=None, shown_patches=torch.zeros(0, 20, 40)),
        dict(patches=torch.zeros(6, 20, 200)),
        dict(patches=torch.ones(6, 20, 200)),
        dict(random_weights=True, thumbnails=[]),
    ],
    ids=["one-frame", "bare", "no-features", "all-zero", "all-equal", "random-weights"],
)
def test_page_on_sparse_input(tmp_path, changes):
    result = write_report(tmp_path / "report.html", make_data(**changes))
    text = (tmp_path / "report.html").read_text()
    Page(text)
    explorer = page_data(text)["explorer"]
    assert np.isfinite(explorer["kappa"]).all()
    assert np.isfinite(decode(explorer["scales"], "<f4")).all()
    assert result["explorer_max_error"] <= 0.02
    assert ("Random weights." in text) == changes.get("random_weights", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(frame_similarity=np.eye(5)), r"frame_similarity must be \[6, 6\].*\(5, 5\)"),
        (dict(position_mean=np.zeros((5, 4))), r"position_mean must be \(4, 5\)"),
        (dict(shown_index=[0, 1]), r"shown_patches must be \[2, 20, D\]"),
    ],
)
def test_page_rejects_shapes_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", make_data(**changes))
    assert list(tmp_path.iterdir()) == []

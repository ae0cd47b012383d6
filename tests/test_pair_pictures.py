"""Pictures of a pair: colours at known cells, arrows that end where they should, bytes that do not change."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vsim_fast.report import PairDrawing, write_overlay, write_pair_pictures
from vsim_fast.report.pair_pictures import LEFT, MAP_PX, MISMATCH_MAX, MUTUAL, ONE_WAY, PANEL_PX, TOP
from vsim_fast.report.png import colour_table, write_png

NAMES = [
    "similarity_A2B.png", "similarity_B2A.png", "mismatch_A.png", "mismatch_B.png", "vector_field.png",
    "pca_features.png",
]  # fmt: skip


def make_drawing(grid: tuple[int, int] = (6, 6), **changes) -> PairDrawing:
    """Random maps over even grey pictures; every patch matches itself, mutually."""
    rng = np.random.default_rng(0)
    rows, columns = grid
    size = rows * columns
    fields = dict(
        image_a=np.full((14 * rows, 14 * columns, 3), 90, np.uint8),
        image_b=np.full((14 * rows, 14 * columns, 3), 160, np.uint8), grid=grid,
        similarity_ab=rng.random(size, np.float32), similarity_ba=rng.random(size, np.float32),
        mismatch_a=MISMATCH_MAX * rng.random(size, np.float32), mismatch_b=MISMATCH_MAX * rng.random(size, np.float32),
        index_ab=np.arange(size), mutual_ab=np.ones(size, bool), pca_a=rng.random((size, 3), np.float32),
        pca_b=rng.random((size, 3), np.float32),
    )  # fmt: skip
    return PairDrawing(**fields | changes)


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def cells(page: np.ndarray, grid: tuple[int, int], side: int, left: int = LEFT) -> np.ndarray:
    """[Hp, Wp, 3], the colour in the middle of each cell; all of a cell must have it."""
    rows, columns = grid
    box = page[TOP : TOP + rows * side, left : left + columns * side]
    box = box.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows, columns, -1, 3)
    assert (box == box[:, :, :1]).all()
    return box[:, :, 0]


def colours(values: np.ndarray, name: str, low: float, high: float) -> np.ndarray:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    return colormaps[name](Normalize(low, high)(values))[..., :3] * 255


def centre(p: int, grid: tuple[int, int], *, right: bool) -> np.ndarray:
    """x and y of a patch in the vector field, whose pictures are square cells too."""
    scale = PANEL_PX / max(grid)
    return np.array([LEFT + right * grid[1] * scale + (p % grid[1] + 0.5) * scale, TOP + (p // grid[1] + 0.5) * scale])


@pytest.mark.parametrize("grid", [(37, 37), (5, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_maps_have_matplotlibs_colours(tmp_path, grid, relative):
    drawing = make_drawing(grid)
    assert write_pair_pictures(tmp_path.joinpath, drawing, relative=relative) == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    maps = [("viridis", 1.0, drawing.similarity_ab), ("viridis", 1.0, drawing.similarity_ba)]
    maps += [("hot", MISMATCH_MAX, drawing.mismatch_a), ("hot", MISMATCH_MAX, drawing.mismatch_b)]
    for name, (table, most, values) in zip(NAMES, maps, strict=False):
        page, side = read(tmp_path / name), MAP_PX // max(grid)
        low, high = (values.min(), values.max()) if relative and values.size > 1 else (0, most)
        if values.size > 1 or not relative:
            error = np.abs(cells(page, grid, side) - colours(values.reshape(grid), table, low, high))
            assert error.max() <= 8  # 224 colours for 256; red grows by 2.7 a level in "hot"
        x = LEFT + grid[1] * side + 40  # inside the colour bar
        ends = page[[TOP, TOP + grid[0] * side - 1], x]
        np.testing.assert_allclose(ends, colours(np.array([1.0, 0.0]), table, 0, 1), atol=3)
    with Image.open(tmp_path / NAMES[0]) as picture:
        assert [round(value) for value in picture.info["dpi"]] == [150, 150]


def test_pca_shows_the_given_colours(tmp_path):
    grid, side = (4, 7), PANEL_PX // 7
    drawing = make_drawing(grid)
    write_pair_pictures(tmp_path.joinpath, drawing)
    page = read(tmp_path / "pca_features.png")
    for left, values in ((LEFT, drawing.pca_a), (LEFT + 7 * side + 24, drawing.pca_b)):
        np.testing.assert_allclose(cells(page, grid, side, left), values.reshape(*grid, 3) * 255, atol=0.51)


def test_without_pca_five_pictures_are_written(tmp_path):
    assert write_pair_pictures(tmp_path.joinpath, make_drawing(pca_a=None, pca_b=None)) == NAMES[:5]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES[:5])


def test_titles_tell_the_maps_apart(tmp_path):
    """Equal values in both directions: the pictures differ in their titles alone."""
    drawing = make_drawing()
    drawing = drawing._replace(similarity_ba=drawing.similarity_ab, mismatch_b=drawing.mismatch_a)
    write_pair_pictures(tmp_path.joinpath, drawing)
    for first, second in (NAMES[:2], NAMES[2:4]):
        rows = np.flatnonzero((read(tmp_path / first) != read(tmp_path / second)).any((1, 2)))
        assert rows.size
        assert rows.max() < TOP


def test_arrows_end_at_the_matches(tmp_path):
    grid, stride = (8, 10), 3
    rng = np.random.default_rng(1)
    index, mutual = rng.permutation(80), rng.random(80) < 0.5
    drawing = make_drawing(grid, index_ab=index, mutual_ab=mutual)
    write_pair_pictures(tmp_path.joinpath, drawing, arrow_stride=stride)
    page = read(tmp_path / "vector_field.png")
    drawn = [row * 10 + column for row in range(0, 8, stride) for column in range(0, 10, stride)]
    hits = 0
    for p in drawn:
        start, end = centre(p, grid, right=False), centre(index[p], grid, right=True)
        inside = end + 6 * (start - end) / np.linalg.norm(start - end)  # in the head, behind its tip
        x, y = inside.round().astype(int)
        hits += np.abs(page[y, x] - (MUTUAL if mutual[p] else ONE_WAY)).max() < 8
    assert hits >= len(drawn) - 1, "one at most may lie under another arrow"

    targets = {index[p] for p in drawn}
    quiet = [q for q in range(80) if q not in targets]
    untouched = [(page[tuple(centre(q, grid, right=True).round().astype(int)[::-1])] == 160).all() for q in quiet]
    assert np.mean(untouched) > 0.6, "nothing ends there; only shafts may pass"


def test_the_vector_field_shows_both_pictures(tmp_path):
    ramp = np.tile(np.linspace(0, 250, 140).astype(np.uint8)[:, None, None], (1, 140, 3))
    drawing = make_drawing((10, 10), image_a=ramp, image_b=255 - ramp, mutual_ab=np.zeros(100, bool))
    write_pair_pictures(tmp_path.joinpath, drawing, arrow_stride=99)  # one arrow, from the first patch
    page = read(tmp_path / "vector_field.png")[TOP : TOP + PANEL_PX, LEFT : LEFT + 2 * PANEL_PX]
    expected = np.linspace(0, 250, PANEL_PX)
    clear = slice(PANEL_PX // 8, None)  # below the arrow
    np.testing.assert_allclose(page[clear, 50, 0], expected[clear], atol=3)
    np.testing.assert_allclose(page[clear, PANEL_PX + 50, 0], 255 - expected[clear], atol=3)
    redness = page[..., 0] - page[..., 2]
    assert (redness > 100).sum() > PANEL_PX, "one orange arrow, from picture to picture"
    assert redness.min() >= 0, "nothing cyan"


def test_bytes_do_not_change(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_pair_pictures((tmp_path / folder).joinpath, make_drawing((37, 37)))
        write_overlay(tmp_path / folder / "overlay.png", np.zeros((40, 60, 3), np.uint8), np.eye(3), vmax=1, title="a")
    for name in [*NAMES, "overlay.png"]:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (dict(similarity_ab=np.zeros(35)), {}, r"similarity_ab must be \[36\] as grid \(6, 6\), got shape \(35,\)"),
        (dict(mismatch_a=np.full(36, np.nan)), {}, "mismatch_a must be finite, got 36"),
        (dict(index_ab=np.full(36, 36)), {}, r"index_ab must be in 0..35"),
        (dict(pca_a=np.zeros((36, 2))), {}, r"pca_a must be \[36, 3\]"),
        (dict(pca_b=None), {}, "given together"),
        (dict(image_b=np.zeros((9, 9, 3), np.uint8)), {}, "one shape"),
        ({}, {"arrow_stride": 0}, "arrow_stride must be at least 1, got 0"),
    ],
)
def test_pictures_reject(tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        write_pair_pictures(tmp_path.joinpath, make_drawing(**changes), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_reference", [False, True])
def test_the_overlay_colours_what_is_hot(tmp_path, with_reference):
    image = np.full((90, 160, 3), 100, np.uint8)
    heat = np.zeros((9, 16))
    heat[6:, 10:] = 5.0
    reference = np.full((45, 45, 3), 30, np.uint8) if with_reference else None
    write_overlay(tmp_path / "a.png", image, heat, vmax=2.0, title="x" * 999, reference=reference)
    page = read(tmp_path / "a.png")
    width, height, top = 560, 315, 76
    first = LEFT + with_reference * (width + 12)
    if with_reference:
        assert (page[top : top + height, LEFT : LEFT + width] == 30).all()
    assert (page[top : top + height, first : first + width] == 100).all()
    heated = page[top : top + height, first + width + 12 :][:, :width]
    assert (heated[:200, :300] == 100).all(), "what is cold stays as it is"
    np.testing.assert_allclose(heated[-10, -10], 0.85 * colour_table("inferno", 256)[-1] + 0.15 * 100, atol=1)
    assert (page[:, -1] == 255).all(), "the title was cut to fit"


@pytest.mark.parametrize(
    ("heat", "vmax", "message"),
    [
        (np.zeros(4), 1.0, r"\[Hp, Wp\]"),
        (np.full((2, 2), np.inf), 1.0, "finite"),
        (np.zeros((2, 2)), 0.0, "vmax must be above 0, got 0"),
    ],
)
def test_the_overlay_rejects(tmp_path, heat, vmax, message):
    with pytest.raises(ValueError, match=message):
        write_overlay(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), heat, vmax=vmax, title="")


def test_pictures_leave_the_process_alone(tmp_path):
    """No torch, no pyplot, no changed setting, and a user's own style has no effect."""
    code = """
import sys, matplotlib, numpy as np
from test_pair_pictures import make_drawing
from vsim_fast.report import write_pair_pictures
from pathlib import Path
if sys.argv[2] == "styled":
    matplotlib.rcParams.update({"figure.facecolor": "black", "lines.linewidth": 9, "path.simplify_threshold": 1.0,
                                "axes.autolimit_mode": "round_numbers", "path.snap": False})
before = matplotlib.rcParams.copy()
write_pair_pictures(Path(sys.argv[1]).joinpath, make_drawing())
assert matplotlib.rcParams.copy() == before
assert not {"torch", "matplotlib.pyplot"} & sys.modules.keys()
"""
    for style in ("plain", "styled"):
        (tmp_path / style).mkdir()
        paths = {"PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / style), style], check=True, env=paths)
    for name in NAMES:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "styled" / name).read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (200, 301)], ids=str)
def test_png_holds_every_pixel(tmp_path, shape):
    rng = np.random.default_rng(2)
    indices, rgb = (rng.integers(0, 256, (*shape, *last), dtype=np.uint8) for last in ((), (3,)))
    table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    write_png(tmp_path / "p.png", indices, dpi=150, colours=table)
    write_png(tmp_path / "rgb.png", rgb, dpi=300)
    for name, expected, mode in (("p.png", table[indices], "P"), ("rgb.png", rgb, "RGB")):
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == mode
            picture.load()  # checks the sums
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), expected)

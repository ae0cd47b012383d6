"""Cosine ops: every backend against the reference in float64, hand-worked cases, edges and rejections."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from compare import assert_matches_reference

from vsim_fast.ops import best_match, frame_similarity, intra_frame_similarity, position_similarity

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
RUNS_TRITON = CUDA or os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["reference", *(["triton"] if RUNS_TRITON else [])]
GRAMS = [position_similarity, intra_frame_similarity, frame_similarity]
OPS = pytest.mark.parametrize("op", GRAMS, ids=lambda op: op.__name__)
BACKEND = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.needs_cuda),  # the interpreter gets bf16 dot products wrong
]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
SMALL = [(17, 5, 63), (1, 9, 16), (9, 1, 7)]  # one tile; T = 1; P = 1
LARGE = {position_similarity: (150, 1, 33), intra_frame_similarity: (1, 150, 33), frame_similarity: (150, 1, 33)}


def cases(least_rows: int = 1) -> pytest.MarkDecorator:
    """(op, shape) pairs whose matrices have at least `least_rows` rows; up to three tiles a side, the last ragged."""
    rows = {position_similarity: 0, intra_frame_similarity: 1, frame_similarity: 0}  # axis of the shape
    return pytest.mark.parametrize(
        ("op", "shape"),
        [
            pytest.param(op, shape, id=f"{op.__name__}-T{shape[0]}-P{shape[1]}-D{shape[2]}")
            for op in GRAMS
            for shape in [*SMALL, LARGE[op]]
            if shape[rows[op]] >= least_rows
        ],
    )


def make_patches(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Near-duplicate rows of very different lengths: a common direction plus noise."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(shape[-1], generator=generator)
    length = torch.exp(torch.randn(*shape[:-1], 1, generator=generator))
    return ((base + torch.randn(shape, generator=generator)) * length).to(dtype).to(DEVICE)


@cases()
@DTYPE
@BACKEND
def test_similarity_matches_reference(op, backend, dtype, shape):
    patches = make_patches(shape, dtype)
    got = op(patches, backend=backend)
    assert got.dtype == dtype
    assert_matches_reference(got, op(patches.double(), backend="reference"), dtype=dtype)
    assert got.min() >= -1 and got.max() <= 1
    if backend == "triton":
        assert torch.equal(got, got.mT), "mirrored entries differ"


@cases()
@DTYPE
@BACKEND
def test_stats_match_the_stored_matrices(op, backend, dtype, shape):
    patches = make_patches(shape, dtype)
    got = op(patches, reduce="stats", backend=backend)
    matrices = op(patches.double(), backend="reference").flatten(-2)
    oracle = (matrices.mean(-1), matrices.std(-1, correction=0), matrices.amin(-1), matrices.amax(-1))
    for field, expected in zip(got[:4], oracle, strict=True):
        assert_matches_reference(field, expected, dtype=torch.float32)  # scores are never rounded to `dtype`
    assert got.count == matrices.shape[-1]


@cases(least_rows=2)
@DTYPE
@BACKEND
def test_topk_matches_reference(op, backend, dtype, shape):
    patches = make_patches(shape, dtype)
    k = min(3, op(patches).shape[-1] - 1)
    got = op(patches, reduce="topk", k=k, backend=backend)
    matrices = op(patches.double(), backend="reference").clone()
    matrices.diagonal(dim1=-2, dim2=-1).fill_(-2)
    assert_matches_reference(got.values, matrices.topk(k).values, dtype=torch.float32)
    assert_matches_reference(got.values, matrices.gather(-1, got.indices), dtype=torch.float32)
    assert all(len(set(row)) == k for row in got.indices.flatten(0, -2).tolist())


@pytest.mark.parametrize(
    "shape", [(2, 37, 70, 63), (1, 1, 5, 16), (3, 5, 1, 33)], ids=lambda s: "B{}-{}x{}-D{}".format(*s)
)
@DTYPE
@BACKEND
def test_best_match_matches_reference(backend, dtype, shape):
    pairs, rows_a, rows_b, dim = shape
    both = make_patches((pairs, rows_a + rows_b, dim), dtype)
    a, b = both[:, :rows_a], both[:, rows_a:]
    got = best_match(a, b, backend=backend)
    scores = F.cosine_similarity(a.double()[:, :, None], b.double()[:, None], dim=-1)
    for matrix, score, index in ((scores, got.scores_ab, got.index_ab), (scores.mT, got.scores_ba, got.index_ba)):
        assert_matches_reference(score, matrix.amax(-1), dtype=torch.float32)
        assert_matches_reference(score, matrix.gather(-1, index[..., None])[..., 0], dtype=torch.float32)
    single = best_match(a[0], b[0], backend=backend)
    assert torch.equal(single.index_ab, got.index_ab[0]) and torch.equal(single.scores_ba, got.scores_ba[0])


def test_reference_agrees_with_torch_and_with_a_hand_worked_case():
    patches = make_patches((4, 6, 10), torch.float32).double()
    by_torch = F.cosine_similarity(patches[:, None], patches[None], dim=-1).permute(2, 0, 1)
    assert_matches_reference(position_similarity(patches, backend="reference"), by_torch, dtype=torch.float32)
    # Frame 0 has patches (3, 4) and (0, 2), frame 1 has (4, 3) and (-2, 0).
    hand = torch.tensor([[[3.0, 4], [0, 2]], [[4, 3], [-2, 0]]])
    position = torch.tensor([[[1, 0.96], [0.96, 1]], [[1, 0], [0, 1]]])
    intra = torch.tensor([[[1, 0.8], [0.8, 1]], [[1, -0.8], [-0.8, 1]]])
    frame = (1.5 * 1 + 3 * 1.5) / (11.25 * 3.25) ** 0.5  # of the means (1.5, 3) and (1, 1.5)
    assert_matches_reference(position_similarity(hand), position, dtype=torch.float32)
    assert_matches_reference(intra_frame_similarity(hand), intra, dtype=torch.float32)
    assert_matches_reference(frame_similarity(hand), torch.tensor([[1, frame], [frame, 1]]), dtype=torch.float32)


@DTYPE
@BACKEND
def test_zero_vector_is_similar_to_nothing(backend, dtype):
    patches = make_patches((4, 6, 24), dtype)
    patches[1, 3] = 0  # one patch
    patches[2] = 0  # one frame
    position = position_similarity(patches, backend=backend)
    assert not position[3, 1].any() and not position[3, :, 1].any() and not position[:, 2].any()
    intra = intra_frame_similarity(patches, backend=backend)
    assert not intra[1, 3].any() and not intra[1, :, 3].any() and not intra[2].any()
    assert not frame_similarity(patches, backend=backend)[2].any()
    match = best_match(-patches[0].abs(), patches[2], backend=backend)
    assert not match.scores_ab.any() and not match.index_ab.any() and not match.scores_ba.any()
    assert position_similarity(patches, reduce="topk", k=3, backend=backend).values[0, 2].tolist() == [0, 0, 0]


@BACKEND
@OPS
def test_similarity_on_views_without_copy(op, backend):
    patches = make_patches((6, 7, 48), torch.float32)
    views = {
        "frames reversed in memory": patches.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "strided": torch.stack([patches, patches * 0 - 1], -1)[..., 0],
        "sliced": F.pad(patches, (8, 8, 1, 1))[:, 1:-1, 8:-8],
    }
    expected = op(patches.double(), backend="reference")
    for view in views.values():
        assert not view.is_contiguous()
        assert_matches_reference(op(view, backend=backend), expected, dtype=torch.float32)


@BACKEND
@OPS
def test_similarity_writes_out_of_any_dtype_and_stride(op, backend):
    patches = make_patches((6, 20, 16), torch.float16)
    expected = op(patches.double(), backend="reference")
    for dtype in (torch.float32, torch.float16):
        wide = torch.full((*expected.shape[:-1], 2 * expected.shape[-1]), 7.0, dtype=dtype, device=DEVICE)
        out = wide[..., ::2]
        assert op(patches, out=out, backend=backend) is out
        assert_matches_reference(out, expected, dtype=dtype)
        assert (wide[..., 1::2] == 7).all(), "wrote beside out"


@BACKEND
def test_similarity_on_empty_input(backend):
    none = torch.empty(0, 5, 8, device=DEVICE)
    assert position_similarity(none, backend=backend).shape == (5, 0, 0)
    assert intra_frame_similarity(none, backend=backend).shape == (0, 5, 5)
    assert frame_similarity(none, backend=backend).shape == (0, 0)
    no_patches = torch.empty(3, 0, 8, device=DEVICE)
    assert position_similarity(no_patches, backend=backend).shape == (0, 3, 3)
    assert not frame_similarity(no_patches, backend=backend).any()
    assert best_match(none, none, backend=backend).scores_ab.shape == (0, 5)


@BACKEND
def test_nan_shows(backend):
    patches = make_patches((3, 20, 8), torch.float32)
    patches[1, 2, 0] = torch.nan
    assert position_similarity(patches, backend=backend)[2, 1].isnan().all()
    stats = intra_frame_similarity(patches, reduce="stats", backend=backend)
    assert [field.isnan().tolist() for field in stats[:4]] == [[False, True, False]] * 4
    assert best_match(patches[1], patches[0], backend=backend).scores_ab[2].isnan()
    assert best_match(patches[1], patches[0], backend=backend).scores_ba.isnan().all()


@BACKEND
def test_best_match_takes_the_lowest_of_equal_indices(backend):
    row = torch.tensor([3.0, 4.0, 0.0, 0.0], device=DEVICE)
    a, b = row.expand(40, 4), row.expand(33, 4).clone()
    b[:5] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    match = best_match(a, b, backend=backend)
    assert match.index_ab.tolist() == [5] * 40
    assert match.index_ba.tolist() == [0] * 33


def test_reference_in_blocks_equals_the_whole(monkeypatch):
    from vsim_fast.ops.cosine import reference

    patches = make_patches((5, 23, 12), torch.float32)
    whole = [op(patches, reduce=reduce, k=3) for op in GRAMS for reduce in (None, "stats", "topk")]
    match = best_match(patches, patches.flip(0))
    monkeypatch.setattr(reference, "SCRATCH_BYTES", 4000)
    monkeypatch.setattr(reference, "PANEL", 8)
    blocks = [op(patches, reduce=reduce, k=3) for op in GRAMS for reduce in (None, "stats", "topk")]
    torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(best_match(patches, patches.flip(0)), match, atol=1e-6, rtol=0)


def test_std_of_identical_frames_is_zero():
    patches = make_patches((1, 30, 64), torch.float32).expand(9, 30, 64)
    stats = position_similarity(patches, reduce="stats")
    assert stats.std.max() < 1e-6 and (stats.mean - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patches": torch.zeros(8, 4)}, ValueError, r"patches must be \[T, P, D\], got shape \(8, 4\)"),
        ({"patches": torch.zeros(2, 3, 4, dtype=torch.int32)}, TypeError, "patches must be one of float16.*got int32"),
        ({"patches": [[1.0]]}, TypeError, r"patches must be a tensor \[T, P, D\], got list"),
        ({"reduce": "mean"}, ValueError, "reduce must be None, 'stats' or 'topk', got 'mean'"),
        ({"reduce": "topk", "k": 4}, ValueError, r"k must be 1 … T - 1 = 3, got 4"),
        ({"reduce": "topk", "k": 0}, ValueError, r"k must be 1 … T - 1 = 3, got 0"),
        ({"reduce": "stats", "out": torch.zeros(2, 4, 4)}, ValueError, "out holds matrices"),
        ({"reduce": "stats", "patches": torch.zeros(0, 2, 4)}, ValueError, "reduce='stats' needs T of at least 1"),
        ({"out": torch.zeros(2, 4, 5)}, ValueError, r"out must have shape \(2, 4, 4\), got \(2, 4, 5\)"),
        ({"out": torch.zeros(2, 4, 4, dtype=torch.int64)}, TypeError, "out must be one of float16.*got int64"),
        ({"backend": "cublas"}, ValueError, "backend must be one of .*got 'cublas'"),
    ],
)
def test_position_similarity_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        position_similarity(**{"patches": torch.zeros(4, 2, 8), **arguments})


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        ((4, 8), (2, 4, 8), ValueError, r"b must be \[Pb, D\], got shape \(2, 4, 8\)"),
        ((2, 4, 8), (3, 4, 8), ValueError, r"a and b must agree in B and D, got shapes \(2, 4, 8\) and \(3, 4, 8\)"),
        ((4, 8), (4, 9), ValueError, "a and b must agree in B and D"),
        ((4, 8), (0, 8), ValueError, "a and b must have at least one row"),
    ],
)
def test_best_match_rejects_shapes(a, b, error, message):
    with pytest.raises(error, match=message):
        best_match(torch.zeros(a), torch.zeros(b))


def test_best_match_rejects_mixed_dtypes():
    with pytest.raises(TypeError, match="a and b must share a dtype, got float32 and float16"):
        best_match(torch.zeros(2, 3), torch.zeros(2, 3).half())


@pytest.mark.skipif(not RUNS_TRITON, reason="no CUDA device and TRITON_INTERPRET is off")
def test_triton_rejects_float64():
    with pytest.raises(TypeError, match="float64; use backend='reference'"):
        position_similarity(torch.zeros(2, 2, 2, dtype=torch.float64, device=DEVICE), backend="triton")


@pytest.mark.skipif(not RUNS_TRITON, reason="no CUDA device, kernels not interpreted")
@pytest.mark.parametrize(("high", "rows"), [*((16, rows) for rows in (1, 16, 17, 33, 64, 65, 97)), (128, 513)])
def test_tiles_wider_than_high_give_the_same(monkeypatch, high, rows):
    """Such tiles reach over the diagonal, and the last column of them over the edge."""
    from vsim_fast.ops.cosine import triton_impl

    wide = triton_impl.Tile(high, 2 * high, 64, 4 if high < 128 else 8, 3)
    square = wide._replace(bn=high)
    kernels = {"diagonal": square, "upper": wide, "best_match": wide, "best_match sm_90": wide}
    monkeypatch.setattr(triton_impl, "TILES", triton_impl.TILES | kernels)
    patches = make_patches((2, rows, 40), torch.float16)
    got = intra_frame_similarity(patches, backend="triton")
    want = intra_frame_similarity(patches.double(), backend="reference")
    assert_matches_reference(got, want, dtype=torch.float16)
    assert torch.equal(got, got.mT)
    stats, entries = intra_frame_similarity(patches, reduce="stats", backend="triton"), want.flatten(1)
    oracle = (entries.mean(1), entries.std(1, correction=0), entries.amin(1), entries.amax(1))
    for field, expected in zip(stats[:4], oracle, strict=True):
        assert_matches_reference(field, expected, dtype=torch.float32)
    other = make_patches((2, rows // 2 + 1, 40), torch.float16)
    got = best_match(patches, other, backend="triton")
    want = best_match(patches.double(), other.double(), backend="reference")
    assert_matches_reference(got.scores_ab, want.scores_ab, dtype=torch.float16)
    assert_matches_reference(got.scores_ba, want.scores_ba, dtype=torch.float16)

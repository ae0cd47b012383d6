"""Two frames by their tokens: against brute force in float64, timm, scikit-learn."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from vsim_fast.encode import load_encoder
from vsim_fast.pairs import (
    Correspondence,
    correspondence,
    cosine_distance,
    displacement,
    joint_pca,
    mismatch,
    pca_colors,
    pooled_embedding,
    pooled_patch_distance,
)

GRID = (6, 5)


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """[30, 16] of two frames that have much in common."""
    a = torch.randn(30, 16)
    b = a[torch.randperm(30)] + 0.5 * torch.randn(30, 16)
    b[20:] = torch.randn(10, 16)  # what a shows nowhere
    return a, b


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.normalize(a.double(), dim=-1) @ F.normalize(b.double(), dim=-1).mT


def test_cosine_distance_is_one_minus_cosine():
    a, b = torch.randn(2, 7, 9), torch.randn(2, 7, 9)
    expected = 1 - F.cosine_similarity(a.double(), b.double(), dim=-1)
    torch.testing.assert_close(cosine_distance(a, b).double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(cosine_distance(a, b), cosine_distance(b, a))


def test_cosine_distance_of_equal_vectors_is_exactly_zero():
    a = torch.randn(50, 768)
    assert torch.equal(cosine_distance(a, a.clone()), torch.zeros(50))


def test_cosine_distance_keeps_the_digits_of_small_ones():
    a = torch.randn(64, dtype=torch.float64)
    b = a + 1e-4 * torch.randn(64, dtype=torch.float64)
    expected = 1 - F.cosine_similarity(a, b, dim=0)  # about 5e-9: 1 - cosine in float32 has no digit of it
    assert cosine_distance(a.float(), b.float()).item() == pytest.approx(expected.item(), rel=0.01)


def test_cosine_distance_of_zero_vectors():
    zero, other = torch.zeros(4), torch.ones(4)
    assert [cosine_distance(*pair).item() for pair in ((zero, zero), (zero, other), (other, zero))] == [0, 1, 1]
    assert cosine_distance(other, -other).item() == 2


def test_patch_distance_weighs_a_defect_more_than_its_spread():
    spread, defect = torch.full((100,), 0.05), torch.zeros(100)
    defect[:5] = 1
    assert defect.mean() == pytest.approx(spread.mean().item())
    assert pooled_patch_distance(defect) > 4 * pooled_patch_distance(spread)


@pytest.mark.parametrize("pooling", ["all", "patches"])
def test_pooled_embedding_equals_timms_forward_features(pooling):
    encoder = load_encoder("timm:vit_tiny_patch16_224@random", device="cpu", precision="float32", image_size=64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = encoder.network.forward_features(pixels)
        tokens = encoder.forward(pixels)
    expected = features.mean(1) if pooling == "all" else features[:, 1:].mean(1)
    found = pooled_embedding(tokens.patches, tokens.cls, pooling=pooling)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_pooled_embedding_rejects_another_pooling():
    with pytest.raises(ValueError, match="pooling must be all or patches, got 'cls'"):
        pooled_embedding(torch.ones(3, 4), pooling="cls")


@pytest.mark.parametrize("leading", [(), (3,)], ids=["one", "batch"])
def test_correspondence_matches_brute_force(tokens, leading):
    a, b = (x.expand(*leading, *x.shape) for x in tokens)
    found = correspondence(a, b)
    scores = cosines(*tokens)
    for got, index, best in (
        (found.scores_ab, found.index_ab, scores.amax(1)),
        (found.scores_ba, found.index_ba, scores.amax(0)),
    ):
        assert got.shape == (*leading, 30)
        torch.testing.assert_close(got.double(), best.expand(got.shape), atol=1e-5, rtol=0)
        assert index.shape == got.shape
    reached = scores[torch.arange(30), found.index_ab]  # any index within the bound of the best score
    torch.testing.assert_close(reached, scores.amax(1).expand(reached.shape), atol=1e-5, rtol=0)
    back = scores.T[torch.arange(30), found.index_ba]
    torch.testing.assert_close(back, scores.amax(0).expand(back.shape), atol=1e-5, rtol=0)


def test_correspondence_with_sides_exchanged(tokens):
    found, exchanged = correspondence(*tokens), correspondence(*tokens[::-1])
    assert torch.allclose(found.scores_ab, exchanged.scores_ba, atol=1e-6)
    assert torch.equal(found.index_ab, exchanged.index_ba)
    assert torch.equal(found.mutual_ab, exchanged.mutual_ba)


def test_mutual_matches_match_brute_force(tokens):
    found = correspondence(*tokens)
    mutual = [found.index_ba[found.index_ab[p]].item() == p for p in range(30)]
    assert found.mutual_ab.tolist() == mutual and 0 < sum(mutual) < 30


def test_equally_good_matches_stay_in_place():
    texture = torch.randn(2, 16).repeat(15, 1)  # two patches over and over: every match has 14 equals
    found = correspondence(texture, texture)
    assert torch.equal(found.index_ab, torch.arange(30)) and found.mutual_ab.all()


def test_a_frame_without_any_token_matches_itself():
    empty, full = torch.zeros(30, 16), torch.randn(30, 16)
    found = correspondence(empty, empty)
    assert torch.equal(found.scores_ab, torch.ones(30)) and torch.equal(found.index_ab, torch.arange(30))
    assert all(not x.any() for x in mismatch(found))
    assert correspondence(empty, full).scores_ab.max() == 0


def test_mismatch_is_absolute(tokens):
    found = correspondence(*tokens)
    a, _ = mismatch(found)
    expected = [
        min(max(1 - s, 0), 1) * (1 if m else 1.25)
        for s, m in zip(found.scores_ab.tolist(), found.mutual_ab.tolist(), strict=True)
    ]
    torch.testing.assert_close(a, torch.tensor(expected))
    same = mismatch(correspondence(tokens[0], tokens[0]))
    assert max(x.max().item() for x in same) <= 1e-6
    opposite = Correspondence(*[torch.tensor([x]) for x in (-0.5, 0, -0.5, 0, False, True)])
    assert [x.item() for x in mismatch(opposite)] == [1.25, 1.0]


def test_mismatch_compat_is_the_originals(tokens):
    """s̃ = (s - min) / max(max - min, 1e-8); (1 - s̃) · 1.25 where the match is not reciprocal."""
    found = correspondence(*tokens)
    for got, scores, index, back in zip(
        mismatch(found, compat=True),
        (found.scores_ab, found.scores_ba),
        (found.index_ab, found.index_ba),
        (found.index_ba, found.index_ab),
        strict=True,
    ):
        low, high = scores.min().item(), scores.max().item()
        for p in range(30):
            factor = 1 if back[index[p]] == p else 1.25
            assert got[p].item() == pytest.approx((1 - (scores[p].item() - low) / (high - low)) * factor, abs=1e-5)
    same = Correspondence(*[torch.ones(4)] * 2, *[torch.ones(4)] * 2, *[torch.ones(4, dtype=torch.bool)] * 2)
    assert mismatch(same, compat=True)[0].tolist() == [1, 1, 1, 1]  # nothing to stretch, as there


def test_displacement_counts_columns_and_rows():
    index = torch.arange(30)
    index[7], index[0] = 29, 6  # row 1 column 2 -> row 5 column 4; row 0 column 0 -> row 1 column 1
    moved = displacement(index, GRID)
    assert moved[7].tolist() == [2, 4] and moved[0].tolist() == [1, 1] and moved.abs().sum() == 8


def test_joint_pca_matches_the_full_decomposition():
    axes = torch.randn(40, 40) * torch.linspace(3, 0.2, 40)
    a, b = torch.randn(60, 40) @ axes, torch.randn(60, 40) @ axes
    found = torch.cat(joint_pca(a, b)).double()
    stacked = torch.cat([a, b]).double()
    stacked -= stacked.mean(0)
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    signs = rows[:3].gather(1, rows[:3].abs().argmax(1, keepdim=True)).sign()
    expected = stacked @ (rows[:3] * signs).T / (values[:3] / (len(stacked) - 1) ** 0.5)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.var(0), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_joint_pca_matches_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    a, b = torch.randn(50, 24) * torch.linspace(4, 0.5, 24), torch.randn(50, 24) * torch.linspace(4, 0.5, 24)
    pca = decomposition.PCA(3, whiten=True, svd_solver="full").fit(torch.cat([a, b]).numpy())
    found = joint_pca(a, b)
    for side, projected in zip((a, b), found, strict=True):
        expected = torch.from_numpy(pca.transform(side.numpy())).float()
        torch.testing.assert_close(projected.abs(), expected.abs(), atol=1e-3, rtol=0)


def test_joint_pca_repeats_itself_and_leaves_the_random_state():
    a, b = torch.randn(2, 30, 16), torch.randn(2, 30, 16)
    state = torch.random.get_rng_state()
    first = joint_pca(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(first, joint_pca(a, b), strict=True))
    one = joint_pca(a[1], b[1])
    torch.testing.assert_close(one[0], first[0][1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("patches", [1, 2, 30])
def test_joint_pca_without_variance_is_zero(patches):
    same = torch.full((patches, 8), 3.0)
    assert not torch.cat(joint_pca(same, same)).any()
    assert torch.equal(pca_colors(joint_pca(same, same)[0]), torch.full((patches, 3), 0.5))


def test_correspondence_allocates_no_square_matrix():
    """P = 5,329: the matrix of cosines alone would take 114 MB."""
    code = """
import resource, torch
from vsim_fast.pairs import correspondence
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
a, b = torch.randn(2, 5329, 384)
correspondence(a[:64], b[:64])
before = peak()
correspondence(a, b)
print(peak() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) < 80, f"{out} MiB"  # 16 of scratch and the normalised tokens, 8 each

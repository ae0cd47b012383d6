"""Alignment of frame descriptors: direction of time, speed, noise, stillness."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vsim_fast.alignment import align, frame_descriptors, motion, thumbnail_descriptors
from vsim_fast.records import FrameFeatures


def walk(frames: int = 40, dim: int = 24, seed: int = 0) -> torch.Tensor:
    """A smooth path without symmetry on the unit sphere, [T, D]."""
    generator = torch.Generator().manual_seed(seed)
    knots = torch.randn(1, dim, 8, generator=generator)
    return F.normalize(F.interpolate(knots, frames, mode="linear", align_corners=True)[0].T, dim=1)


def test_a_video_aligns_with_itself_frame_by_frame():
    x = walk()
    found = align(x, x)
    assert found.path.tolist() == [[t, t] for t in range(40)]
    assert found.order > 0.999 and found.match > 0.999 and found.forward < 1e-5


def test_a_reversed_video_is_told():
    found = align(walk(), walk().flip(0))
    assert found.order < 0.001 and found.backward < 1e-5


@pytest.mark.parametrize("frames", [20, 27, 60])
def test_speed_is_taken_up(frames):
    found = align(walk(40), walk(frames))
    assert found.order > 0.95 and found.match > 0.9
    i, j = found.path.T
    assert ((i / 39 - j / (frames - 1)).abs() < 0.06).all()


def test_unrelated_videos_run_neither_way():
    orders = [align(walk(seed=n), walk(seed=n + 50)).order for n in range(10)]
    assert abs(sum(orders) / 10 - 0.5) < 0.1
    assert max(abs(order - 0.5) for order in orders) < 0.35


def test_scale_and_what_stands_still_do_not_matter():
    x, still = walk(), torch.randn(24)
    torch.testing.assert_close(align(x, 5 * x.flip(0) + 3 * still).cost, align(x, x.flip(0)).cost, atol=1e-4, rtol=1e-4)


def test_order_of_still_videos_is_open():
    assert align(torch.ones(5, 8), torch.ones(7, 8)).order == 0.5


def test_motion_counts_neither_stillness_nor_noise_nor_symmetry():
    noise = F.normalize(torch.ones(60, 256) + 0.5 * torch.randn(60, 256), dim=1)
    assert motion(walk()).total > motion(walk()).steady > 0.3
    assert motion(torch.ones(30, 8)) == (0, 0)
    assert motion(noise).steady < 0.05 and motion(noise).total > 0.3
    assert max(motion(torch.cat([walk(20), walk(20).flip(0)]))) < 1e-2
    assert motion(walk()[:2]).steady == 0 < motion(walk()[:2]).total  # two frames cannot tell a step from noise


@pytest.mark.parametrize("with_cls", [True, False])
def test_descriptors_hold_the_token_of_the_frame_and_of_its_quarters(with_cls):
    patches = torch.zeros(2, 24, 5)  # 4 × 6 patches
    maps = patches.view(2, 4, 6, 5)
    maps[0, :2, :3, 0], maps[0, 2:, 3:, 1] = 2, 2  # the second frame stays black
    cls = torch.tensor([[0.0, 0, 3, 0, 0], [0, 0, 0, 0, 0]]) if with_cls else None
    features = FrameFeatures(patches, cls, None, torch.arange(2).double(), (4, 6), "test")
    found = frame_descriptors(features)
    quarters = found[0, :20].view(5, 4)  # [D, quarter], row-major
    share = 0.5 if with_cls else 1.0
    assert quarters[0, 0] ** 2 == pytest.approx(share / 2) and quarters[1, 3] ** 2 == pytest.approx(share / 2)
    assert found.shape == (2, 25 if with_cls else 20) and found[0].norm() == pytest.approx(1) and not found[1].any()


def test_small_pictures_forget_brightness_and_noise():
    picture = torch.rand(1, 3, 14, 14).repeat_interleave(8, 2).repeat_interleave(8, 3)  # [1, 3, 112, 112]
    pictures = picture.repeat(30, 1, 1, 1) + 0.2 * torch.randn(30, 3, 112, 112) + torch.rand(30, 3, 1, 1)
    found = thumbnail_descriptors(pictures)
    assert found.shape == (30, 768) and motion(found).steady < 0.02
    assert not thumbnail_descriptors(torch.full((1, 3, 56, 56), 0.5)).any()
    moving = torch.stack([picture[0].roll(2 * n, 2) for n in range(30)])
    assert motion(thumbnail_descriptors(moving)).steady > 0.2

"""Verdicts of stills: what is shared must be all of them, and lie in the same places; lines seen from both sides."""

from __future__ import annotations

import pytest
import torch

from vsim_fast.copies.order import best_stretch
from vsim_fast.copies.scores import judge


@pytest.mark.parametrize(
    ("coverage", "agreement", "verdict"),
    [
        ((0.95, 0.9), 0.9, "duplicate"),
        ((0.6, 0.6), 1.0, "shares a part"),  # the same title card, then something else
        ((1.0, 0.6), 1.0, "shares a part"),
        ((1.0, 0.1), 1.0, "contains"),
        ((1.0, 1.0), 0.45, "different"),  # other words on a card of like make
    ],
)
def test_still(coverage, agreement, verdict):
    found, duplicate, reason = judge(1.0, 1.0, None, coverage, agreement)
    assert (found, duplicate) == (verdict, verdict == "duplicate")
    assert "nothing moves" in reason


def test_moving_videos_need_half_of_both():
    assert judge(0.9, 1.0, 0.95, (0.6, 0.6), 0.3)[0] == "duplicate"
    assert judge(0.9, 1.0, 0.95, (0.6, 0.4), 0.3)[0] == "contains"


def test_a_sped_up_copy_fits_from_either_side():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 256, 20, generator=generator)
    slow = torch.nn.functional.interpolate(keys, 60, mode="linear")[0].T
    fast = slow[::2]
    there, back = best_stretch(fast, slow, 1 / 6, 1 / 6), best_stretch(slow, fast, 1 / 6, 1 / 6)
    assert (there.speed, back.speed) == (2.0, 0.5)
    assert there.motion > 0.99 and back.motion > 0.99

"""Verdicts of pairs in which nothing moves: what they share must be all of them, and lie in the same places."""

from __future__ import annotations

import pytest

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

"""Groups around a medoid, never by chaining; which member to keep, and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vsim_fast.grouping import Group, Quality, groups, keep_order


def grouped(count, pairs, apart=()):
    return groups(count, np.array([pair[:2] for pair in pairs]), np.array([pair[2] for pair in pairs]), apart)


def test_a_chain_is_no_group():
    """0-1-2-3-4 in a row: no member reaches the next but one."""
    found = grouped(5, [(0, 1, 0.8), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.7)])
    assert found == [Group(2, [1, 3], [0.9, 0.9])]
    found = grouped(6, [(0, 1, 0.8), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.7), (5, 4, 0.95)])
    assert found == [Group(4, [5], [0.95]), Group(2, [1, 3], [0.9, 0.9])]


def test_the_medoid_has_the_best_sum_and_members_come_best_first():
    found = grouped(4, [(0, 1, 0.8), (0, 2, 0.8), (1, 2, 0.9), (3, 1, 0.7)])
    assert found == [Group(1, [2, 0, 3], [0.9, 0.8, 0.7])]


def test_ties_go_to_the_first_whatever_the_order_of_the_pairs():
    pairs = [(0, 1, 0.9), (2, 3, 0.9), (1, 2, 0.9), (0, 3, 0.9)]
    expected = [Group(0, [1, 3], [0.9, 0.9])]
    assert grouped(4, pairs) == grouped(4, [(b, a, s) for a, b, s in reversed(pairs)]) == expected


def test_pairs_kept_apart_split_a_group():
    pairs = [(0, 1, 0.9), (0, 2, 0.8), (0, 3, 0.7), (1, 2, 0.9), (2, 3, 0.75)]
    assert grouped(4, pairs) == [Group(2, [1, 0, 3], [0.9, 0.8, 0.75])]
    assert grouped(4, [p for p in pairs if p[:2] != (1, 2)], apart=[(2, 1)]) == [Group(0, [1, 3], [0.9, 0.7])]
    pairs = [(0, 1, 0.9), (0, 2, 0.8), (2, 3, 0.05)]
    assert grouped(4, pairs, apart=[(1, 2)]) == [Group(0, [1], [0.9]), Group(2, [3], [0.05])]


def test_every_member_passes_against_the_medoid_and_is_in_one_group():
    rng = np.random.default_rng(0)
    pairs = [(a, b, rng.random()) for a in range(60) for b in range(a) if rng.random() < 0.1]
    score = {frozenset((a, b)): s for a, b, s in pairs}
    found = grouped(60, pairs, apart=[(0, 1)])
    members = [n for group in found for n in (group.medoid, *group.members)]
    assert len(members) == len(set(members)) > 40
    for group in found:
        assert group.scores == [score[frozenset((group.medoid, n))] for n in group.members]
    left = set(range(60)) - set(members)
    assert not any({a, b} <= left for a, b, _ in pairs)


def test_no_pairs_no_groups():
    assert groups(3, np.zeros((0, 2), int), np.zeros(0)) == groups(0, np.zeros((0, 2), int), np.zeros(0)) == []


BASE = Quality(1280, 720, "h264", 2e6, 60.0, 15_000_000)


@pytest.mark.parametrize(
    ("change", "best", "reasons"),
    [
        ({"width": 640, "height": 360}, 0, ["1280x720 against 640x360", "640x360 against 1280x720"]),
        (  # 200 ms longer does not beat four times the pixels
            {"width": 640, "height": 360, "duration_seconds": 60.2}, 0,
            ["1280x720 against 640x360", "640x360 against 1280x720"],
        ),
        (  # nor do twice the bits
            {"width": 640, "height": 360, "bit_rate": 4e6}, 0, ["1280x720 against 640x360", "640x360 against 1280x720"],
        ),
        ({"width": 1278, "bit_rate": 3e6}, 1, ["2 Mb/s h264 against 3 Mb/s h264", "3 Mb/s h264 against 2 Mb/s h264"]),
        (
            {"bit_rate": 1.6e6, "codec": "hevc"}, 1,
            ["2 Mb/s h264 against 1.6 Mb/s hevc (worth 2.4 in h264)",
             "1.6 Mb/s hevc (worth 2.4 in h264) against 2 Mb/s h264"],
        ),
        ({"bit_rate": 2.1e6, "duration_seconds": 62}, 1, ["60.0 s against 62.0 s", "62.0 s against 60.0 s"]),
        (
            {"duration_seconds": 60.9, "size_bytes": 15_000_001}, 1,
            ["15,000,000 bytes against 15,000,001 bytes", "15,000,001 bytes against 15,000,000 bytes"],
        ),
        ({}, 0, ["the first of equals", "as good in resolution, bit rate, duration and size"]),
        ({"kept": True, "width": 64}, 1, ["not marked against marked by you", "marked by you against not marked"]),
        (
            {"width": 640, "height": 360, "duration_seconds": 90.0}, 0,
            ["1280x720 against 640x360",
             "640x360 against 1280x720; 30.0 s longer than the one to keep, so look before choosing"],
        ),
    ],
)  # fmt: skip
def test_keep(change, best, reasons):
    assert keep_order([BASE, replace(BASE, **change)]) == (best, reasons)


def test_each_reason_is_the_criterion_that_decided():
    videos = [
        replace(BASE, width=640, height=360), BASE, replace(BASE, bit_rate=1e6), replace(BASE, duration_seconds=50.0),
    ]  # fmt: skip
    best, reasons = keep_order(videos)
    assert best == 1 and reasons == [
        "640x360 against 1280x720",
        "1280x720 against 640x360, 2 Mb/s h264 against 1 Mb/s h264, 60.0 s against 50.0 s",
        "1 Mb/s h264 against 2 Mb/s h264",
        "50.0 s against 60.0 s",
    ]

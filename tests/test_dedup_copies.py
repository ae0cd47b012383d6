"""`dedup` from files to groups with nothing replaced: edits of a drawn scene, its reverse, another scene."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from motion_clips import write_variant

from vsim_fast.deduplication import dedup
from vsim_fast.models import Scene

RATE, SECONDS = 12, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    times, rate = np.arange(RATE * SECONDS) / RATE, Fraction(RATE)
    first, second = Scene(0), Scene(1)
    frames = [first.frame(n / 2) for n in range(len(times))]
    for kind in ("original", "reencoded", "reversed"):
        write_variant(folder / f"{kind}.mp4", kind, frames, times, rate)
    edits = {
        "mirrored": [frame[:, ::-1].copy() for frame in frames],
        "padded": [np.pad(frame, ((30, 30), (40, 40), (0, 0))) for frame in frames],
        "other": [second.frame(n / 2) for n in range(len(times))],
    }
    for name, edited in edits.items():
        write_variant(folder / f"{name}.mp4", "original", edited, times, rate)
    return folder


def test_copies_are_found_and_nothing_else(folder, tmp_path):
    result = dedup([folder], output_dir=tmp_path, device="cpu")
    assert result.status == "complete" and result.counts["pairs_computed"] == result.counts["pairs"] == 15
    members = [{Path(member.path).stem for member in group.members} for group in result.groups]
    assert members == [{"original", "reencoded", "mirrored", "padded"}]
    kept = [Path(member.path).stem for member in result.groups[0].members if member.keep]
    assert kept == ["padded"]  # as many pixels without its bars, and more bytes
    again = dedup([folder], output_dir=tmp_path, device="cpu")
    assert again.counts["pairs_computed"] == again.counts["features_computed"] == 0
    assert again.groups == result.groups
    assert json.loads((tmp_path / "groups.json").read_text())["groups"] == [g.model_dump() for g in result.groups]

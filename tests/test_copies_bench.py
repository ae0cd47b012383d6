"""The set of copies: what its truth says is so, the same bytes each time, and tables that tell good from bad."""

from __future__ import annotations

import copies
import numpy as np
import pytest
from clip_edits import RATE, drawn, planes, read, size, sprites, write
from copies import EDITS, SEVERITIES, Base, Entry, Source, build_base, edited

WIDTH, HEIGHT, FRAMES = 64, 48, 125


def numbered(count: int = FRAMES) -> list[np.ndarray]:
    """Frames whose luma is 16 plus their number."""
    frames = np.full((count, HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    frames[:, :HEIGHT] = np.arange(16, 16 + count, dtype=np.uint8)[:, None, None]
    return list(frames)


def host() -> list[np.ndarray]:
    return [np.full((HEIGHT * 3 // 2, WIDTH), 230, np.uint8)] * 50


@pytest.mark.parametrize("family", ["reencode", "fps", "speed", "slow", "trim", "insert"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_times_are_true(family, severity):
    edit = EDITS[family][SEVERITIES.index(severity)]
    copy, (query_start, query_end, ref_start, ref_end) = edited(numbered(), edit, host, f"{family} {severity}")
    luma = np.array([planes(frame)[0].mean() for frame in copy])
    times = np.arange(len(copy)) / edit.rate
    inside = (times >= query_start - 1e-6) & (times < query_end - 1e-6)
    assert (luma[~inside] == 230).all()
    rate = (ref_end - ref_start) / (query_end - query_start)
    shown = (luma[inside] - 16) / RATE
    expected = ref_start + (times[inside] - query_start) * rate
    assert np.abs(shown - expected).max() <= 1 / edit.rate + 1e-6, "beyond one frame"
    assert rate == pytest.approx(edit.speed, rel=0.02)
    assert ref_end - ref_start == pytest.approx(edit.keep * FRAMES / RATE, abs=0.08)
    assert not edit.insert or inside.mean() == pytest.approx(edit.insert, abs=0.01)


@pytest.mark.parametrize(
    ("family", "severity", "share"),
    [("crop", 0, 0.85), ("crop", 1, 0.5), ("pad", 1, 1.5), ("reencode", 0, 0.6)],
)
def test_sizes_are_as_listed(family, severity, share):
    copy, _ = edited(numbered(3), EDITS[family][severity], host, "x")
    assert size(copy) == pytest.approx((WIDTH * share, HEIGHT * share), abs=2)


@pytest.mark.parametrize(("severity", "share"), [("mild", 0.7), ("hard", 0.4)])
def test_a_picture_in_picture_covers_its_share(severity, share):
    copy, _ = edited(numbered(3), EDITS["pip"][SEVERITIES.index(severity)], host, "x")
    assert (planes(copy[0])[0] == 16).mean() == pytest.approx(share**2, abs=0.05)


def test_the_same_bytes_each_time_and_what_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "BASES", {"moving": Base(Source("lavfi:testsrc2=s=160x120:rate=25", seconds=0.4))})
    monkeypatch.setattr(copies, "HOSTS", [[Source("lavfi:mandelbrot=s=80x60:rate=25", seconds=0.4)]])
    monkeypatch.setattr(copies, "PIECES", [Source("lavfi:life=s=80x60:rate=25:seed=1", seconds=1)])
    families = ("noise", "pip", "insert")
    first, second = (build_base(None, tmp_path / name, 0, families, {}) for name in "ab")
    assert first == second
    assert [e.file for e in first if e.role == "query"] == [
        f"queries/moving.{family}.{severity}.mp4" for family in families for severity in SEVERITIES
    ]
    known = {e.file: e for e in first}
    before = {e.file: (tmp_path / "a" / e.file).stat().st_mtime_ns for e in first}
    (tmp_path / "a" / first[1].file).write_bytes(b"")
    assert build_base(None, tmp_path / "a", 0, families, known) == first
    changed = [file for file, at in before.items() if (tmp_path / "a" / file).stat().st_mtime_ns != at]
    assert changed == [first[1].file]


def test_a_clip_written_is_a_clip_read(tmp_path):
    clip = sprites(3, 0, 0.4, width=160, height=120)
    write(tmp_path / "clip.mp4", clip, crf=10)
    again = read(tmp_path / "clip.mp4", 0.2, 1)
    assert len(again) == 5
    assert np.abs(np.stack(again).astype(float) - np.stack(clip[5:])).mean() < 3


def entries() -> list[Entry]:
    found = []
    for base, split in (("a", "tune"), ("b", "held_out")):
        common = {"base": base, "split": split}
        found.append(Entry(f"refs/{base}.mp4", "ref", family="ref", **common))
        for severity in SEVERITIES:
            name = f"queries/{base}.crop.{severity}.mp4"
            found.append(Entry(name, "query", family="crop", severity=severity, shared=(0, 1, 0, 1), **common))
        found.append(Entry(f"queries/{base}.later.0.mp4", "query", family="later", **common))
        probes = ("same", "reversed", "shuffled", "middle_a", "middle_b")
        found += [Entry(f"probes/{base}.{probe}.mp4", "probe", family=probe, **common) for probe in probes]
    return found


def test_figures_of_perfect_and_of_random_scores():
    from copy_scores import Scores, aucs, figures, ranked, wanted_pairs

    scores = Scores(wanted_pairs(entries()))
    assert len(scores.pairs) == 6 * 2 + 2 * 4
    made_of = [(a.split("/")[1].split(".")[:2], b.split("/")[1].split(".")[0]) for a, b in scores.pairs]
    copied = np.array([kind in ("crop", "same") and base == ref for (base, kind), ref in made_of])
    scores.columns["perfect"] = copied.astype(float)
    scores.columns["chance"] = drawn("chance").uniform(0, 1, len(copied))
    for split in ("tune", "held_out", "all"):
        perfect = figures(ranked(entries(), scores, "perfect", split))
        assert perfect.pop("later above") == 0
        assert set(perfect.values()) == {1}
        assert set(aucs(entries(), scores, "perfect", split).values()) == {1}
    assert figures(ranked(entries(), scores, "chance", "all"))["uAP"] < 0.9


def test_what_was_not_scored_ranks_last():
    from copy_scores import Scores

    scores = Scores([("a", "b"), ("a", "c")], {"order": np.array([-0.5, np.nan])})
    assert scores.of("order")["a", "c"] < -0.5

"""Pairs of duplicates to groups around a medoid, and which member of a group to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

PIXELS_NEAR, BIT_RATE_NEAR, DURATION_NEAR, DURATION_NEAR_SECONDS = 0.05, 0.10, 0.02, 0.5
"""Closer than this share (or, of durations, this many seconds if that is more) two values count as equal."""
CODEC_GAIN = {  # bits of H.264 that one bit of the codec is worth, roughly; what is not listed counts as H.264
    "mpeg1video": 0.4, "mpeg2video": 0.5, "h263": 0.5, "flv1": 0.5, "wmv1": 0.5, "wmv2": 0.6, "mjpeg": 0.2,
    "mpeg4": 0.65, "msmpeg4v2": 0.6, "msmpeg4v3": 0.6, "theora": 0.6, "vp8": 0.9, "vc1": 0.9, "wmv3": 0.9,
    "vp9": 1.5, "hevc": 1.5, "av1": 1.9,
}  # fmt: skip


class Group(NamedTuple):
    """Videos that are copies of the medoid, as indices; best first."""

    medoid: int
    members: list[int]
    """Without the medoid."""
    scores: list[float]
    """Of each member against the medoid."""


def groups(count: int, pairs: np.ndarray, scores: np.ndarray, apart: Collection[tuple[int, int]] = ()) -> list[Group]:
    """Groups in which every member is a duplicate of the medoid: what is only a duplicate of a duplicate is left out.

    Of all videos, the one whose scores with its duplicates sum up to most becomes a medoid and takes them; then the
    same with those that are left, until no pair is.

    Args:
        count: N videos.
        pairs: int [E, 2] of duplicates, each in either order.  scores: float [E], 0..1.
        apart: pairs (either order) that must not be in one group, whatever their score.
    Returns:
        Groups of two videos or more, each video in at most one; those whose least score is highest come first.
    """
    edges: list[dict[int, float]] = [{} for _ in range(count)]
    for (a, b), score in zip(np.asarray(pairs).reshape(-1, 2).tolist(), np.asarray(scores).tolist(), strict=True):
        if a != b:
            edges[a][b] = edges[b][a] = max(score, edges[a].get(b, score))
    split: list[set[int]] = [set() for _ in range(count)]
    for a, b in apart:
        split[a].add(b)
        split[b].add(a)

    def star(centre: int) -> Group:
        members, barred = [], split[centre].copy()
        for other in sorted(edges[centre], key=lambda other: (-edges[centre][other], other)):
            if other not in barred:
                members.append(other)
                barred |= split[other]
        return Group(centre, members, [edges[centre][member] for member in members])

    stars = {n: star(n) for n in range(count) if edges[n]}
    strongest = [(-math.fsum(group.scores), n, group) for n, group in stars.items()]
    heapify(strongest)
    found = []
    while strongest:
        _, centre, best = heappop(strongest)
        if stars.get(centre) is not best or not best.members:  # taken, or weaker by now
            continue
        found.append(best)
        taken = {centre, *best.members}
        touched = {other for n in taken for other in edges[n]} - taken
        for n in taken:
            del stars[n]
        for n in touched:
            edges[n] = {other: score for other, score in edges[n].items() if other not in taken}
            stars[n] = star(n)
            heappush(strongest, (-math.fsum(stars[n].scores), n, stars[n]))
    return sorted(found, key=lambda group: (-group.scores[-1], group.medoid))


@dataclass(frozen=True)
class Quality:
    """What the choice of the video to keep rests on. Enlarged pictures are not looked for: a blown-up copy has
    more pixels, and wins by them."""

    width: int
    """Pixels as displayed, without bars."""
    height: int
    codec: str
    bit_rate: float
    """Bits per second of the whole file, sound included."""
    duration_seconds: float
    size_bytes: int
    kept: bool = False
    """The user marked it."""

    @property
    def h264_bit_rate(self) -> float:
        """What H.264 would need for this, roughly."""
        return self.bit_rate * CODEC_GAIN.get(self.codec, 1.0)


class _Criterion(NamedTuple):
    value: Callable[[Quality], float]
    near: Callable[[float], float]
    """How far below this best value still counts as equal."""
    shown: Callable[[Quality], str]


CRITERIA = (
    _Criterion(lambda v: v.kept, lambda top: 0, lambda v: "marked by you" if v.kept else "not marked"),
    _Criterion(lambda v: v.width * v.height, lambda top: PIXELS_NEAR * top, lambda v: f"{v.width}x{v.height}"),
    _Criterion(
        lambda v: v.h264_bit_rate,
        lambda top: BIT_RATE_NEAR * top,
        lambda v: (
            f"{v.bit_rate / 1e6:.3g} Mb/s {v.codec}"
            + (f" (worth {v.h264_bit_rate / 1e6:.3g} in h264)" if v.codec in CODEC_GAIN else "")
        ),
    ),
    _Criterion(
        lambda v: v.duration_seconds,
        lambda top: max(DURATION_NEAR * top, DURATION_NEAR_SECONDS),
        lambda v: f"{v.duration_seconds:.1f} s",
    ),
    _Criterion(lambda v: v.size_bytes, lambda top: 0, lambda v: f"{v.size_bytes:,} bytes"),
)
DURATION = CRITERIA[3]


def keep_order(videos: Sequence[Quality]) -> tuple[int, list[str]]:
    """The video to keep, and for each video the reason why it is, or is not, that one: "640x360 against 1280x720".

    The user's mark decides, then pixels, then bit rate (scaled by what the codec makes of a bit), then duration, then
    size. Those within PIXELS_NEAR (BIT_RATE_NEAR, DURATION_NEAR ...) of the best count as equal and go on to the next
    criterion; of equals in everything the first is kept.
    """
    left, decided = list(range(len(videos))), []  # criterion and the videos that fell by it
    for criterion in CRITERIA:
        values = {n: criterion.value(videos[n]) for n in left}
        top = max(values.values())
        fell = [n for n in left if values[n] < top - criterion.near(top)]
        left = [n for n in left if n not in fell]
        if fell:
            decided.append((criterion, fell))
    best = left[0]
    reasons = ["as good in resolution, bit rate, duration and size"] * len(videos)
    steps = []
    for criterion, fell in decided:
        for n in fell:
            reasons[n] = _against(criterion, videos[n], videos[best])
            longer = videos[n].duration_seconds - videos[best].duration_seconds
            if longer > DURATION.near(videos[n].duration_seconds):
                reasons[n] += f"; {longer:.1f} s longer than the one to keep, so look before choosing"
        steps.append(_against(criterion, videos[best], max((videos[n] for n in fell), key=criterion.value)))
    reasons[best] = ", ".join(steps) if steps else "the first of equals"
    return best, reasons


def _against(criterion: _Criterion, video: Quality, other: Quality) -> str:
    return f"{criterion.shown(video)} against {criterion.shown(other)}"

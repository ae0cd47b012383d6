"""All scores of pairs of videos: content, order and coverage, and what they mean together."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.copies.content import Sketch, content_scores, first_look, frame_matches
from vsim_fast.copies.features import ORIENTATIONS, CopyFeatures, query_frames, turn, turned_box
from vsim_fast.copies.geometry import Placement, place
from vsim_fast.copies.order import SAME_PICTURE, Stretch, best_stretch, shared_pictures
from vsim_fast.fingerprints import (
    DTWTrajectoryMatcher,
    MultiScaleDerivativeFingerprint,
    TemporalDerivativeFingerprint,
    TrajectoryFingerprint,
)
from vsim_fast.ops._threads import one_thread
from vsim_fast.records import Progress

SIGNALS = (
    "semantic_baseline", "match", "temporal_derivative", "multiscale_derivative", "trajectory_stats", "trajectory_dtw",
)  # fmt: skip
VERDICTS = (
    "duplicate", "contains", "shares a part", "same content, other order", "same scene, other time", "different",
)  # fmt: skip
ALPHA = 0.3
"""Weight of the content in the score."""
THRESHOLDS = {"score": 0.45, "content": 0.2, "order": 0.65, "coverage": 0.5}
STILL_CONTENT = 0.5
"""Content that videos need where nothing moves that could confirm it."""
STILL_AGREEMENT, STILL_COVERAGE = 0.5, 0.8
"""Then their patches must lie alike, too (other words on a like background do not), and what they share must be nearly
all of both: behind a title card that two videos share anything may follow."""
LOOKED_AT = 0.06
"""Raw content from which a pair is examined; unrelated videos rarely reach it."""
MIDDLE, SLOPE = 0.2, 0.04
"""Verified content at which the content score is 0.5, and by how much more it is 0.73."""
BEST_FRAMES = 4
"""Pairs of frames whose patches vote for the placement."""
NEAR_BEST = 0.05
"""Orientations whose raw content is this close to the best are placed too."""
MOVING, MOVING_ALONE = 0.02, 0.1
"""Energy of change from which both videos move; and from which one of them does beyond doubt, noise or not."""
COST_FLOOR = 0.03
PALINDROME = 0.95
"""Correlation both ways from which a video looks the same backwards."""
LONG_ENOUGH = 2.0
"""Seconds of a stretch from which its correlation counts in full, or half of the shorter video if that is less."""
EXPLAINED = 0.5
"""Of the best pair of frames: content that another pair needs to count as explained."""
BLOCK, HELD = 16, 64
"""References compared with one query at a time, and videos held in memory."""
MANY = 100_000
"""Pairs, of about 450 videos, from which a first look decides which are compared in full."""
LOOKS_ALIKE = 0.02
"""Content of the first look from which a pair is compared in full."""
LOOKED, LOOK_ROWS = 1000, 64
"""Videos on either side whose sketches are held, and queries looked at together."""


class Evidence(NamedTuple):
    """What was measured of a pair, before it is judged."""

    content: float
    """Raw, of `content_scores`, in the best orientation."""
    orientation: int
    """Index of ORIENTATIONS."""
    placement: Placement
    forward: Stretch | None
    backward: Stretch | None
    explained: tuple[float, float]
    """Share of the query's and of the reference's content frames that are found in the other, in any order."""
    still: bool
    """Nothing moves in either, from beginning to end: any line through them is as good as another."""


def examine(query: CopyFeatures, ref: CopyFeatures, matches: Tensor) -> Evidence:
    """Find how the query's picture lies in the reference's, then how its time does.

    Args:
        matches: of `frame_matches`, [O, Fq, F].
    """
    raw = content_scores(matches)
    generator = torch.Generator()
    candidates = []
    for o in (raw >= raw.max() - NEAR_BEST).nonzero().flatten().tolist():
        placement = _placement(query, ref, o, matches[o], generator.manual_seed(0))
        candidates.append((placement.agreement * float(raw[o]), o, placement))
    _, o, placement = max(candidates, key=lambda candidate: candidate[0])  # of equals the first
    orientation = int(query.orientations[o])
    low, high = placement.common()
    x = shared_pictures(turn(query.pictures, orientation), turned_box(query.box, orientation), low, high)
    y = shared_pictures(ref.pictures, ref.box, placement.apply(low), placement.apply(high))
    steps = (_step(query) or _step(ref) or 1.0, _step(ref) or _step(query) or 1.0)
    forward, backward = best_stretch(x, y, *steps), best_stretch(x, y.flip(0), *steps)
    if backward:
        backward = backward._replace(ref=(len(y) - backward.ref[1], len(y) - backward.ref[0]), reversed=True)
    found = matches[o] >= EXPLAINED * matches[o].max()
    explained = (float(found.any(1).float().mean()), float(found.any(0).float().mean()))
    still = max(_energy(x, query.featureless), _energy(y, ref.featureless)) < MOVING
    return Evidence(float(raw[o]), orientation, placement, forward, backward, explained, still)


def _placement(
    query: CopyFeatures, ref: CopyFeatures, o: int, matches: Tensor, generator: torch.Generator
) -> Placement:
    """Where the query's picture, in its o-th orientation, lies in the reference's."""
    picks = query_frames(len(query.codes))
    turned = (query.turned_codes, query.turned_code_scales, query.turned_places, query.turned_weights,
              query.turned_background)  # fmt: skip
    straight = (query.codes, query.code_scales, query.places, query.weights, query.background)
    points_, targets_, votes = [], [], []
    for k in matches.flatten().topk(min(BEST_FRAMES, matches.numel())).indices.tolist():
        f, g = divmod(k, matches.shape[1])
        codes, scales, places, weights, chance = [x[o - 1, f] for x in turned] if o else [x[picks[f]] for x in straight]
        cosines = (codes.float() * scales[:, None]) @ (ref.codes[g].float() * ref.code_scales[g, :, None]).T
        there, back = cosines.max(1), cosines.max(0)
        points, targets = places.float() / 256, ref.places[g].float() / 256
        points_.append(torch.cat([points, points[back.indices]]))
        targets_.append(torch.cat([targets[there.indices], targets]))
        votes.append(torch.cat([
            weights.float() * (there.values - chance.float()).clamp_min(0),
            ref.weights[g].float() * (back.values - ref.background[g].float()).clamp_min(0),
        ]))  # fmt: skip
    return place(torch.cat(points_), torch.cat(targets_), torch.cat(votes), generator)


class PairScores(NamedTuple):
    """What is known of a pair; scores lie in 0..1."""

    score: float
    """ALPHA · content + (1 - ALPHA) · (2 · order - 1, at least 0); the content alone where no order can be told."""
    content: float
    """How surely the one video shows what the other shows, in whatever order; 0.5 at the threshold."""
    order: float
    """1: the same things change in the same order; 0.5: nothing in common that has an order; 0: in reversed order."""
    coverage: float
    """The larger of the next two."""
    query_coverage: float
    """Share of the query's time that one unbroken stretch of the reference explains."""
    ref_coverage: float
    orientation: str
    """How the query is turned to fit, one of ORIENTATIONS."""
    verdict: str
    """One of VERDICTS."""
    duplicate: bool
    reason: str
    """The verdict's reason in words, with its thresholds."""
    signals: dict[str, float]
    """By SIGNALS; NaN where not computed."""
    matches: list[tuple[int, int, float]]
    """Content frames that belong together: of the query, of the reference, likeness 0..1; rising in the first."""


def different(raw: float) -> PairScores:
    """Scores of a pair that shows nothing in common."""
    content = _content(0.3 * raw)
    reason = f"content {content:.2f} < {THRESHOLDS['content']:g}"
    return PairScores(
        ALPHA * content, content, 0.5, 0.0, 0.0, 0.0, ORIENTATIONS[0], "different", False, reason,
        dict.fromkeys(SIGNALS, math.nan), [],
    )  # fmt: skip


def score_pair(query: CopyFeatures, ref: CopyFeatures, matches: Tensor) -> PairScores:
    """All scores of two videos.  Args: matches: of `frame_matches`."""
    raw = 0.0 if query.blank or ref.blank else float(content_scores(matches).max())
    if raw < LOOKED_AT:
        return different(raw)
    evidence = examine(query, ref, matches)
    forward, backward = evidence.forward, evidence.backward
    likeness = max((s.likeness - SAME_PICTURE for s in (forward, backward) if s), default=0.0)
    content = _content(evidence.content * (0.3 + 0.7 * evidence.placement.agreement) + 0.3 * max(0.0, likeness))
    stretch = _better(forward, backward)
    coverage = _coverage(query, ref, evidence, stretch)
    shortest = min(LONG_ENOUGH, query.duration_seconds / 2, ref.duration_seconds / 2)
    trusted = [_trusted(s, _step(query), shortest) for s in (forward, backward)]
    # No stretch at all: the patches are the same, the pictures are not. That is no order that cannot be told.
    moves = min(len(query.pictures), len(ref.pictures)) > 1 and (stretch is None or _moves(forward, backward))
    moves = moves and min(trusted) < PALINDROME
    order = 0.5
    if moves:
        order = _order(*trusted)
        whole = max(part / all_ for part, all_ in zip(coverage, evidence.explained, strict=True) if all_)
        if order > 0.5 and stretch is forward:  # most of what is alike must lie on the one line
            order = 0.5 + (order - 0.5) * min(1.0, whole / 0.7)
    score = ALPHA * content + (1 - ALPHA) * max(0.0, 2 * order - 1) if moves else content
    agreement = evidence.placement.agreement
    verdict, duplicate, reason = judge(score, content, order if moves else None, coverage, agreement)
    return PairScores(
        score, content, order, max(coverage), *coverage, ORIENTATIONS[evidence.orientation], verdict, duplicate, reason,
        signals(query, ref, forward), _matches(query, ref, stretch),
    )  # fmt: skip


def judge(
    score: float, content: float, order: float | None, coverage: tuple[float, float], agreement: float
) -> tuple[str, bool, str]:
    """One of VERDICTS, whether the pair are duplicates, and why.

    Args:
        order: None where nothing moves in what they share.  agreement: of the `Placement`.
    """
    limits = THRESHOLDS
    shown = f"content {content:.2f}"
    if content < limits["content"]:
        return "different", False, f"{shown} < {limits['content']:g}"
    if order is None:
        if content < STILL_CONTENT:
            return "different", False, f"{shown} < {STILL_CONTENT:g}, and nothing moves that could confirm it"
        if agreement < STILL_AGREEMENT:
            why = f"{agreement:.0%} of it in the same places, and nothing moves that could confirm it"
            return "different", False, f"{shown}, but only {why}"
    elif order < 1 - limits["order"]:
        return "same content, other order", False, f"{shown}, but it runs backwards: order {order:.2f}"
    elif order < limits["order"] or score < limits["score"]:
        why = f"order {order:.2f}, score {score:.2f} (at least {limits['order']:g} and {limits['score']:g})"
        if content < STILL_CONTENT:
            return "different", False, f"{shown}, but {why}"
        return "same scene, other time", False, f"{shown}, but the motion does not fit: {why}"
    moving = "nothing moves in the shared part" if order is None else f"order {order:.2f}"
    covered = f"{shown}, {moving}, {coverage[0]:.0%} of the one and {coverage[1]:.0%} of the other"
    if min(coverage) >= (STILL_COVERAGE if order is None else limits["coverage"]):
        return "duplicate", True, f"score {score:.2f} >= {limits['score']:g}: {covered}"
    if max(coverage) >= limits["coverage"] > min(coverage):
        return "contains", False, f"most of the one is a part of the other: {covered}"
    return "shares a part", False, f"they have a part in common: {covered}"


def signals(query: CopyFeatures, ref: CopyFeatures, forward: Stretch | None) -> dict[str, float]:
    """The fingerprints of motion, over the whole of both videos; by SIGNALS."""
    values = dict.fromkeys(SIGNALS, math.nan)
    x, y = query.embeddings.float(), ref.embeddings.float()
    values["semantic_baseline"] = float(F.cosine_similarity(x.mean(0), y.mean(0), dim=0))
    values["match"] = min(1.0, max(0.0, forward.motion)) if forward else 0.0
    if min(len(x), len(y)) < 3:  # nothing that could move
        return values
    for name, fingerprint in (
        ("temporal_derivative", TemporalDerivativeFingerprint()),
        ("multiscale_derivative", MultiScaleDerivativeFingerprint(window_sizes=(1, 5, 15))),
    ):
        values[name] = float(fingerprint.compare(fingerprint.compute(x), fingerprint.compute(y)))
    if not bool(query.centroids.isnan().any() or ref.centroids.isnan().any()):
        fingerprint = TrajectoryFingerprint()
        paths = [fingerprint.compute(video.centroids) for video in (query, ref)]
        values["trajectory_stats"] = float(fingerprint.compare(*paths))
        values["trajectory_dtw"] = float(DTWTrajectoryMatcher().compare(query.centroids, ref.centroids))
    return values


def _content(verified: float) -> float:
    return 1 / (1 + math.exp((MIDDLE - verified) / SLOPE))


def _step(video: CopyFeatures) -> float:
    """Seconds between two pictures; 0 where there is one."""
    times = video.picture_seconds
    return float(times[-1] - times[0]) / max(1, len(times) - 1)


def _better(forward: Stretch | None, backward: Stretch | None) -> Stretch | None:
    if forward is None or backward is None:
        return forward or backward
    return backward if _weight(backward) > 1.2 * _weight(forward) else forward


def _weight(stretch: Stretch) -> float:
    length = stretch.query[1] - stretch.query[0]
    return length * (stretch.likeness - SAME_PICTURE) * (0.25 + max(0.0, stretch.motion))


def _moves(*stretches: Stretch | None) -> bool:
    energies = [s.energies for s in stretches if s]
    return any(min(pair) >= MOVING or max(pair) >= MOVING_ALONE for pair in energies)


def _energy(pictures: Tensor, featureless: Tensor) -> float:
    """Root mean square of what changes in a whole video, of `shared_pictures`."""
    shown = pictures[~featureless]
    return float((shown - shown.mean(0)).square().mean().sqrt()) if len(shown) else 0.0


def _trusted(stretch: Stretch | None, step: float, shortest: float) -> float:
    """Correlation of what changes, less where the stretch is short."""
    if stretch is None:
        return 0.0
    seconds = (stretch.query[1] - stretch.query[0]) * step
    return min(1.0, max(0.0, stretch.motion)) * min(1.0, seconds / max(shortest, 1e-9))


def _order(forward: float, backward: float) -> float:
    cost_f, cost_b = (1 - forward + COST_FLOOR) ** 2, (1 - backward + COST_FLOOR) ** 2
    lean = (cost_b - cost_f) / (cost_b + cost_f)
    return 0.5 + 0.5 * lean * (forward if lean > 0 else backward)


def _coverage(
    query: CopyFeatures, ref: CopyFeatures, evidence: Evidence, stretch: Stretch | None
) -> tuple[float, float]:
    """Shares of the frames that show something."""
    if stretch is None or evidence.still:
        return evidence.explained
    return tuple(
        float(shown[first:last].float().sum() / shown.sum().clamp_min(1))
        for shown, (first, last) in ((~query.featureless, stretch.query), (~ref.featureless, stretch.ref))
    )


def _matches(query: CopyFeatures, ref: CopyFeatures, stretch: Stretch | None) -> list[tuple[int, int, float]]:
    if stretch is None:
        return []
    first, last = stretch.query
    times, targets = query.picture_seconds, ref.picture_seconds
    found = []
    for f, seconds in enumerate(query.frame_seconds.tolist()):
        i = int(torch.searchsorted(times, seconds - 1e-6))
        if not first <= i < last:
            continue
        share = (i - first) / max(1, last - 1 - first)
        start, end = stretch.ref[0], stretch.ref[1] - 1
        j = round(end - share * (end - start) if stretch.reversed else start + share * (end - start))
        g = int((ref.frame_seconds - targets[j]).abs().argmin())
        found.append((f, g, stretch.likenesses[i - first]))
    return found


def score_pairs(
    load: Callable[[int], CopyFeatures],
    pairs: np.ndarray,
    *,
    look_first: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, PairScores]]:
    """Scores of pairs of videos, made with one encoder and equal settings.

    Args:
        load: features of a video by its number.  pairs: int64 [N, 2], numbers of query and reference.
        look_first: compare a few patches of a few frames first, and in full only the pairs that look alike then: about
            ten times faster, at the price of some copies that share only a small part of picture or time. None: where
            there are more than MANY pairs.
    Yields:
        (row of `pairs`, its scores), each row once, in no order that could be relied on.
    Memory: the features of HELD videos, and of a first look the sketches of 2 · LOOKED videos, however many pairs.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    videos = _Held(load)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress.advance("pairs", done, len(pairs))

    if look_first is None:
        look_first = len(pairs) > MANY
    looked = _looked_at(load, pairs) if look_first else [(np.arange(len(pairs)), np.full(len(pairs), np.inf))]
    for rows, looks in looked:
        unlike = looks < LOOKS_ALIKE
        for row, look in zip(rows[unlike].tolist(), looks[unlike].tolist(), strict=True):
            yield row, different(look)
        told(int(unlike.sum()))
        for part in _parts(pairs, rows[~unlike]):
            query, refs = videos[int(pairs[part[0], 0])], [videos[n] for n in pairs[part, 1].tolist()]
            for row, ref, matches in zip(part.tolist(), refs, frame_matches([query], refs)[0], strict=True):
                with one_thread():
                    scores = score_pair(query, ref, matches)
                yield row, scores
            told(len(part))


def _parts(pairs: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of one query and at most BLOCK references, so that videos follow each other that were used just before."""
    block = pairs[rows, 1] // BLOCK
    rows = rows[np.lexsort((pairs[rows, 1], pairs[rows, 0], block))]
    ends = np.flatnonzero(np.diff(pairs[rows, 0]) | np.diff(pairs[rows, 1] // BLOCK)) + 1
    yield from (part for part in np.split(rows, ends) if len(part))


def _looked_at(load: Callable[[int], CopyFeatures], pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of `pairs` and what a first look at them says; LOOKED queries against LOOKED references at a time."""
    numbers, index = np.unique(pairs, return_inverse=True)
    index = index.reshape(-1, 2)
    tile = index // LOOKED
    order = np.lexsort((tile[:, 1], tile[:, 0]))
    held: dict[int, list[Sketch]] = {}

    def sketches(n: int, other: int) -> list[Sketch]:
        for old in set(held) - {n, other}:
            del held[old]
        if n not in held:
            held[n] = [Sketch.of(load(int(number))) for number in numbers[n * LOOKED : (n + 1) * LOOKED]]
        return held[n]

    ends = np.flatnonzero(np.diff(tile[order], axis=0).any(1)) + 1
    for rows in filter(len, np.split(order, ends)):
        left, right = tile[rows[0]].tolist()
        queries, refs = sketches(left, right), sketches(right, left)
        local = index[rows] - np.array([left, right]) * LOOKED
        for start in range(0, len(queries), LOOK_ROWS):
            mine = (local[:, 0] >= start) & (local[:, 0] < start + LOOK_ROWS)
            if mine.any():
                looks = first_look(queries[start : start + LOOK_ROWS], refs).numpy()
                yield rows[mine], looks[local[mine, 0] - start, local[mine, 1]]


class _Held:
    """The videos used last."""

    def __init__(self, load: Callable[[int], CopyFeatures]):
        self._load = load
        self._videos: OrderedDict[int, CopyFeatures] = OrderedDict()

    def __getitem__(self, number: int) -> CopyFeatures:
        if number not in self._videos:
            self._videos[number] = self._load(number)
            if len(self._videos) > HELD:
                self._videos.popitem(last=False)
        self._videos.move_to_end(number)
        return self._videos[number]

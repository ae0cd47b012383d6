"""Content: does one video show what the other shows, whatever the order? Patches against their best patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vsim_fast.copies.features import QUERY_SCALES, SCALES, CopyFeatures, query_frames
from vsim_fast.ops import QuantizedTokens, best_cosines

NOISE_NEIGHBOURS = 5
"""A patch's background: mean of its best similarities to this many pictures of the noise set."""
LOOK_QUERY, LOOK_REF = (3, (32, 16)), (4, (64, 24, 16, 8))
"""Frames, and tokens of each size, that a first look takes of a query and of a reference."""
LOOK_CELLS = 8 << 20
"""Best cosines of a first look held at once."""


def background(tokens: QuantizedTokens, noise: QuantizedTokens, *, neighbours: int = NOISE_NEIGHBOURS) -> Tensor:
    """How well each token is matched by pictures that it has nothing to do with.

    Args:
        tokens: [F, K, D'].  noise: [N, Kn, D'], tokens of N unrelated pictures.
        neighbours: the mean is over this many of the pictures that match best.
    Returns:
        float16 [F, K].
    """
    best = best_cosines(tokens, noise).a_in_b  # [F, N, K]
    return best.topk(min(neighbours, best.shape[1]), dim=1).values.mean(1).half()


def frame_matches(queries: Sequence[CopyFeatures], refs: Sequence[CopyFeatures]) -> list[list[Tensor]]:
    """How much of one content frame is found in another.

    Returns:
        for every query and reference float32 [O, Fq, F], the query's frames those of `query_frames`: mean over patches,
        weighted by energy, of best cosine less background; of the query's patches in the reference or the reference's
        in the query, at whatever sizes they fit best.
    """
    left, right = _joined([_query(video) for video in queries]), _joined([_ref(video) for video in refs])
    rows = _compare(left, right).split(left.counts)
    return [
        [cell.unflatten(0, (len(query.orientations), -1)) for cell in row.split(right.counts, dim=1)]
        for query, row in zip(queries, rows, strict=True)
    ]


def content_scores(matches: Tensor) -> Tensor:
    """Of `frame_matches` [O, Fq, F], how much of one video is found in the other, in each orientation: [O].

    The mean over one video's frames of their best frame in the other: over the query's, or over the reference's.
    """
    return torch.maximum(matches.amax(2).mean(1), matches.amax(1).mean(1))


class Sketch(NamedTuple):
    """A few tokens of a few frames: enough for a first look at a pair, in a fraction of the time."""

    query: _Frames
    """LOOK_QUERY frames in each orientation."""
    ref: _Frames
    """LOOK_REF frames."""

    @classmethod
    def of(cls, video: CopyFeatures) -> Sketch:
        """About 0.2 MB with two orientations and 384 numbers a token."""
        query = _thinned(_query(video), len(video.orientations), *LOOK_QUERY)
        return cls(query, _thinned(_ref(video), 1, *LOOK_REF))


def first_look(queries: Sequence[Sketch], refs: Sequence[Sketch]) -> Tensor:
    """As `content_scores`, of sketches, in the best orientation: float32 [queries, refs]."""
    left, right = _joined([sketch.query for sketch in queries]), _joined([sketch.ref for sketch in refs])
    frames, others = LOOK_QUERY[0], LOOK_REF[0]
    rows = []
    step = max(1, LOOK_CELLS // (left.counts[0] * len(right.weights) * right.weights.shape[1]))
    for start in range(0, len(queries), step):
        part = _rows(left, slice(start * left.counts[0], (start + step) * left.counts[0]))
        table = _compare(part, right).unflatten(1, (-1, others)).unflatten(0, (-1, left.counts[0] // frames, frames))
        there, back = table.amax(4).mean(2), table.amax(2).mean(3)  # [queries, O, refs]
        rows.append(torch.maximum(there, back).amax(1))
    return torch.cat(rows)


class _Frames(NamedTuple):
    """Content frames of several videos, one after the other, orientation by orientation."""

    tokens: QuantizedTokens
    """[N, K, D']."""
    weights: Tensor
    """float32 [N, K]."""
    background: Tensor
    """float32 [N, K]."""
    scales: list[int]
    """Tokens of each size; they follow each other."""
    counts: list[int]
    """Frames of each video, all orientations."""


def _query(video: CopyFeatures) -> _Frames:
    """A query: some of its frames, at some sizes, in all orientations."""
    frames = query_frames(len(video.codes))
    picks, counts = _query_tokens(video)
    columns = [x[frames][:, picks] for x in (video.codes, video.code_scales, video.weights, video.background)]
    if len(video.orientations) > 1:
        turned = (video.turned_codes, video.turned_code_scales, video.turned_weights, video.turned_background)
        columns = [torch.cat([x, other.flatten(0, 1)]) for x, other in zip(columns, turned, strict=True)]
    codes, scales, weights, chance = columns
    return _Frames(QuantizedTokens(codes, scales), weights.float(), chance.float(), counts, [len(codes)])


def _query_tokens(video: CopyFeatures) -> tuple[Tensor, list[int]]:
    """Which of a frame's tokens a query is compared by, and how many of each size."""
    sizes, turned = (x.long().bincount(minlength=len(SCALES)).tolist() for x in (video.scales, video.turned_scales))
    share = sizes[0] / SCALES[0][1]  # grids of other than 16 × 16 patches keep more, or fewer
    counts = [turned[n] or min(sizes[n], max(1, round(count * share))) for n, count in QUERY_SCALES]
    starts = [sum(sizes[:number]) for number, _ in QUERY_SCALES]
    return torch.cat([start + torch.arange(n) for start, n in zip(starts, counts, strict=True)]), counts


def _ref(video: CopyFeatures) -> _Frames:
    sizes = video.scales.long().bincount(minlength=len(SCALES)).tolist()
    return _Frames(video.tokens, video.weights.float(), video.background.float(), sizes, [len(video.codes)])


def _thinned(frames: _Frames, orientations: int, count: int, tokens: Sequence[int]) -> _Frames:
    """`count` frames of each orientation, with the first `tokens` of each size; their weights sum to what all did."""
    each = len(frames.weights) // orientations
    rows = ((torch.arange(count) + 0.5) * each / count).long()
    rows = (rows + each * torch.arange(orientations)[:, None]).flatten()
    sizes = [min(size, most) for size, most in zip(frames.scales, tokens, strict=True)]
    starts = [sum(frames.scales[:n]) for n in range(len(sizes))]
    picks = torch.cat([start + torch.arange(n) for start, n in zip(starts, sizes, strict=True)])
    totals = [part.sum(1, keepdim=True) for part in frames.weights[rows].split(frames.scales, 1)]
    kept = frames.weights[rows][:, picks].split(sizes, 1)
    weights = [
        part / part.sum(1, keepdim=True).clamp_min(1e-12) * total for part, total in zip(kept, totals, strict=True)
    ]
    tokens_ = QuantizedTokens(*(x[rows][:, picks] for x in frames.tokens))
    return _Frames(tokens_, torch.cat(weights, 1), frames.background[rows][:, picks], sizes, [len(rows)])


def _rows(frames: _Frames, rows: slice) -> _Frames:
    tokens = QuantizedTokens(*(x[rows] for x in frames.tokens))
    return frames._replace(tokens=tokens, weights=frames.weights[rows], background=frames.background[rows])


def _joined(parts: Sequence[_Frames]) -> _Frames:
    if len(parts) == 1:
        return parts[0]
    tokens = QuantizedTokens(*(torch.cat(column) for column in zip(*(part.tokens for part in parts), strict=True)))
    weights, chance = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:3])
    return _Frames(tokens, weights, chance, parts[0].scales, [count for part in parts for count in part.counts])


def _compare(left: _Frames, right: _Frames) -> Tensor:
    """float32 [frames, frames]: the best over the sizes of either side."""
    best = best_cosines(left.tokens, right.tokens)
    there = (best.a_in_b - left.background[:, None]) * left.weights[:, None]
    back = (best.b_in_a - right.background) * right.weights
    sums = [part.sum(2) for part in (*there.split(left.scales, 2), *back.split(right.scales, 2))]
    return torch.stack(sums).amax(0)

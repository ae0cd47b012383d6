"""Content: does one video show what the other shows, whatever the order? Patches against their best patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vsim_fast.copies.features import QUERY_SCALES, SCALES, CopyFeatures, query_frames

NOISE_NEIGHBOURS = 5
"""A patch's background: mean of its best similarities to this many pictures of the noise set."""
TILE_CELLS = 32 << 20
"""Most cosines held at once."""


def background(tokens: Tensor, noise: Tensor, *, neighbours: int = NOISE_NEIGHBOURS) -> Tensor:
    """How well each token is matched by pictures that it has nothing to do with.

    Args:
        tokens: [..., K, D] of length 1.  noise: [N, Kn, D] of length 1, tokens of N unrelated pictures.
        neighbours: the mean is over this many of the pictures that match best.
    Returns:
        float16 [..., K].
    """
    flat, other = _compute(tokens.flatten(0, -2)), _compute(noise.flatten(0, 1))
    parts = []
    for rows in flat.split(max(1, TILE_CELLS // len(other))):
        best = (rows @ other.T).unflatten(1, noise.shape[:2]).amax(2)  # [rows, N]
        parts.append(best.float().topk(min(neighbours, len(noise)), dim=1).values.mean(1))
    return torch.cat(parts).half().view(tokens.shape[:-1])


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


class _Frames(NamedTuple):
    """Content frames of several videos, one after the other, orientation by orientation."""

    tokens: Tensor
    """[N, K, D]."""
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
    frames = query_frames(len(video.tokens))
    parts = [[], [], []]
    counts = []
    start = 0
    share = int((video.scales == 0).sum()) / SCALES[0][1]
    for number, _ in enumerate(SCALES):
        size = int((video.scales == number).sum())
        for wanted, count in QUERY_SCALES:
            if wanted == number:
                count = min(size, max(1, round(count * share)))
                counts.append(count)
                for column, x in zip(parts, (video.tokens, video.weights, video.background), strict=True):
                    column.append(x[frames, start : start + count])
        start += size
    columns = [torch.cat(column, 1) for column in parts]
    if len(video.orientations) > 1:
        turned = (video.turned_tokens, video.turned_weights, video.turned_background)
        columns = [torch.cat([x, other.flatten(0, 1)]) for x, other in zip(columns, turned, strict=True)]
    return _Frames(_compute(columns[0]), columns[1].float(), columns[2].float(), counts, [len(columns[0])])


def _ref(video: CopyFeatures) -> _Frames:
    counts = video.scales.long().bincount(minlength=len(SCALES)).tolist()
    return _Frames(_compute(video.tokens), video.weights.float(), video.background.float(), counts, [len(video.tokens)])


def _joined(parts: Sequence[_Frames]) -> _Frames:
    columns = [torch.cat(column) for column in list(zip(*parts, strict=True))[:3]]
    return _Frames(*columns, parts[0].scales, [count for part in parts for count in part.counts])


def _compare(left: _Frames, right: _Frames) -> Tensor:
    """float32 [frames, frames]: the best over the sizes of either side."""
    table = torch.empty(len(left.tokens), len(right.tokens))
    per_frame, size = left.tokens.shape[1], right.tokens.shape[1]
    step = max(1, TILE_CELLS // (per_frame * len(right.tokens) * size))
    columns = right.tokens.flatten(0, 1).T
    for start in range(0, len(left.tokens), step):
        rows = slice(start, start + step)
        cosines = (left.tokens[rows].flatten(0, 1) @ columns).view(-1, per_frame, len(right.tokens), size)
        there = (cosines.amax(3).float() - left.background[rows, :, None]) * left.weights[rows, :, None]
        back = (cosines.amax(1).float() - right.background) * right.weights
        sums = [part.sum(1) for part in there.split(left.scales, 1)]
        sums += [part.sum(2) for part in back.split(right.scales, 2)]
        table[rows] = torch.stack(sums).amax(0)
    return table


def _compute(x: Tensor) -> Tensor:
    """bfloat16 on CPUs: twice as fast as float32 and here as good; float16 elsewhere."""
    return x.to(torch.bfloat16 if x.device.type == "cpu" else torch.float16)

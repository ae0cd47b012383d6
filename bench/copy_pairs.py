"""Time and memory of comparing all pairs of many videos: features drawn at random, nothing decoded.

    python bench/copy_pairs.py [--counts 250 500 1000] [--rows bench/results]

Unrelated videos of five seconds as `builtin` would describe them, one in twenty a copy of the one before it.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from conftest import Recorder
from torch import Tensor

from vsim_fast.copies import CopyFeatures, score_pairs
from vsim_fast.copies.features import PICTURE, QUERY_FRAMES, QUERY_SCALES, SCALES

FRAMES, PICTURES, DIM = 8, 30, 384
COPY_EVERY = 20


class Videos:
    """Features of video `n`, made anew at every call: a set of any size takes no memory."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sizes = [count for _, count in SCALES]
        self.codes = torch.randint(-80, 81, (1 << 24,), generator=generator, dtype=torch.int8)
        self.loads = 0

    def drawn(self, generator: torch.Generator, *shape: int) -> Tensor:
        """int8 [*shape, DIM], a stretch of one long row of random codes."""
        size = math.prod(shape) * DIM
        start = int(torch.randint(len(self.codes) - size, (1,), generator=generator))
        return self.codes[start : start + size].view(*shape, DIM).clone()

    def __call__(self, n: int) -> CopyFeatures:
        self.loads += 1
        source = n - 1 if n % COPY_EVERY == COPY_EVERY - 1 else n
        generator = torch.Generator().manual_seed(source)
        count = sum(self.sizes)
        codes = self.drawn(generator, FRAMES, count)
        kept = torch.cat([sum(self.sizes[:k]) + torch.arange(m) for k, m in QUERY_SCALES])
        turned = self.drawn(generator, 1, QUERY_FRAMES, len(kept))
        places = torch.randint(256, (FRAMES, count, 2), generator=generator, dtype=torch.uint8)
        weights = torch.cat([torch.full((FRAMES, m), 1 / m) for m in self.sizes], 1).half()
        pictures = torch.randint(256, (PICTURES, PICTURE, PICTURE), generator=generator, dtype=torch.uint8)
        return CopyFeatures(
            frame_seconds=torch.arange(FRAMES).double() * 5 / FRAMES,
            codes=codes, code_scales=lengths(codes), places=places, weights=weights,
            background=torch.full((FRAMES, count), 0.15).half(),
            scales=torch.cat([torch.full((m,), k, dtype=torch.uint8) for k, m in enumerate(self.sizes)]),
            orientations=torch.tensor([0, 4]),
            turned_codes=turned, turned_code_scales=lengths(turned),
            turned_places=places[None, :QUERY_FRAMES][:, :, kept],
            turned_weights=weights[None, :QUERY_FRAMES][:, :, kept],
            turned_background=torch.full(turned.shape[:-1], 0.15).half(),
            turned_scales=torch.cat([torch.full((m,), k, dtype=torch.uint8) for k, m in QUERY_SCALES]),
            box=torch.tensor([0.0, 0.0, 1.0, 1.0]), picture_seconds=torch.arange(PICTURES).double() / 6,
            pictures=pictures,
            embeddings=torch.randn(PICTURES, DIM, generator=generator).half(),
            centroids=torch.rand(PICTURES, 2, generator=generator), featureless=torch.zeros(PICTURES, dtype=torch.bool),
        )  # fmt: skip


def lengths(codes: Tensor) -> Tensor:
    """Scales that make tokens of length 1 of the codes."""
    return 1 / codes.float().norm(dim=-1)


class Progress:
    """Seconds and pairs done, on stderr."""

    def __init__(self) -> None:
        self.started = self.told = time.perf_counter()

    def advance(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.told > 10:
            self.told = now
            print(f"{stage}: {done} of {total}, {now - self.started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=[250, 500, 1000])
    parser.add_argument("--look-first", choices=("yes", "no"), help="default: as `score_pairs` decides")
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    recorder = Recorder(options.rows) if options.rows else None
    look = None if options.look_first is None else options.look_first == "yes"
    for count in options.counts:
        videos = Videos()
        pairs = np.array(list(combinations(range(count), 2)))
        started = time.perf_counter()
        found = 0
        for row, scores in score_pairs(videos, pairs, look_first=look, progress=Progress()):
            copy = pairs[row, 1] % COPY_EVERY == COPY_EVERY - 1 and pairs[row, 0] == pairs[row, 1] - 1
            found += bool(copy and scores.content > 0.5)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{count} videos: {len(pairs)} pairs in {seconds:.1f} s, {1e3 * seconds / len(pairs):.3f} ms a pair, "
            f"{videos.loads} loads, peak {peak:.0f} MiB, {found} of {count // COPY_EVERY} copies found",
            flush=True,
        )
        if recorder:
            recorder.add(
                [seconds], op="score pairs of copies", provider="vsim_fast", dtype="int8", shape=f"N{count}",
                baseline="", rate=len(pairs) / seconds, unit="pairs/s", peak_mib=peak,
                note="random features, nothing decoded",
                quality={"copies found": found / (count // COPY_EVERY)},
            )  # fmt: skip


if __name__ == "__main__":
    main()

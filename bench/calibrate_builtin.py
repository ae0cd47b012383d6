"""Make vsim_fast/encode/builtin.safetensors: mean and whitening of the built-in descriptor over a folder of clips.

    python bench/calibrate_builtin.py CLIPS OUT.safetensors [--skip NAME ...]

Clips whose names share the first word (chair_1.mp4, chair_2.mp4) count as one recording, and every recording weighs
the same. Nothing is drawn at random: equal clips and decoders give equal constants. --skip leaves recordings out, so
that a result can be checked on clips that had no part in it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vsim_fast.encode.builtin import CHANNELS, DIM, LAYOUT, PATCH, WINDOW, cell_maps, patch_windows, region_weights
from vsim_fast.errors import DecodeError
from vsim_fast.ops import rgb_to_pixels
from vsim_fast.video import Sampling, open_video

SIZE = 224
RIDGE = 0.1
"""Added to the eigenvalues of the correlation matrix (mean 1): directions below it are noise and stay small."""


def recording(path: Path) -> str:
    return path.stem.split("_")[0]


def clip_windows(path: Path, frames: int) -> Tensor:
    """float32 [T, P, 480], windows of cell maps of `frames` frames spread over the clip."""
    parts = []
    with open_video(path, Sampling(rule="linspace", count=frames), output="rgb") as reader:
        for batch in reader:
            pixels = rgb_to_pixels(
                batch.rgb, size=(SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1),
                rotation=batch.info.rotation, mirrored=batch.info.mirrored, dtype=torch.float32,
            )  # fmt: skip
            parts.append(patch_windows(cell_maps(pixels)))
    return torch.cat(parts)


def moments(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [K] and second moment [K, K] in float64, each clip weighing the same."""
    rows = [clip.flatten(0, -2).double() for clip in clips]
    return sum(x.mean(0) for x in rows) / len(rows), sum(x.T @ x / len(x) for x in rows) / len(rows)


def pooled_moments(recordings: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean [K] and covariance [K, K], each recording weighing the same."""
    means, seconds = (torch.stack(x).mean(0) for x in zip(*map(moments, recordings), strict=True))
    return means, seconds - means[:, None] * means


def principal(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues and their vectors in columns; the sign makes each largest entry positive."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count]
    return values, vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def calibrate(recordings: list[list[Tensor]]) -> dict[str, Tensor]:
    """Constants of the encoder from windows [T, P, 480] of each recording's clips."""
    mean, covariance = pooled_moments(recordings)
    spread = covariance.diagonal().sqrt()
    values, vectors = principal(covariance / spread[:, None] / spread, DIM)
    weight = (vectors / (values + RIDGE).sqrt() / spread[:, None]).float()  # [480, 384]
    channel_mean = mean.view(CHANNELS, -1).mean(1).float()
    centre = mean.float() - channel_mean.repeat_interleave(WINDOW**2)
    weight = weight.half().float()  # as it is stored

    regions = region_weights((SIZE // PATCH, SIZE // PATCH))
    pooled = [[regions @ ((clip - mean.float()) @ weight) for clip in clips] for clips in recordings]
    cls_mean, cls_covariance = pooled_moments(pooled)
    values, vectors = principal(cls_covariance, DIM // LAYOUT**2)
    floor = RIDGE * cls_covariance.diagonal().mean()
    return {
        "channel_mean": channel_mean,
        "weight": weight.T.reshape(DIM, CHANNELS, WINDOW, WINDOW).half().contiguous(),
        "bias": -(centre @ weight),
        "cls_mean": cls_mean.float(),
        "cls_weight": (vectors / (values + floor).sqrt()).T.float().contiguous(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], metavar="NAME", help="first words of clip names to leave out")
    parser.add_argument("--frames", type=int, default=12, help="frames per clip (default 12)")
    options = parser.parse_args()
    recordings: dict[str, list[Tensor]] = defaultdict(list)
    for path in sorted(options.clips.iterdir()):
        if recording(path) in options.skip:
            continue
        try:
            windows = clip_windows(path, options.frames)
        except DecodeError as error:
            print(f"left out: {error}")
            continue
        recordings[recording(path)].append(windows)
    constants = calibrate(list(recordings.values()))
    source = f"{options.frames} frames of each clip of: {', '.join(recordings)}"
    save_file(constants, options.out, metadata={"source": source})  # one key: the order of several is not fixed
    print(f"{options.out}: {options.out.stat().st_size} bytes from {len(recordings)} recordings")


if __name__ == "__main__":
    main()

"""What the built-in encoder is worth: four claims, measured on real clips or on generated ones."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.encode.base import Encoder
from vsim_fast.encode.builtin import load_builtin
from vsim_fast.errors import UsageError
from vsim_fast.records import FrameFeatures, frames_in_memory

if TYPE_CHECKING:
    from rich.table import Table

CUTS = "rocket_engine_vp9_60fps.mkv"
COPIES = (
    ("flower.mp4", "flower.webm"),
    ("traffic_topview_msmpeg4v2.avi", "traffic_topview_mpeg4.avi"),
    ("carphone_qcif.mp4", "carphone_qcif_distorted.mp4"),
    ("face_h264.mp4", "face_av1.mp4"),
)
OTHER_RECORDINGS = (  # not the two chairs: they are one recording, the second from the first's frame 60 on
    ("highway_drive_a.mp4", "highway_drive_b.mp4"),
    ("sign_again.mkv", "sign_walk.mkv"),
    ("traffic_highway_mpeg4.avi", "traffic_topview_msmpeg4v2.avi"),
)
UNRELATED = (
    "flower.mp4", "traffic_topview_msmpeg4v2.avi", "carphone_qcif.mp4", "face_h264.mp4", "chair_rec22.mp4",
    "highway_drive_a.mp4", "sign_again.mkv", "traffic_highway_mpeg4.avi", "dog_walk_720p.mp4", "ball_juggle_24fps.mp4",
    "walk_path_gopro.mp4", "street_ride_hevc_portrait.mp4", "person_indoor_139s_10fps.mp4", "city_roofs_60fps.mp4",
    "bunny_anamorphic_vp9.mp4", "hangar_two_video_streams.mp4", "roadtrip_vp9_10bit.webm", CUTS,
)  # fmt: skip
MEASURES = ("CLS", "mean patch", "position")
COPY_KINDS = ("blurred, sigma 3", "noisy, sigma 15", "noisy, sigma 25", "shifted 8 px")
CUT_LEVEL = 12.0
"""Mean difference of two thumbnails, in grey levels, that makes a cut when its neighbours differ three times less."""


@dataclass(frozen=True)
class Row:
    """One claim about an encoder, measured."""

    claim: str
    values: dict[str, float]
    bound: str
    ok: bool


@dataclass(frozen=True)
class Material:
    """Frames to measure on, each array uint8 [T, H, W, 3]."""

    name: str
    cuts: list[np.ndarray]
    """Four consecutive frames each, a cut between the second and the third."""
    triplets: dict[str, np.ndarray]
    """First neighbour, true middle frame, second neighbour."""
    copies: list[tuple[np.ndarray, np.ndarray]]
    """A clip and a re-encoded copy, frame by frame."""
    other_recordings: list[tuple[np.ndarray, np.ndarray]]
    """Two recordings of the same scene."""
    unrelated: list[np.ndarray]
    cls_bound: float = 0.1
    """Largest mean |cos| of CLS tokens of unrelated clips."""


def check_builtin(media: Path | None = None, encoder: Encoder | None = None) -> list[Row]:
    """Measure what the built-in encoder claims.

    Args:
        media: folder with `videos/` and `vfi/` that hold the files named in this module; None generates clips.
        encoder: any encoder, to be held to the same bounds; None is the built-in one on the CPU.
    Returns:
        One row per claim. Cosines are of CLS tokens, of mean patch tokens, and of patches at the same position,
        averaged; distance is 1 - cosine.
    Raises:
        UsageError: `media` lacks a file.
    """
    encoder = load_builtin() if encoder is None else encoder
    material = generated_material() if media is None else real_material(Path(media))
    with torch.inference_mode():
        return [
            cut_row(encoder, material), *middle_frame_rows(encoder, material), copy_row(encoder, material),
            *unrelated_rows(encoder, material),
        ]  # fmt: skip


def render_rows(rows: list[Row]) -> Table:
    """The rows as a table for the terminal."""
    from rich.table import Table

    table = Table("claim", "measured", "bound", "")
    for row in rows:
        values = ", ".join(f"{name} {value:.3f}" for name, value in row.values.items())
        table.add_row(row.claim, values, row.bound, "yes" if row.ok else "NO")
    return table


# the four claims


def cut_row(encoder: Encoder, material: Material) -> Row:
    features = [encode(encoder, frames) for frames in material.cuts]
    pairs = torch.stack([likeness(f, f, [0, 1, 2], [1, 2, 3]) for f in features])  # [cuts, measures, 3]
    within, across = pairs[..., [0, 2]].amin((0, 2)), pairs[..., 1].amax(0)
    values = {f"{name} {side}": x for side, both in (("within", within), ("across", across)) for name, x in named(both)}
    return Row(
        f"neighbouring frames of a shot are more alike than frames across a cut ({len(features)} cuts)",
        values, "lowest within > highest across", bool((within > across).all()),
    )  # fmt: skip


def middle_frame_rows(encoder: Encoder, material: Material) -> Iterator[Row]:
    worst = torch.full((len(COPY_KINDS), len(MEASURES)), float("inf"))
    for first, middle, second in material.triplets.values():
        copies = [gaussian_blur(middle, 3.0), noisy(middle, 15.0), noisy(middle, 25.0)]
        copies += [shifted(middle, x, y) for x, y in ((8, 0), (-8, 0), (0, 8), (0, -8))]
        f = encode(encoder, np.stack([first, second, middle, *copies]))
        frames = list(range(2, 3 + len(copies)))
        near = [likeness(f, f, [side] * len(frames), frames) for side in (0, 1)]
        distance = 2 - near[0] - near[1]  # [measures, 1 + copies]
        ratio = (distance[:, 1:] / distance[:, :1]).T
        worst = worst.minimum(torch.cat([ratio[:3], ratio[3:].amin(0, keepdim=True)]))
    for kind, ratios in zip(COPY_KINDS, worst, strict=True):
        yield Row(
            f"the middle frame is nearer its neighbours than its copy, {kind} ({len(material.triplets)} triplets)",
            dict(named(ratios)), "lowest ratio of distances > 1", bool((ratios > 1).all()),
        )  # fmt: skip


def copy_row(encoder: Encoder, material: Material) -> Row:
    def alike(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        rows = []
        for a, b in pairs:
            count = range(min(len(a), len(b)))
            rows.append(likeness(encode(encoder, a), encode(encoder, b), count, count).mean(1))
        return torch.stack(rows)[:, [0, 2]]  # a mean patch, without layout, tells kinds of scene apart only

    lowest, highest = alike(material.copies).amin(0), alike(material.other_recordings).amax(0)
    names = (MEASURES[0], MEASURES[2])
    values = {f"{n} copies": x for n, x in zip(names, lowest.tolist(), strict=True)}
    values |= {f"{n} others": x for n, x in zip(names, highest.tolist(), strict=True)}
    return Row(
        f"re-encoded copies ({len(material.copies)}) are more alike than other recordings of a scene "
        f"({len(material.other_recordings)})",
        values, "lowest copy > highest other", bool((lowest > highest).all()),
    )  # fmt: skip


def unrelated_rows(encoder: Encoder, material: Material) -> Iterator[Row]:
    features = [encode(encoder, frames) for frames in material.unrelated]
    pick = torch.randperm(features[0].patches.shape[1], generator=torch.Generator().manual_seed(0))[:64]
    tokens = {
        "patches": [f.patches[:, pick].flatten(0, 1) for f in features],
        "CLS tokens": [pooled(f) for f in features],
    }
    for what, groups in tokens.items():
        bound = material.cls_bound if what == "CLS tokens" else 0.1
        cosines = torch.cat([
            (unit(a) @ unit(b).T).flatten() for i, a in enumerate(groups) for b in groups[:i]
        ])  # fmt: skip
        values = {
            "mean": cosines.mean().item(), "mean |cos|": cosines.abs().mean().item(), "std": cosines.std().item(),
            "p99": np.quantile(cosines.cpu().numpy(), 0.99).item(),
        }  # fmt: skip
        ok = values["mean |cos|"] <= bound
        yield Row(f"{what} of unrelated clips ({len(features)}) score near 0", values, f"mean |cos| <= {bound}", ok)


# measures


def encode(encoder: Encoder, frames: np.ndarray) -> FrameFeatures:
    """Features of uint8 frames [T, H, W, 3] in memory."""
    return encoder.encode(frames_in_memory(frames))


def likeness(a: FrameFeatures, b: FrameFeatures, i: list[int] | range, j: list[int] | range) -> Tensor:
    """Cosines of frames i of `a` with frames j of `b`: float32 [measures, len(i)] on the CPU, rows as MEASURES."""
    i, j = list(i), list(j)
    pairs = (pooled(a)[i], pooled(b)[j]), (a.patches[i].float().mean(1), b.patches[j].float().mean(1))
    position = F.cosine_similarity(a.patches[i].float(), b.patches[j].float(), dim=-1).mean(1)
    return torch.stack([F.cosine_similarity(x.float(), y.float(), dim=-1) for x, y in pairs] + [position]).cpu()


def pooled(features: FrameFeatures) -> Tensor:
    """[T, D] the CLS token, or the mean patch where there is none."""
    return features.patches.mean(1) if features.cls is None else features.cls


def unit(tokens: Tensor) -> Tensor:
    return F.normalize(tokens.float(), dim=-1)


def named(values: Tensor) -> list[tuple[str, float]]:
    return list(zip(MEASURES, values.tolist(), strict=True))


# copies of a frame, uint8 [H, W, 3]


def gaussian_blur(frame: np.ndarray, sigma: float) -> np.ndarray:
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    planes = torch.from_numpy(frame.copy()).permute(2, 0, 1)[:, None].float()
    planes = F.pad(planes, (radius,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes[:, 0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def noisy(frame: np.ndarray, sigma: float) -> np.ndarray:
    """White Gaussian noise, sigma in levels of 255."""
    return np.clip(frame + np.random.default_rng(0).normal(0, sigma, frame.shape), 0, 255).round().astype(np.uint8)


def shifted(frame: np.ndarray, right: int, down: int) -> np.ndarray:
    """Moved by whole pixels, edges repeated."""
    height, width = frame.shape[:2]
    margin = max(abs(right), abs(down))
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    return padded[margin - down :, margin - right :][:height, :width]


# real clips


def real_material(media: Path) -> Material:
    """Frames of the clips named above, from `media`/videos and `media`/vfi."""
    from PIL import Image

    names = {CUTS, *UNRELATED, *(name for pair in COPIES + OTHER_RECORDINGS for name in pair)}
    if missing := sorted(name for name in names if not (media / "videos" / name).is_file()):
        raise UsageError(f"media folder {media} must hold videos/{missing[0]} ({len(missing)} of {len(names)} missing)")
    triplets = {}
    for folder in sorted(p for p in (media / "vfi").glob("*") if p.is_dir()):
        images = [Image.open(folder / f"{name}.png").convert("RGB") for name in ("I0", "It", "I1")]
        triplets[folder.name] = np.stack([np.asarray(image) for image in images])
    clips = {name: spread_frames(media / "videos" / name, 8) for name in sorted(names)}
    return Material(
        name=str(media), cuts=cut_frames(media / "videos" / CUTS), triplets=triplets,
        copies=[(clips[a], clips[b]) for a, b in COPIES],
        other_recordings=[(clips[a], clips[b]) for a, b in OTHER_RECORDINGS],
        unrelated=[clips[name][[2, 5]] for name in UNRELATED],
    )  # fmt: skip


def spread_frames(path: Path, count: int) -> np.ndarray:
    from vsim_fast.video import Sampling, open_video

    with open_video(path, Sampling(rule="linspace", count=count), decoder="pyav", output="rgb") as reader:
        return np.concatenate([batch.rgb.numpy() for batch in reader])


def cut_frames(path: Path) -> list[np.ndarray]:
    """Two frames before and two after each hard cut in the first 25 s of a clip."""
    from vsim_fast.video import Sampling, open_video

    found: list[np.ndarray] = []
    recent: deque[tuple[np.ndarray, Tensor]] = deque(maxlen=4)
    with open_video(path, Sampling("all", end_seconds=25), decoder="pyav", output="rgb") as reader:
        for batch in reader:
            small = F.interpolate(batch.rgb[:, ::4, ::4].permute(0, 3, 1, 2).float(), (18, 32), mode="area")
            for frame, thumbnail in zip(batch.rgb.numpy(), small, strict=True):
                recent.append((frame, thumbnail))
                steps = [(a - b).abs().mean() for (_, a), (_, b) in pairwise(recent)]
                if len(steps) == 3 and steps[1] > max(CUT_LEVEL, 3 * steps[0], 3 * steps[2]):
                    found.append(np.stack([f for f, _ in recent]))
    return found


# generated clips


def generated_material() -> Material:
    """Six scenes of textured discs under a moving camera, with a moving disc in front; two takes of each."""
    scenes = [Scene(seed) for seed in range(6)]
    clips, retakes = ([np.stack([s.frame(t, take) for t in range(6)]) for s in scenes] for take in (0, 1))
    return Material(
        name="generated",
        cuts=[np.concatenate([a[-2:], b[:2]]) for a, b in pairwise(clips)],
        triplets={f"scene {seed}": clip[2:5] for seed, clip in enumerate(clips)},
        copies=[(clip, reencoded(clip)) for clip in clips],
        other_recordings=list(zip(clips, retakes, strict=True)),
        unrelated=[clip[[0, 5]] for clip in clips],
        cls_bound=0.2,  # one generator, one style
    )  # fmt: skip


class Scene:
    """Overlapping discs, sizes from a power law, each with its own colour and texture: edges and spectrum much like
    those of photographs; smooth light where there are none. A world of 360 × 480 pixels, the camera shows 180 × 240."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.speed = rng.uniform(-2.5, 2.5, (2, 2))  # camera (y, x) in both takes, pixels per frame
        self.disc_speed = rng.uniform(-4, 4, 2)
        self.palette = rng.uniform(60, 200) + rng.normal(0, 40, (6, 1)) + rng.normal(0, 25, (6, 3))
        self.ripple, self.grain = rng.uniform(5, 40), rng.uniform(0, 2)  # texture contrast, grey levels
        y, x = np.mgrid[-1:1:360j, -1:1:480j]
        light = np.tensordot(rng.uniform(-60, 60, 2), (y, x), 1)
        self.world = (self.palette[0] + light[..., None]).astype(np.float32)
        middle, extent = rng.uniform((60, 80), (300, 400)), rng.uniform(40, 200, 2)  # where the discs lie
        for radius in np.sort(rng.uniform(4, 12) / rng.uniform(0.06, 1, 200))[::-1]:
            self._paint(self.world, rng, rng.normal(middle, extent).clip((0, 0), (360, 480)), radius)

    def _paint(self, image: np.ndarray, rng: np.random.Generator, centre: np.ndarray, radius: float) -> None:
        low = np.maximum(0, (centre - radius).astype(int))
        high = np.minimum(image.shape[:2], (centre + radius).astype(int) + 2)
        y, x = np.mgrid[low[0] : high[0], low[1] : high[1]].astype(np.float32)
        inside = np.clip(radius - np.hypot(y - centre[0], x - centre[1]) + 0.5, 0, 1)[..., None]
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period) + rng.uniform(0, 6))
        texture = rng.uniform(0, self.ripple) * wave + rng.normal(0, self.grain, x.shape)
        colour = self.palette[rng.integers(len(self.palette))] + rng.normal(0, 15, 3)
        part = image[low[0] : high[0], low[1] : high[1]]
        part += inside * (colour + texture[..., None] - part)

    def frame(self, t: int, take: int = 0) -> np.ndarray:
        """uint8 [180, 240, 3] at frame t. The second take stands elsewhere, moves otherwise, as does its front disc."""
        top, left = np.rint((90, 120) + take * np.array((45, -60)) + self.speed[take] * t).astype(int)
        image = self.world[top : top + 180, left : left + 240].copy()
        centre = (90, 120) + take * np.array((-40, 50)) + self.disc_speed * t
        self._paint(image, np.random.default_rng(7), centre, 30.0)
        return np.clip(image, 0, 255).round().astype(np.uint8)


def reencoded(frames: np.ndarray) -> np.ndarray:
    """Frames after MPEG-4 at a low bit rate, encoded and decoded in memory."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 600_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

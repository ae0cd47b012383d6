"""Do the metrics see what they should? Frames made worse step by step, and how well each metric ranks the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from vsim_fast import __version__
from vsim_fast.errors import CorruptVideo, OpenError, UsageError, VsimError
from vsim_fast.image_quality import gaussian_average
from vsim_fast.records import IMAGE_SUFFIXES, Progress
from vsim_fast.video import Sampling, open_video, probe, read_image

DISTORTIONS = {  # kind -> five strengths, rising
    "blur": (0.5, 1, 2, 3, 4),
    "noise": (5, 10, 20, 30, 40),
    "shift": (1, 2, 4, 8, 16),
    "ghost": (0.2, 0.4, 0.6, 0.8, 1),
    "tear": (0.1, 0.2, 0.3, 0.4, 0.5),
    "block_loss": (0.01, 0.02, 0.05, 0.1, 0.2),
    "darken": (0.05, 0.1, 0.2, 0.3, 0.4),
}
STRENGTHS = {  # kind -> what its strengths are
    "blur": "sigma of a Gaussian, pixels",
    "noise": "standard deviation of Gaussian noise, of 255 levels",
    "shift": "pixels to the right",
    "ghost": "share of the blend that is the mean of both neighbours",
    "tear": "share of the rows, at the bottom, that are of the frame before",
    "block_loss": "share of 16x16 blocks that show the block to their left",
    "darken": "share of the light lost: of every level, as stored",
}
FALLING = frozenset({"psnr", "ssim", "cosine_similarity"})
"""Metrics that fall as a frame gets worse."""
UNBOUNDED = frozenset({"psnr"})
"""Metrics without a bound: None stands for infinity, which JSON lacks."""
BLOCK = 16
SEED = 0  # of the noise and of the order in which blocks are lost
NAMED = ("i0", "it", "i1")
"""Names, in lower case and without suffix, of a triple's images that are not in the order of time: I1 is after It."""


class Triple(NamedTuple):
    """A frame and its neighbours in time, uint8 [H, W, 3] each."""

    name: str
    before: np.ndarray
    frame: np.ndarray
    after: np.ndarray


class Unreadable(NamedTuple):
    """A frame that could not be read with both its neighbours."""

    name: str
    error: VsimError


Measure = Callable[[np.ndarray, list[np.ndarray]], Sequence[Mapping[str, float | None]]]
"""From a frame and its distorted copies, uint8 [H, W, 3], to every metric of each copy. None: infinity where the metric
is of `UNBOUNDED`; else a metric that this frame does not have, such as the SSIM of a very small one."""


class RankCorrelation(BaseModel):
    """Spearman's correlation of a metric with the strength, signed so that 1 means: worse at every step."""

    model_config = ConfigDict(frozen=True)
    frames: int
    """How many have the metric."""
    mean: float
    """Over the frames that have the metric, of each frame's own."""
    least: float
    least_frame: str
    pooled: float
    """Of all frames' values at once: whether the metric's levels mean the same on different pictures."""
    medians: list[float | None]
    """The metric at each strength, median over the frames; None where that is not finite."""


class Ladder(BaseModel):
    """One distortion at rising strengths."""

    model_config = ConfigDict(frozen=True)
    distortion: str
    strength: str
    """What the strengths are."""
    strengths: list[float]
    frames: int
    """How many were ranked."""
    left_out: list[str]
    """Frames that even the greatest strength leaves as they are, such as the ghost of a scene at rest."""
    metrics: dict[str, RankCorrelation]
    """Those that any frame has; empty where every frame was left out."""


class Skipped(BaseModel):
    """A frame that was not distorted."""

    model_config = ConfigDict(frozen=True)
    name: str
    reason: str


class LadderStudy(BaseModel):
    """What `ladder_study` found."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = 1
    vsim_fast: str = __version__
    frames: list[str]
    """Those that were distorted."""
    skipped: list[Skipped]
    """Those that could not be read."""
    ladders: list[Ladder]


def distort(kind: str, strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`frame` made worse; the same for the same arguments.

    Args:
        kind: one of `DISTORTIONS`.  strength: see `STRENGTHS`; any, not only those of the ladder.
        frame, before, after: uint8 [H, W, 3], the frame and its neighbours in time.
    Returns:
        uint8 [H, W, 3], a new array.
    Raises:
        ValueError: an unknown kind, or arrays that are not three pictures of one size.
    """
    if kind not in _MAKE:
        raise ValueError(f"kind must be one of {', '.join(_MAKE)}, got {kind!r}")
    for picture in (frame, before, after):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.shape != frame.shape:
            raise ValueError(
                "frame, before and after must be uint8 [H, W, 3] of one size, got "
                + ", ".join(f"{p.dtype} {p.shape}" for p in (frame, before, after))
            )
    return _MAKE[kind](strength, frame, before, after)


def _blur(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    radius = math.ceil(4 * strength)
    blurred = torch.from_numpy(np.pad(frame, ((radius, radius), (radius, radius), (0, 0)), mode="edge")).float()
    for dim in (0, 1):
        blurred = gaussian_average(blurred, dim, strength, radius)
    return _levels(blurred.numpy())


def _noise(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(SEED).standard_normal(frame.shape, dtype=np.float32)
    return _levels(frame + np.float32(strength) * noise)


def _shift(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The column that comes in repeats the edge."""
    return frame[:, np.maximum(np.arange(frame.shape[1]) - round(strength), 0)]


def _ghost(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    neighbours = (before.astype(np.float32) + after) / 2
    return _levels(frame + np.float32(strength) * (neighbours - frame))


def _tear(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    line = len(frame) - round(strength * len(frame))
    return np.concatenate((frame[:line], before[line:]))


def _block_loss(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A stronger loss is a weaker one and more blocks."""
    height, width = frame.shape[:2]
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    turn = np.random.default_rng(SEED).permutation(rows * columns).reshape(rows, columns)
    lost = turn < max(1, round(strength * turn.size))
    lost = lost.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]
    return np.where(lost[..., None], np.roll(frame, BLOCK, axis=1), frame)


def _darken(strength: float, frame: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The other ladders leave the light of the whole as it is."""
    return _levels(np.float32(1 - strength) * frame)


def _levels(picture: np.ndarray) -> np.ndarray:
    return picture.round().clip(0, 255).astype(np.uint8)


_MAKE = {
    "blur": _blur, "noise": _noise, "shift": _shift, "ghost": _ghost, "tear": _tear, "block_loss": _block_loss,
    "darken": _darken,
}  # fmt: skip


def ladder_study(
    frames: Sequence[Triple | Unreadable] | Triples, measure: Measure, progress: Progress | None = None
) -> LadderStudy:
    """Distort every frame in every way at five strengths, and rank what each metric says.

    Args:
        frames: each is taken once.
        measure: called with a frame and the five copies of one ladder, once for every kind, with the same array.
        progress: told of "ladders".
    Raises:
        UsageError: no frames.  The error of the first: none can be read.
        ValueError: a triple whose pictures differ in size; a metric that is NaN.
    """
    found: dict[str, list[tuple[str, dict[str, list[float]]]]] = {kind: [] for kind in DISTORTIONS}
    left_out: dict[str, list[str]] = {kind: [] for kind in DISTORTIONS}
    names: list[str] = []
    skipped: list[Skipped] = []
    first_error = None
    for number, triple in enumerate(frames):
        if isinstance(triple, Unreadable):
            skipped.append(Skipped(name=triple.name, reason=str(triple.error)))
            first_error = first_error or triple.error
            continue
        names.append(triple.name)
        for done, (kind, strengths) in enumerate(DISTORTIONS.items(), number * len(DISTORTIONS) + 1):
            copies = [distort(kind, strength, triple.frame, triple.before, triple.after) for strength in strengths]
            if np.array_equal(copies[-1], triple.frame):
                left_out[kind].append(triple.name)
            else:
                found[kind].append((triple.name, _columns(f"{triple.name}, {kind}", measure(triple.frame, copies))))
            if progress:
                progress.advance("ladders", done, len(frames) * len(DISTORTIONS))
    if not names:
        raise first_error or UsageError("the ladders need at least one frame with both its neighbours, got none")
    ladders = [
        Ladder(
            distortion=kind,
            strength=STRENGTHS[kind],
            strengths=list(strengths),
            frames=len(found[kind]),
            left_out=left_out[kind],
            metrics=_correlations(found[kind], strengths),
        )
        for kind, strengths in DISTORTIONS.items()
    ]
    return LadderStudy(frames=names, skipped=skipped, ladders=ladders)


def _columns(where: str, rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """Metric -> its value at each strength; without the metrics that this frame does not have."""
    columns = {}
    for name in rows[0]:
        values = [math.inf if row[name] is None and name in UNBOUNDED else row[name] for row in rows]
        if None in values:
            continue
        if any(map(math.isnan, values)):
            raise ValueError(f"{where}: {name} must be a number, got {values}")
        columns[name] = values
    return columns


def _correlations(
    found: list[tuple[str, dict[str, list[float]]]], strengths: Sequence[float]
) -> dict[str, RankCorrelation]:
    correlations = {}
    for metric in dict.fromkeys(name for _, columns in found for name in columns):
        frames = [frame for frame, columns in found if metric in columns]
        values = np.array([columns[metric] for _, columns in found if metric in columns])  # [frames, strengths]
        worse = -values if metric in FALLING else values
        own = [spearman(strengths, row) for row in worse]
        least = int(np.argmin(own))
        correlations[metric] = RankCorrelation(
            frames=len(frames),
            mean=float(np.mean(own)),
            least=own[least],
            least_frame=frames[least],
            pooled=spearman(np.tile(strengths, len(frames)), worse.ravel()),
            medians=[value if math.isfinite(value) else None for value in np.median(values, axis=0).tolist()],
        )
    return correlations


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation of two lists of one length; equal values share the mean of their ranks.

    0 where all values of a list are equal: they rank nothing.
    """
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[inverse] - (len(values) + 1) / 2)
    a, b = ranks
    spread = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


Pictures = Sequence[np.ndarray]
"""The three of a `Triple`."""


class Triples:
    """Frames with their neighbours, read one after the other as they are iterated; a bad one comes as `Unreadable`."""

    def __init__(self, readers: Sequence[tuple[str, Callable[[], Pictures]]]):
        self._readers = readers

    def __len__(self) -> int:
        return len(self._readers)

    def __iter__(self) -> Iterator[Triple | Unreadable]:
        for name, read in self._readers:
            try:
                triple: Triple | Unreadable = Triple(name, *read())
            except VsimError as error:
                triple = Unreadable(name, error)
            yield triple


def read_triples(path: str | Path, count: int = 8) -> Triples:
    """Frames with both neighbours, for `ladder_study`.

    Args:
        path: a video; a folder of consecutive frames, in natural order of their names; a folder that holds I0, It and
            I1; or a folder of such folders, of which each gives one frame: It, or the middle one.
        count: how many at most, evenly spread.
    Raises:
        DecodeError: as `probe`.  UsageError: fewer than three frames, or `count` below 1.
        Of a folder of folders, each is looked into when it is its turn: a bad one is `Unreadable`.
    """
    path = Path(path)
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")
    if not path.is_dir() or (_images(path) and not _named(path)):
        return Triples(_readers_of_video(path, count))
    folders = [path] if _named(path) else sorted(f for f in _inside(path) if f.is_dir() and _images(f))
    if not folders:
        raise OpenError(path, "the folder holds neither images nor folders of images")
    return Triples([(folders[i].name, partial(_read_folder, folders[i])) for i in _spread(len(folders), count)])


def _spread(total: int, count: int) -> list[int]:
    """Middles of `count` equal parts of `total`; all where there are not more."""
    count = min(total, count)
    return ((np.arange(count) + 0.5) * total / count).astype(int).tolist()


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise OpenError(folder, error.strerror or str(error)) from None


def _images(folder: Path) -> list[Path]:
    return [path for path in _inside(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _named(folder: Path) -> list[Path]:
    """I0, It and I1 of a folder; empty where it does not hold all of them."""
    by_name = {path.stem.lower(): path for path in _images(folder)}
    return [by_name[name] for name in NAMED] if by_name.keys() >= set(NAMED) else []


def _read_folder(folder: Path) -> Pictures:
    if not (named := _named(folder)):
        ((_, read),) = _readers_of_video(folder, 1)
        return read()
    pictures = [read_image(path) for path in named]
    if len({picture.shape for picture in pictures}) > 1:
        sizes = ", ".join(f"{p.name} {a.shape[1]}x{a.shape[0]}" for p, a in zip(named, pictures, strict=True))
        raise UsageError(f"{folder}: the images of a triple must have one size, got {sizes}")
    return pictures


def _readers_of_video(path: Path, count: int) -> list[tuple[str, Callable[[], Pictures]]]:
    """Of a video or a folder of its frames; each reader seeks to its own three frames."""
    frames = len(probe(path).pts)
    if frames < 3:
        raise UsageError(f"{path}: a frame with both neighbours needs at least 3 frames, got {frames}")
    middles = [before + 1 for before in _spread(frames - 2, count)]
    return [(f"{path.name}, frame {middle}", partial(_read_video, path, middle)) for middle in middles]


def _read_video(path: Path, middle: int) -> Pictures:
    seconds = probe(path).pts_seconds
    # Borders half-way to the frames beyond, so that rounding takes no other frame.
    edges = np.concatenate(([seconds[0]], (seconds[1:] + seconds[:-1]) / 2, [np.inf])) - seconds[0]
    end = None if middle + 2 == len(seconds) else float(edges[middle + 2])
    window = Sampling("all", start_seconds=float(edges[middle - 1]), end_seconds=end)
    with open_video(path, window, output="rgb", on_error="raise", batch_size=3) as reader:
        pictures = [np.rot90(picture, reader.info.rotation // 90) for batch in reader for picture in batch.rgb.numpy()]
    if len(pictures) != 3:
        raise CorruptVideo(path, f"frame {middle} and its neighbours must be 3 frames, {len(pictures)} decode")
    if reader.info.mirrored:
        pictures = [picture[:, ::-1] for picture in pictures]
    return list(map(np.ascontiguousarray, pictures))

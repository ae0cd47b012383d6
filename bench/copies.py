"""A synthetic set of edited copies of real clips, to measure what `vsim dedup` tells apart.

    python bench/copies.py build MEDIA --cache DIR [--tiny]

`build` writes DIR/refs, DIR/queries and DIR/probes (H.264, no sound, at most 360 lines), DIR/truth.csv in the columns
of the video similarity challenge plus base, family and severity, and DIR/manifest.json. Files that are there are kept.
All draws are seeded by the name of what they are for.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RATE = 25
LINES = 360
"""Most pixels of the shorter side."""
BASE_SECONDS = 5
Clip = list[np.ndarray]
"""Frames at RATE per second, uint8 yuv420p as PyAV lays it out: [H * 3 / 2, W], H and W even."""


@dataclass(frozen=True)
class Source:
    """A stretch of a recording: a file of the media folder, "sprites:SEED", "card:SEED" or "lavfi:FILTER"."""

    recording: str
    start: float = 0
    seconds: float = BASE_SECONDS


@dataclass(frozen=True)
class Base:
    """A reference, and where other parts of its recording begin: nothing of them is within 4 s of the reference."""

    source: Source
    others: tuple[float, ...] = ()


BASES = {  # even places tune, odd ones are held out; motion in all
    "dog_walk_720p": Base(Source("dog_walk_720p.mp4")),
    "ball_juggle_24fps": Base(Source("ball_juggle_24fps.mp4")),
    "highway_drive_a": Base(Source("highway_drive_a.mp4")),
    "walk_path_gopro": Base(Source("walk_path_gopro.mp4")),
    "street_ride_hevc_portrait": Base(Source("street_ride_hevc_portrait.mp4")),
    "chair_rec22": Base(Source("chair_rec22.mp4"), (9, 13, 17)),
    "traffic_highway_mpeg4": Base(Source("traffic_highway_mpeg4.avi"), (9, 14, 19, 24)),
    "city_roofs_60fps": Base(Source("city_roofs_60fps.mp4"), (9, 12)),
    "roof_view_av1_hdr10_portrait": Base(Source("roof_view_av1_hdr10_portrait.mp4")),
    "rocket_engine_vp9_60fps": Base(Source("rocket_engine_vp9_60fps.mkv", 8.8), (18, 22.5, 27, 31.5, 36)),
    "bunny_intro_vp8_30s": Base(Source("bunny_intro_vp8_30s.webm", 5.2), (14.5, 19, 23.5)),
    "traffic_topview_msmpeg4v2": Base(Source("traffic_topview_msmpeg4v2.avi", 7), (0,)),
    "hangar_two_video_streams": Base(Source("hangar_two_video_streams.mp4", 5)),
    "box_rotated_90": Base(Source("box_rotated_90.mov")),
    "sprites_1": Base(Source("sprites:1"), (9, 13, 17, 21)),
    "sprites_2": Base(Source("sprites:2"), (9, 13, 17, 21)),
}
OTHER_SECONDS = 3.4

PERSON = "person_indoor_139s_10fps.mp4"
PIECES = (  # one per recording, none of a base: what probes share nothing by
    Source("flower.mp4", 1), Source("watch_face_518x488.mp4", 0), Source("carphone_qcif.mp4"), Source(PERSON, 12),
    Source("roadtrip_vp9_10bit.webm"), Source("sign_walk.mkv"), Source("lavfi:mandelbrot=s=480x360:rate=25"),
    Source("room_vfr_rot180.mp4"),
)  # fmt: skip
HOSTS = (  # footage of no base, at least 9 s: what copies are set into
    (Source(PERSON, 8, 10),),
    (Source(PERSON, 48, 10),),
    (Source("sign_again.mkv", 0, 2.5), Source("carphone_qcif.mp4", 0, 4), Source("sign_walk.mkv", 0, 2.9)),
    (Source("watch_face_518x488.mp4", 0.5, 5), Source("flower.mp4", 0, 5)),
    (Source("lavfi:mandelbrot=s=480x360:rate=25", 0, 10),),
    (Source(PERSON, 104, 10),),
)
UNRELATED = (
    *(Source(name) for name in (
        "flower.mp4", "watch_face_518x488.mp4", "sign_again.mkv", "sign_walk.mkv", "carphone_qcif.mp4",
        "face_h264.mp4", "room_vfr_rot180.mp4", "roadtrip_vp9_10bit.webm", "skyline_vfr_slowmo.mp4",
        "highway_drive_b.mp4", "letters_interlaced.mp4",
    )),
    *(Source(PERSON, start) for start in (20, 32, 44, 62, 76, 90, 120, 132)),
    *(Source(f"lavfi:{filter}") for filter in (
        "mandelbrot=s=480x360:rate=25", "mandelbrot=s=640x360:rate=25:start_x=-1.25066:start_y=0.02012",
        "life=s=160x120:rate=25:mold=10:seed=3:ratio=.3", "life=s=480x360:rate=25:seed=5:ratio=.12",
        "cellauto=s=320x240:rate=25:rule=110:seed=7", "cellauto=s=480x360:rate=25:rule=30:seed=8",
        "gradients=s=640x360:rate=25:seed=9:speed=.05", "gradients=s=480x360:rate=25:seed=10:n=6:type=spiral",
        "sierpinski=s=640x360:rate=25:seed=11", "sierpinski=s=480x360:rate=25:type=triangle:seed=12",
        "testsrc2=s=640x360:rate=25", "rgbtestsrc=s=320x240:rate=25",
    )),
    *(Source(f"sprites:{seed}") for seed in (11, 12, 13, 14)),
    *(Source(f"card:{seed}") for seed in (1, 2, 3, 4)),
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One way of making a copy; the fields are applied in their order."""

    keep: float = 1
    """Share of the clip's time that is kept."""
    chain: str = "null"
    """Filters of FFmpeg joined by commas; {u} and {v} are draws from 0..1, {seed} one of an integer."""
    cover: str = ""
    """"logo": 6 % of the picture's area; "box": 30 % and a band of text."""
    inset: float = 0
    """Side of the picture over the side of the unrelated one it is set into."""
    insert: float = 0
    """Share of the result's time that is the copy; the rest is unrelated, before and after."""
    rate: int = RATE
    crf: int = 23
    speed: float = 1
    """What `chain` does to time."""


def _crop(side: float) -> str:
    return f"crop=iw*{side}:ih*{side}:(iw-ow)*{{u}}:(ih-oh)*{{v}}"


def _turn(degrees: float) -> str:
    return f"rotate={degrees}*PI/180:ow=rotw({degrees}*PI/180):oh=roth({degrees}*PI/180)"


def _light(contrast: float, brightness: float, saturation: float) -> str:
    return f"lutyuv=y=(val-128)*{contrast}+128+255*{brightness},hue=s={saturation}"


EDITS = {  # family: (mild, hard)
    "crop": (Edit(chain=_crop(0.85)), Edit(chain=_crop(0.5))),
    "flip": (Edit(chain="hflip"), Edit(chain="vflip")),
    "pad": (
        Edit(chain="pad=iw:ih*1.24:0:(oh-ih)/2:black"),
        Edit(chain="pad=iw*1.5:ih*1.5:(ow-iw)/2:(oh-ih)/2:{colour}"),
    ),
    "rotate": (Edit(chain=_turn(10)), Edit(chain="transpose=clock")),
    "reencode": (Edit(chain="scale=iw*.6:ih*.6", crf=30), Edit(chain="scale=-2:144", crf=40)),
    "colour": (Edit(chain="hue=s=0"), Edit(chain="hue=h=60:s=1.3,curves=vintage")),
    "light": (Edit(chain=_light(1.3, 0.15, 1.5)), Edit(chain=_light(2, 0.4, 2.5))),
    "blur": (Edit(chain="gblur=2"), Edit(chain="gblur=8")),
    "noise": (
        Edit(chain="noise=alls=15:allf=t+u:all_seed={seed}"),
        Edit(chain="noise=alls=50:allf=t+u:all_seed={seed}"),
    ),
    "fps": (Edit(chain="fps=15", rate=15), Edit(chain="fps=5", rate=5)),
    "mix": (
        Edit(chain=f"hflip,{_crop(0.85)}"),
        Edit(chain=f"hflip,{_crop(0.7)},{_light(1.4, 0, 1)},noise=alls=20:allf=t+u:all_seed={{seed}}", crf=36),
    ),
    "overlay": (Edit(cover="logo"), Edit(cover="box")),
    "pip": (Edit(inset=0.7), Edit(inset=0.4)),
    "speed": (Edit(chain="setpts=PTS/1.25,fps=25", speed=1.25), Edit(chain="setpts=PTS/2,fps=25", speed=2)),
    "slow": (Edit(chain="setpts=PTS/.8,fps=25", speed=0.8), Edit(chain="setpts=PTS/.5,fps=25", speed=0.5)),
    "trim": (Edit(keep=0.8), Edit(keep=0.3)),
    "insert": (Edit(insert=0.5), Edit(keep=0.6, insert=0.25)),
}
TINY = ("crop", "flip", "pad", "rotate", "colour", "pip", "speed", "insert")
SEVERITIES = ("mild", "hard")


# Clips: reading, filtering, drawing, writing


def drawn(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def filtered(chain: str, frames: Iterable[av.VideoFrame] = (), stream=None, count: int | None = None) -> Clip:
    """What comes out of a chain of filters, as yuv420p of even size; without `frames` the chain begins with a source."""
    graph = av.filter.Graph()
    frames = iter(frames)
    nodes = []
    if stream is not None:
        nodes = [graph.add_buffer(template=stream, time_base=stream.time_base)]
    elif (first := next(frames, None)) is not None:
        tick = Fraction(1, RATE)
        nodes = [graph.add_buffer(width=first.width, height=first.height, format="yuv420p", time_base=tick)]
        frames = (first, *frames)
    for part in f"{chain},format=yuv420p,crop=trunc(iw/2)*2:trunc(ih/2)*2".split(","):
        name, _, options = part.partition("=")
        nodes.append(graph.add(name, options or None))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()

    def pulled() -> Iterator[np.ndarray]:
        while True:
            try:
                yield graph.vpull().to_ndarray()
            except (av.BlockingIOError, av.EOFError):
                return

    clip: Clip = []
    for frame in (*frames, None) if stream is None else frames:
        if frame is not None or nodes[0].filter.name == "buffer":
            graph.vpush(frame)
        for array in pulled():
            clip.append(array)
            if len(clip) == count:
                return clip
    return clip


def as_frames(clip: Clip) -> Iterator[av.VideoFrame]:
    for k, array in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
        frame.pts, frame.time_base = k, Fraction(1, RATE)
        yield frame


def fitted(width: int, height: int) -> str:
    """Scaling to at most LINES lines, square pixels."""
    scale = min(1, LINES / min(width, height))
    return f"scale={round(width * scale / 2) * 2}:{round(height * scale / 2) * 2}:flags=area:out_range=tv,setsar=1"


def read(path: Path, start: float, seconds: float) -> Clip:
    """As displayed: turned, square pixels, RATE frames per second from the first frame on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = container.decode(stream)
        first = next(frames)
        turns = {0: "null", 90: "transpose=cclock", 180: "hflip,vflip", 270: "transpose=clock"}
        turned = first.rotation % 360
        width = round(first.width * (stream.sample_aspect_ratio or 1))
        size = (first.height, width) if turned % 180 else (width, first.height)
        chain = f"setpts=PTS-STARTPTS,fps={RATE},{turns[turned]},{fitted(*size)}"

        def all_frames() -> Iterator[av.VideoFrame | None]:
            yield first
            yield from frames
            yield None

        return filtered(chain, all_frames(), stream, round((start + seconds) * RATE))[round(start * RATE) :]


def yuv(picture: Image.Image) -> np.ndarray:
    return av.VideoFrame.from_image(picture).reformat(format="yuv420p").to_ndarray()


def sprites(seed: int, start: float, seconds: float, width: int = 480, height: int = 360) -> Clip:
    """Shapes on curved paths, which never come back, over a drifting texture of several scales."""
    random = drawn(f"sprites {seed}")
    field = np.zeros((2 * height, 3 * width, 3))
    for cells in (6, 18, 54, 160):
        patch = Image.fromarray(random.integers(0, 256, (cells, cells * 2, 3), np.uint8))
        field += np.asarray(patch.resize((3 * width, 2 * height), Image.BICUBIC), float) / cells**0.35
    field -= field.min((0, 1))
    ground = Image.fromarray((field / field.max((0, 1)) * 230).astype(np.uint8))
    shapes = []
    for _ in range(7):
        sides, size = random.integers(3, 8), random.uniform(0.06, 0.16) * width
        shapes.append(dict(
            corners=size * random.uniform(0.5, 1, (sides, 1)) * np.stack((np.cos(a := np.sort(random.uniform(0, 2 * np.pi, sides))), np.sin(a)), 1),
            colour=tuple(random.integers(0, 256, 3).tolist()), middle=random.uniform(0.2, 0.8, 2),
            swing=random.uniform(0.15, 0.4, 2), pace=random.uniform(0.25, 0.9, 2), phase=random.uniform(0, 6.3, 2),
        ))  # fmt: skip
    drift = random.uniform(4, 12, 2)
    clip = []
    for k in range(round(start * RATE), round((start + seconds) * RATE)):
        t = k / RATE
        x, y = (drift * t * (1, 0.5)).round().astype(int)
        picture = ground.crop((x, y, x + width, y + height))
        draw = ImageDraw.Draw(picture)
        for s in shapes:
            at = (s["middle"] + s["swing"] * np.sin(s["pace"] * (1 + 0.03 * t) * t + s["phase"])) * (width, height)
            draw.polygon([tuple(p) for p in (at + s["corners"]).tolist()], fill=s["colour"], outline=(20, 20, 20))
        clip.append(yuv(picture))
    return clip


def lettered(width: int, height: int, text: str, ground: tuple, ink: tuple) -> Image.Image:
    picture = Image.new("RGB", (width, height), ground)
    font = ImageFont.load_default(size=max(8, min(height * 0.6, 1.6 * width / max(1, len(text)))))
    ImageDraw.Draw(picture).text((width / 2, height / 2), text, ink, font, anchor="mm")
    return picture


def card(seed: int, seconds: float) -> Clip:
    """Text that changes every second."""
    random = drawn(f"card {seed}")
    ground, ink = (tuple(random.integers(low, low + 90, 3).tolist()) for low in (10, 165))
    texts = ["".join(random.choice(list("ABCDEFGHIJKLMNOPRSTUVWXYZ  "), 14)) for _ in range(int(seconds))]
    return [yuv(lettered(480, 270, text, ground, ink)) for text in texts for _ in range(RATE)]


def load(media: Path, *sources: Source) -> Clip:
    """Sources one after the other, each scaled to the first one's size."""
    clip: Clip = []
    for source in sources:
        kind, _, rest = source.recording.partition(":")
        if kind == "lavfi":
            frames = filtered(rest, count=round((source.start + source.seconds) * RATE))
            frames = frames[round(source.start * RATE) :]
        elif kind == "sprites":
            frames = sprites(int(rest), source.start, source.seconds)
        elif kind == "card":
            frames = card(int(rest), source.seconds)
        else:
            frames = read(media / "videos" / source.recording, source.start, source.seconds)
        clip += resized(frames, *size(clip)) if clip else frames
    return clip


def size(clip: Clip) -> tuple[int, int]:
    """Width and height."""
    return clip[0].shape[1], clip[0].shape[0] * 2 // 3


def resized(clip: Clip, width: int, height: int) -> Clip:
    return filtered(f"scale={width}:{height}:flags=area,setsar=1", as_frames(clip))


def looped(clip: Clip, count: int) -> Clip:
    return [clip[k % len(clip)] for k in range(count)]


def planes(frame: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views of Y, U and V."""
    width, height = frame.shape[1], frame.shape[0] * 2 // 3
    flat, n = frame.reshape(-1), width * height
    u, v = flat[n : n * 5 // 4], flat[n * 5 // 4 :]
    return flat[:n].reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)


def pasted(ground: np.ndarray, patch: np.ndarray, x: int, y: int) -> np.ndarray:
    """`patch` over `ground` with its left upper corner at even (x, y)."""
    result = ground.copy()
    for k, (to, part) in enumerate(zip(planes(result), planes(patch), strict=True)):
        a, b = (y // 2, x // 2) if k else (y, x)
        to[a : a + part.shape[0], b : b + part.shape[1]] = part
    return result


def even(value: float) -> int:
    return round(value / 2) * 2


def covered(clip: Clip, kind: str, random: np.random.Generator) -> Clip:
    width, height = size(clip)
    area, text = {"logo": (0.06, "vs"), "box": (0.3, "")}[kind]
    w, h = even(width * area**0.5), even(height * area**0.5)
    ground, ink = (tuple(random.integers(low, low + 120, 3).tolist()) for low in (0, 130))
    right, low = random.uniform(0, 1, 2).round() if kind == "logo" else random.uniform(0, 1, 2)
    patches = [(yuv(lettered(w, h, text, ground, ink)), even((width - w) * right), even((height - h) * low))]
    if kind == "box":
        band = even(height * 0.12)
        patches.append((yuv(lettered(width, band, "WHEN YOU SEE IT AGAIN", (0, 0, 0), (255, 255, 255))), 0, 0))
    for patch, x, y in patches:
        clip = [pasted(frame, patch, x, y) for frame in clip]
    return clip


def write(path: Path, clip: Clip, *, rate: int = RATE, crf: int = 23) -> None:
    """H.264 in one thread, so that the same frames give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with av.open(str(partial), "w", format="mp4") as out:
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream = out.add_stream("libx264", rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = size(clip), "yuv420p"
        for k, array in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(array, format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    partial.rename(path)


# The set


def edited(clip: Clip, edit: Edit, host: Callable[[], Clip], name: str) -> tuple[Clip, list[float]]:
    """The copy, and the seconds [query start, end, ref start, end] that it shares with `clip`."""
    random = drawn(name)
    first = int((1 - edit.keep) * len(clip) * random.uniform())
    clip = clip[first : first + round(edit.keep * len(clip))]
    start, end = first / RATE, (first + len(clip)) / RATE
    u, v = random.uniform(0, 1, 2).round(3)
    colour = random.choice(["white", "navy", "gray", "maroon"])
    chain = edit.chain.format(u=u, v=v, seed=random.integers(1 << 30), colour=colour)
    result = filtered(chain, as_frames(clip)) if chain != "null" else clip
    if edit.cover:
        result = covered(result, edit.cover, random)
    if edit.inset:
        width, height = size(result)
        small = resized(result, w := even(width * edit.inset), h := even(height * edit.inset))
        x, y = even((width - w) * u), even((height - h) * v)
        ground = resized(looped(host(), len(result)), width, height)
        result = [pasted(a, b, x, y) for a, b in zip(ground, small, strict=True)]
    before = 0
    if edit.insert:
        around = resized(looped(host(), round(len(result) * (1 / edit.insert - 1))), *size(result))
        before = round(len(around) * random.uniform(0.2, 0.8))
        result = around[:before] + result + around[before:]
        return result, [before / RATE, (before + len(clip)) / RATE, start, end]
    return result, [0, len(result) / edit.rate, start, min(end, start + len(result) / edit.rate * edit.speed)]


def shuffled(clip: Clip, name: str) -> Clip:
    """Four segments in an order that keeps no two neighbours."""
    order = ((2, 0, 3, 1), (1, 3, 0, 2))[drawn(name).integers(2)]
    bounds = np.linspace(0, len(clip), 5).round().astype(int)
    return [frame for k in order for frame in clip[bounds[k] : bounds[k + 1]]]


@dataclass(frozen=True)
class Entry:
    """One file of the set, as manifest.json has it."""

    file: str
    role: str
    """"ref", "query" or "probe"."""
    base: str
    family: str
    """One of EDITS, "unrelated", "later" (another part of the base's recording), or the name of a probe."""
    severity: str = ""
    split: str = ""
    """"tune" or "held_out", by the base."""
    shared: tuple[float, ...] = ()
    """Copies: seconds of query start and end, ref start and end."""
    seconds: float = 0
    sha256: str = ""


def described(directory: Path, entry: Entry) -> Entry:
    path = directory / entry.file
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        seconds = float(stream.frames / stream.average_rate)
    return replace(entry, seconds=seconds, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def build_base(media: Path, directory: Path, index: int, families: tuple[str, ...]) -> list[Entry]:
    """The reference, copies, other parts and probes of one base."""
    name, base = list(BASES.items())[index]
    split = "held_out" if index % 2 else "tune"
    clip = load(media, base.source)
    entries = []

    def add(folder: str, family: str, make: Callable[[], Clip], *, severity: str = "", shared=(), **options) -> None:
        stem = ".".join(part for part in (name, family if folder != "refs" else "", severity) if part)
        entry = Entry(f"{folder}/{stem}.mp4", ROLES[folder], name, family, severity, split, tuple(shared))
        if not (directory / entry.file).exists():
            write(directory / entry.file, make(), **options)
        entries.append(described(directory, entry))

    add("refs", "ref", lambda: clip)
    for k, family in enumerate(families):
        hosts = HOSTS[(index + k) % len(HOSTS)]
        for severity, edit in zip(SEVERITIES, EDITS[family], strict=True):
            copy, shared = edited(clip, edit, lambda: load(media, *hosts), f"{name} {family} {severity}")
            options = {"rate": edit.rate, "crf": edit.crf}
            add("queries", family, lambda: copy, severity=severity, shared=shared, **options)
    for k, start in enumerate(base.others):
        other = Source(base.source.recording, start, OTHER_SECONDS)
        add("queries", "later", lambda: load(media, other), severity=str(k))
    add("probes", "same", lambda: clip)
    add("probes", "reversed", lambda: clip[::-1])
    add("probes", "shuffled", lambda: shuffled(clip, name))
    third = round(2.4 * RATE)
    middle = clip[(len(clip) - third) // 2 :][:third]
    for family, places in (("middle_a", (0, 3)), ("middle_b", (5, 6))):
        around = [load(media, PIECES[(index + k) % len(PIECES)])[:third] for k in places]
        before, after = (looped(resized(piece, *size(clip)), third) for piece in around)
        add("probes", family, lambda: before + middle + after)
    return entries


ROLES = {"refs": "ref", "queries": "query", "probes": "probe"}


def build_unrelated(media: Path, directory: Path, index: int) -> Entry:
    source = UNRELATED[index]
    stem = Path(source.recording).stem.partition("=")[0].replace(":", "_")
    entry = Entry(f"queries/unrelated_{index:02d}_{stem}.mp4", "query", f"unrelated_{index:02d}", "unrelated")
    if not (directory / entry.file).exists():
        write(directory / entry.file, load(media, source))
    return described(directory, entry)


def build(media: Path, directory: Path, *, tiny: bool = False, workers: int = 2) -> list[Entry]:
    bases, families = (range(6), TINY) if tiny else (range(len(BASES)), tuple(EDITS))
    others = range(0, len(UNRELATED), 4 if tiny else 1)
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.submit(build_base, media, directory, k, families) for k in bases]
        single = [pool.submit(build_unrelated, media, directory, k) for k in others]
        entries = [entry for part in parts for entry in part.result()] + [part.result() for part in single]
    with (directory / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        columns = ("query_id", "ref_id", "query_start", "query_end", "ref_start", "ref_end")
        table.writerow((*columns, "base", "family", "severity"))
        for e in entries:
            if e.shared:
                times = (f"{t:.3f}" for t in e.shared)
                table.writerow((e.file, f"refs/{e.base}.mp4", *times, e.base, e.family, e.severity))
    (directory / "manifest.json").write_text(json.dumps([e.__dict__ for e in entries], indent=1) + "\n")
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="make the set")
    command.add_argument("media", type=Path, help="folder with videos/")
    command.add_argument("--cache", type=Path, required=True, metavar="DIR")
    command.add_argument("--tiny", action="store_true", help="6 bases, 8 families")
    arguments = parser.parse_args()
    entries = build(arguments.media, arguments.cache, tiny=arguments.tiny)
    for role in ROLES.values():
        print(role, sum(entry.role == role for entry in entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())

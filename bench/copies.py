"""A synthetic set of edited copies of real clips, to measure what `vsim dedup` tells apart.

    python bench/copies.py build MEDIA --cache DIR [--tiny]
    python bench/copies.py evaluate DIR [--rows bench/results] [--column content] [--pairs CSV ...]

`build` writes DIR/refs, DIR/queries and DIR/probes (H.264, no sound, at most 360 lines), DIR/truth.csv in the columns
of the video similarity challenge plus base, family and severity, and DIR/manifest.json. Files that are there are kept.
All draws are seeded by the name of what they are for. `evaluate` compares all queries with all references, by
`vsim dedup` and by three baselines, and prints how well each finds the copies.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from clip_edits import (
    RATE,
    Clip,
    as_frames,
    card,
    drawn,
    even,
    filtered,
    lettered,
    looped,
    pasted,
    read,
    resized,
    size,
    sprites,
    write,
    yuv,
)

BASE_SECONDS = 5


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
OTHER_SECONDS, THIRD_SECONDS = 3.4, 2.4

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
ROLES = {"refs": "ref", "queries": "query", "probes": "probe"}
SPLITS = ("tune", "held_out")
Copy = tuple[Clip, list[float]]
"""A clip, and where it is a copy: the seconds of query start and end, ref start and end."""


@lru_cache(2)  # mild and hard have the same host
def load(media: Path, *sources: Source) -> Clip:
    """Sources one after the other, each scaled to the first one's size. Its frames are not to be written to."""
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


def edited(clip: Clip, edit: Edit, host: Callable[[], Clip], name: str) -> Copy:
    """A copy of `clip`; `name` seeds what is left to chance."""
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
    made: str = ""
    """From what and how."""
    seconds: float = 0
    sha256: str = ""


def build_base(
    media: Path, directory: Path, index: int, families: tuple[str, ...], known: dict[str, Entry]
) -> list[Entry]:
    """The reference, copies, other parts and probes of one base."""
    base_name, base = list(BASES.items())[index]
    entries: list[Entry] = []
    clip: Clip = []

    def add(folder: str, family: str, make: Callable[[], Copy], *how, severity="", part="", **options: int) -> None:
        name = ".".join(text for text in (base_name, family * (folder != "refs"), severity, part) if text)
        made = ", ".join(map(str, (base.source, *how, options or "")))
        entry = Entry(
            f"{folder}/{name}.mp4", ROLES[folder], base_name, family, severity, SPLITS[index % 2], made=made
        )  # fmt: skip
        entries.append(finished(directory, entry, make, known, **options))

    def source() -> Clip:
        if not clip:
            clip.extend(load(media, base.source))
        return clip

    add("refs", "ref", lambda: (source(), []))
    for family in families:
        hosts = HOSTS[(index + list(EDITS).index(family)) % len(HOSTS)]
        for severity, edit in zip(SEVERITIES, EDITS[family], strict=True):

            def copy(edit=edit, hosts=hosts, draws=f"{base_name} {family} {severity}") -> Copy:
                return edited(source(), edit, lambda: load(media, *hosts), draws)

            how = (edit, *hosts) if edit.inset or edit.insert else (edit,)
            add("queries", family, copy, *how, severity=severity, rate=edit.rate, crf=edit.crf)
    for k, start in enumerate(base.others):
        other = Source(base.source.recording, start, OTHER_SECONDS)
        add("queries", "later", lambda other=other: (load(media, other), []), other, part=str(k))
    add("probes", "same", lambda: (source(), []), crf=28)
    add("probes", "reversed", lambda: (source()[::-1], []))
    add("probes", "shuffled", lambda: (shuffled(source(), base_name), []))
    for family, places in (("middle_a", (0, 3)), ("middle_b", (5, 6))):
        around = [PIECES[(index + k) % len(PIECES)] for k in places]

        def middle(around=around) -> Copy:
            return between(source(), *(load(media, piece) for piece in around)), []

        add("probes", family, middle, *around)
    return entries


def between(clip: Clip, before: Clip, after: Clip) -> Clip:
    """The middle of `clip` between as much of two others."""
    third = round(THIRD_SECONDS * RATE)
    middle = clip[(len(clip) - third) // 2 :][:third]
    before, after = (resized(looped(other, third), *size(clip)) for other in (before, after))
    return before + middle + after


def build_unrelated(media: Path, directory: Path, index: int, known: dict[str, Entry]) -> list[Entry]:
    name, source = f"unrelated_{index:02d}", UNRELATED[index]
    stem = Path(source.recording).stem.partition("=")[0].replace(":", "_")
    entry = Entry(f"queries/{name}_{stem}.mp4", "query", name, "unrelated", split=SPLITS[index % 2], made=str(source))
    return [finished(directory, entry, lambda: (load(media, source), []), known)]


def finished(directory: Path, entry: Entry, make: Callable[[], Copy], known: dict[str, Entry], **options: int) -> Entry:
    """The entry with its file written, unless it is `known` to be made in the same way and as it was."""
    path = directory / entry.file
    before = known.get(entry.file)
    if before and before.made == entry.made and path.exists() and digest(path) == before.sha256:
        return replace(before, split=entry.split)
    clip, shared = make()
    write(path, clip, **options)
    seconds = len(clip) / options.get("rate", RATE)
    return replace(entry, shared=tuple(shared), seconds=seconds, sha256=digest(path))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_manifest(directory: Path) -> list[Entry]:
    path = directory / "manifest.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return [Entry(**row | {"shared": tuple(row["shared"])}) for row in rows]


def write_manifest(directory: Path, entries: dict[str, Entry]) -> None:
    text = json.dumps([asdict(entry) for entry in entries.values()], indent=1)
    (directory / "manifest.json").write_text(text + "\n")


def build(media: Path, directory: Path, *, tiny: bool = False, workers: int = 2) -> list[Entry]:
    """Makes what is not there yet; the manifest is written as parts get done."""
    bases, families = (range(6), TINY) if tiny else (range(len(BASES)), tuple(EDITS))
    others = range(0, len(UNRELATED), 4 if tiny else 1)
    known = {entry.file: entry for entry in read_manifest(directory)}
    directory.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.submit(build_base, media, directory, k, families, known) for k in bases]
        parts += [pool.submit(build_unrelated, media, directory, k, known) for k in others]
        for part in parts:
            entries += part.result()
            done = {entry.file: entry for entry in entries}
            write_manifest(directory, done if part is parts[-1] else known | done)
    with (directory / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        columns = ("query_id", "ref_id", "query_start", "query_end", "ref_start", "ref_end")
        table.writerow((*columns, "base", "family", "severity"))
        for e in entries:
            if e.role == "query":
                times = [f"{t:.3f}" for t in e.shared]
                ref = [f"refs/{e.base}.mp4", *times] if times else [""] * 5  # no ref: there is no copy
                table.writerow((e.file, *ref, e.base, e.family, e.severity))
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="make the set")
    command.add_argument("media", type=Path, help="folder with videos/")
    command.add_argument("--cache", type=Path, required=True, metavar="DIR")
    command.add_argument("--tiny", action="store_true", help="6 bases, 8 families")
    command = commands.add_parser("evaluate", help="measure how well the copies are found")
    command.add_argument("set", type=Path, help="folder that build made", metavar="DIR")
    command.add_argument("--rows", type=Path, metavar="PATH", help="append rows to this file, or folder")
    command.add_argument("--column", default="content", help="of ours, in the table of families")
    command.add_argument("--pairs", type=Path, nargs="*", default=[], metavar="CSV", help="judge these, run nothing")
    arguments = parser.parse_args()
    if arguments.command == "evaluate":
        from copy_scores import evaluate_set

        evaluate_set(arguments.set, rows=arguments.rows, column=arguments.column, tables=arguments.pairs)
        return 0
    entries = build(arguments.media, arguments.cache, tiny=arguments.tiny)
    for role in ROLES.values():
        print(role, sum(entry.role == role for entry in entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())

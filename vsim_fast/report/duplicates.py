"""report.html of `dedup`: one page on which a person checks each group of copies and marks what is wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vsim_fast.report.page import render
from vsim_fast.store import atomic_path

PICTURE_BYTES = 32 * 2**20
"""Most bytes of pictures in the page, as base64. Beyond it each pair shows fewer frames, at last none."""
MOST_PAIRS, MOST_PAIRS_RELATED = 6, 4
"""Most pairs of frames shown of two videos."""
NEAR_TIE = 0.02
"""Share by which one video must exceed the other to be called better."""
JOINERS = "\u200c\u200d\u00a0\u3000"
"""Not called printable, yet ordinary in names: zero-width joiners of Persian and of emoji, wide spaces."""
DECISIONS_SCHEMA = 1


@dataclass(frozen=True)
class ReviewVideo:
    key: str
    """Content key: what a decision holds on to when the file is moved."""
    path: str
    """Any text; it is escaped."""
    width: int
    """As displayed, in pixels."""
    height: int
    duration_seconds: float
    fps: float
    codec: str
    bit_rate: int | None
    """Bits per second."""
    size_bytes: int
    frame_seconds: list[float]
    """Times of the content frames, rising, from the first frame of the video."""
    thumbnails: list[bytes]
    """JPEG, one per content frame."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReviewMember:
    """A video of a group and its scores as query against the group's medoid; None for the medoid itself."""

    video: ReviewVideo
    keep: bool
    """Suggested to be kept."""
    reason: str
    """Of the suggestion."""
    score: float | None = None
    content: float | None = None
    order: float | None = None
    coverage: float | None = None
    query_coverage: float | None = None
    ref_coverage: float | None = None
    orientation: str = "as it is"
    verdict: str = ""
    why: str = ""
    matches: list[tuple[int, int, float]] = field(default_factory=list)
    """(content frame of this video, of the medoid, similarity 0..1), rising in the first."""


@dataclass(frozen=True)
class ReviewGroup:
    medoid: ReviewMember
    members: list[ReviewMember]
    """The others, best first."""
    certainty: float
    """Least score of a member."""


@dataclass(frozen=True)
class ReviewPage:
    title: str
    groups: list[ReviewGroup]
    related: list[tuple[ReviewVideo, ReviewMember]] = field(default_factory=list)
    """(reference, query with its scores): pairs worth a look that are no duplicates."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason)."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason), for instance a second link to a file that was compared."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Some of score, content, order, coverage -> least value of a duplicate."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    """In force, in the form of the file that the page saves."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    video_count: int | None = None
    """Videos compared in all; None does not say."""


def write_review_page(path: str | os.PathLike[str], page: ReviewPage) -> int:
    """Write the page: one file, offline, all names escaped, scripts and styles pinned by hash. Returns its bytes.

    The page marks pairs as no duplicates and videos as to be kept, and saves that as decisions.json:
        {"schema_version": 1, "not_duplicates": [{"a": video, "b": video}], "keep": [video]}, video = {"key", "path"}.
    Raises: ValueError: a match names a content frame that its video does not have.
    """
    table = _Table()
    groups = sorted(page.groups, key=lambda group: -group.certainty)
    pairs = [(member, group.medoid.video, MOST_PAIRS) for group in groups for member in group.members]
    pairs += [(member, reference, MOST_PAIRS_RELATED) for reference, member in page.related]
    for group in groups:
        table.add(group.medoid.video)
    for member, reference, _ in pairs:
        table.add(reference)
        table.add(member.video)
        _check_matches(member, reference)
    shown, pictures = _choose_pictures(pairs, table)

    views = [_pair_view(number, member, ref, page.thresholds) for number, (member, ref, _) in enumerate(pairs)]
    group_views, first = [], 0
    for number, group in enumerate(groups):
        group_views.append(_group_view(number, group, views[first : first + len(group.members)], table))
        first += len(group.members)
    decisions = _Decisions.of(page.decisions, group_views, table.videos)
    data = {
        "videos": [
            {
                "key": video.key, "path": video.path, "bytes": video.size_bytes, "ratio": _ratio(video),
                "duration": _known(video.duration_seconds) or 0.0,
                "seconds": [round(t, 3) for t in video.frame_seconds], "pictures": pictures.frames[v],
            }
            for v, video in enumerate(table.videos)
        ],
        "pictures": pictures.base64,
        "pairs": [
            {
                "query": table.index(member.video), "ref": table.index(reference), "shown": shown[p],
                "matches": [[i, j, round(_unit(value), 3)] for i, j, value in member.matches],
                "coverage": [_known(member.query_coverage), _known(member.ref_coverage)],
            }
            for p, (member, reference, _) in enumerate(pairs)
        ],
        "groups": [{name: view[name] for name in ("medoid", "pairs", "suggested")} for view in group_views],
        "marks": {"not_duplicates": decisions.pairs, "keep": decisions.videos},
        "earlier": {"not_duplicates": decisions.other_pairs, "keep": decisions.other_videos},
        "schema_version": DECISIONS_SCHEMA,
    }  # fmt: skip
    data["id"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    filters = {
        "visible": visible, "bytes": _bytes, "percent": _percent, "number": _number, "name": lambda p: _split(p)[1],
        "folder": lambda p: _split(p)[0], "counted": _counted,
    }  # fmt: skip
    text = render(
        "dedup", filters, page=page, data=data, groups=group_views, related=views[first:], verdict=_verdict(page),
        thresholds=_thresholds(page.thresholds), decisions=decisions, pictures=pictures,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes(text)
    return len(text)


# --- what is shown of a pair -----------------------------------------------------------------------------------------


class _Table:
    """Each video once, in the order of first use; copies of equal content key differ by their path."""

    def __init__(self) -> None:
        self.videos: list[ReviewVideo] = []
        self._index: dict[tuple[str, str], int] = {}

    def add(self, video: ReviewVideo) -> None:
        if (video.key, video.path) not in self._index:
            self._index[video.key, video.path] = len(self.videos)
            self.videos.append(video)

    def index(self, video: ReviewVideo) -> int:
        return self._index[video.key, video.path]


def _check_matches(member: ReviewMember, reference: ReviewVideo) -> None:
    limits = len(member.video.frame_seconds), len(reference.frame_seconds)
    for i, j, _ in member.matches:
        if not (0 <= i < limits[0] and 0 <= j < limits[1]):
            raise ValueError(
                f"matches of {visible(member.video.path)} must name frames below {limits[0]} of it and below "
                f"{limits[1]} of {visible(reference.path)}, got ({i}, {j})"
            )


class _Pictures(NamedTuple):
    base64: list[str]
    frames: list[dict[int, int]]
    """Per video, content frame -> row of `base64`."""
    most: int
    """Pairs of frames shown of two videos, at most."""

    @property
    def bytes_per_video(self) -> int:
        return sum(map(len, self.base64)) // max(1, len(self.frames))


_Shown = list[tuple[int, int, float | None]]


def _choose_pictures(
    pairs: Sequence[tuple[ReviewMember, ReviewVideo, int]], table: _Table
) -> tuple[list[_Shown], _Pictures]:
    """The frames shown of each pair, as many as the budget allows, and the pictures of them, each once."""
    for most in range(MOST_PAIRS, -1, -1):
        shown = [_shown_matches(member, reference, min(most, limit)) for member, reference, limit in pairs]
        wanted: dict[tuple[int, int], None] = {}  # (video, frame), in order of use
        for (member, reference, _), chosen in zip(pairs, shown, strict=True):
            query, ref = table.index(member.video), table.index(reference)
            wanted |= dict.fromkeys((v, f) for i, j, _ in chosen for v, f in ((query, i), (ref, j)))
        wanted = {(v, f): None for v, f in wanted if f < len(table.videos[v].thumbnails)}
        if sum(-(-len(table.videos[v].thumbnails[f]) // 3) * 4 for v, f in wanted) <= PICTURE_BYTES:
            break
    frames: list[dict[int, int]] = [{} for _ in table.videos]
    encoded = []
    for video, frame in wanted:
        frames[video][frame] = len(encoded)
        encoded.append(base64.b64encode(table.videos[video].thumbnails[frame]).decode())
    return shown, _Pictures(encoded, frames, most)


def _shown_matches(member: ReviewMember, reference: ReviewVideo, count: int) -> _Shown:
    """`count` matches spread evenly; without matches, frames spread evenly over each video."""
    if member.matches:
        return [(i, j, round(_unit(value), 3)) for i, j, value in _spread(member.matches, count)]
    both = len(member.video.frame_seconds), len(reference.frame_seconds)
    count = min(count, *both)
    return [(i, j, None) for i, j in zip(*(_spread(range(n), count) for n in both), strict=True)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, from the middles of as many equal parts: the very first and last frames say least."""
    count = min(count, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def _pair_view(number: int, member: ReviewMember, reference: ReviewVideo, thresholds: Mapping[str, float]) -> dict:
    query = member.video
    parts = [part for part in (member.query_coverage, member.ref_coverage) if part is not None]
    explained = f"{_percent(parts[0])} of this, {_percent(parts[1])} of that" if len(parts) == 2 else ""
    backwards = (_known(member.order) or 0.5) <= 1 - thresholds.get("order", 0.5)
    words = {
        "content": ("the same pictures", "the pictures differ"),
        "order": ("in the same order", "in reversed order" if backwards else "no order in common"),
        "coverage": (explained, explained),
    }
    scores = []
    for name, (high, low) in words.items():
        value, threshold = _known(getattr(member, name)), thresholds.get(name)
        deciding = min(parts) if name == "coverage" and parts else value  # a duplicate needs enough of both
        passes = value is not None and (threshold is None or deciding >= threshold)
        judged = "passes" if passes else "below" if value is None or value < threshold else "one is below"
        scores.append(
            {
                "name": name, "value": value, "width": 100 * _unit(value), "threshold": threshold, "passes": passes,
                "words": "not computed" if value is None else high if passes else low, "judged": judged,
            }
        )  # fmt: skip
    return {
        "number": number, "member": member, "video": query, "reference": reference, "scores": scores,
        "facts": _facts(query, reference), "turned": member.orientation if member.orientation != "as it is" else "",
        "tone": {"duplicate": "yes", "contains": "yes", "different": "no"}.get(member.verdict, "partly"),
    }  # fmt: skip


class _Fact(NamedTuple):
    name: str
    query: str
    ref: str
    better: str
    """"query", "ref" or "" for a tie and for what has no better."""


def _facts(query: ReviewVideo, ref: ReviewVideo) -> list[_Fact]:
    def better(a: float | None, b: float | None) -> str:
        if not a or not b or abs(a - b) <= NEAR_TIE * max(a, b):
            return ""
        return "query" if a > b else "ref"

    same_codec = query.codec == ref.codec  # bit rates of different codecs say nothing about each other
    rows = [
        ("Picture", *(f"{v.width} × {v.height}" for v in (query, ref)),
         better(query.width * query.height, ref.width * ref.height)),
        ("Length", _seconds(query.duration_seconds), _seconds(ref.duration_seconds),
         better(query.duration_seconds, ref.duration_seconds)),
        ("Bit rate", _bit_rate(query.bit_rate), _bit_rate(ref.bit_rate),
         better(query.bit_rate, ref.bit_rate) if same_codec else ""),
        ("Frame rate", _rate(query.fps), _rate(ref.fps), better(query.fps, ref.fps)),
        ("Codec", query.codec or "–", ref.codec or "–", ""),
        ("Size", _bytes(query.size_bytes), _bytes(ref.size_bytes), ""),
    ]  # fmt: skip
    return [_Fact(*row) for row in rows]


def _group_view(number: int, group: ReviewGroup, pairs: list[dict], table: _Table) -> dict:
    everyone = [group.medoid, *group.members]
    medoid = group.medoid.video
    return {
        "number": number, "group": group, "views": pairs, "medoid": table.index(medoid),
        "pairs": [pair["number"] for pair in pairs], "facts": _facts(medoid, medoid),
        "suggested": [table.index(member.video) for member in everyone if member.keep],
        "indices": [table.index(member.video) for member in everyone], "frees": _could_go(group)[1],
    }  # fmt: skip


def _could_go(group: ReviewGroup) -> tuple[int, int]:
    """Files and bytes that the suggestion would free; nothing goes where nothing is kept."""
    everyone = [group.medoid, *group.members]
    going = [member.video.size_bytes for member in everyone if not member.keep]
    return (len(going), sum(going)) if len(going) < len(everyone) else (0, 0)


# --- decisions -------------------------------------------------------------------------------------------------------


class _Decisions(NamedTuple):
    """Decisions in force, parted into marks of what the page shows and the rest, which only stays in the file."""

    pairs: list[int]
    videos: list[int]
    other_pairs: list[Mapping[str, Any]]
    other_videos: list[Mapping[str, Any]]

    @classmethod
    def of(cls, decisions: Mapping[str, Any], groups: Sequence[dict], videos: Sequence[ReviewVideo]) -> _Decisions:
        by_key: dict[str, list[int]] = {}
        for v, video in enumerate(videos):
            by_key.setdefault(video.key, []).append(v)

        def find(entry: Mapping[str, Any]) -> int | None:
            """By the content key; byte-identical files share one, then the path decides."""
            found = by_key.get(entry["key"], [])
            same_path = [v for v in found if videos[v].path == entry.get("path")]
            return found[0] if len(found) == 1 else same_path[0] if same_path else None

        grouped = {v for group in groups for v in group["indices"]}
        pair_of = {
            frozenset((member, group["medoid"])): pair
            for group in groups
            for pair, member in zip(group["pairs"], group["indices"][1:], strict=True)
        }
        out = cls([], [], [], [])
        for entry in decisions.get("not_duplicates", []):
            pair = pair_of.get(frozenset((find(entry["a"]), find(entry["b"]))))
            out.other_pairs.append(entry) if pair is None else out.pairs.append(pair)
        for entry in decisions.get("keep", []):
            video = find(entry)
            out.other_videos.append(entry) if video not in grouped else out.videos.append(video)
        return out


# --- words and numbers -----------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with everything that does not print, or turns the direction of what follows, written as its code."""
    return "".join(c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in str(text))


def _split(path: str) -> tuple[str, str]:
    """Folder and name, for reading; a name that is a slash or nothing stays whole."""
    folder, _, name = path.rpartition("/")
    return (folder + "/" if folder or path.startswith("/") else "", name) if name else ("", path)


def _verdict(page: ReviewPage) -> str:
    count = len(page.groups)
    members = sum(1 + len(group.members) for group in page.groups)
    among = f"{_counted(page.video_count, 'video')}: " if page.video_count is not None else ""
    if not count:
        parts = [f"{among}no duplicates found." if among else "No duplicates found."]
    else:
        files, size = (sum(column) for column in zip(*map(_could_go, page.groups), strict=True))
        going = f"{files:,} could go, which would free {_bytes(size)}." if files else "None is suggested to go."
        parts = [f"{among}{_counted(count, 'group')} of duplicates with {members:,} videos. {going}"]
    for rows, words in ((page.failed, "could not be read"), (page.skipped, "skipped")):
        if rows:
            parts.append(f"{_counted(len(rows), 'file')} {words}.")
    return " ".join(parts)


def _thresholds(thresholds: Mapping[str, float]) -> str:
    """One clause, such as "content at least 0.60, order at least 0.40"."""
    of = {"coverage": " of both"}
    return ", ".join(f"{name}{of.get(name, '')} at least {value:.2f}" for name, value in thresholds.items())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _known(value: float | None) -> float | None:
    """None also for what is not finite, which JSON cannot say."""
    return float(value) if value is not None and math.isfinite(value) else None


def _unit(value: float | None) -> float:
    return min(1.0, max(0.0, _known(value) or 0.0))


def _ratio(video: ReviewVideo) -> float:
    return round(video.width / video.height, 4) if video.width > 0 and video.height > 0 else 16 / 9


def _number(value: float | None) -> str:
    return "–" if _known(value) is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    """Rounded down near the top: "100 %" is said of nothing less."""
    if _known(value) is None:
        return "–"
    return f"{math.floor(100 * value) if value > 0.99 else round(100 * value)} %"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} {units[-1]}" if value < 1000 else f"{value:,.0f} {units[-1]}"


def _bytes(value: int) -> str:
    return f"{value} bytes" if value < 1000 else _scaled(value / 1000, ("kB", "MB", "GB", "TB"))


def _bit_rate(value: int | None) -> str:
    return "–" if not value else _scaled(value / 1000, ("kbit/s", "Mbit/s", "Gbit/s"))


def _rate(fps: float) -> str:
    return f"{fps:.4g} fps" if fps and math.isfinite(fps) else "–"


def _seconds(value: float) -> str:
    if not math.isfinite(value) or value < 0:
        return "–"
    if value < 60:
        return f"{value:.2f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"

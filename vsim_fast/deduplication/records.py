"""What `dedup` gives back and writes, and what a person decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vsim_fast import __version__
from vsim_fast.copies import PairScores
from vsim_fast.errors import UsageError
from vsim_fast.inputs import path_id

COLUMNS = ("score", "content", "order", "coverage", "query_coverage", "ref_coverage")
DECISIONS = "decisions.json"


class File(BaseModel):
    """What became of one file."""

    path: str
    status: Literal["ok", "blank", "failed", "alias"]
    """blank: black or featureless throughout, compared with nothing.  alias: another name of a file that is read."""
    reason: str = ""
    key: str | None = None
    """Of its content; byte-identical files share it."""
    computed: bool = False
    """False: its features were there already."""
    width: int | None = None
    """As displayed."""
    height: int | None = None
    picture_width: int | None = None
    """Without constant bars."""
    picture_height: int | None = None
    duration_seconds: float | None = None
    fps: float | None = None
    codec: str | None = None
    bit_rate: int | None = None
    """Bits per second of the whole file, sound included."""
    size_bytes: int | None = None
    decoder: str | None = None
    lost_frames: int = 0
    """Planned, but not decodable."""
    notes: list[str] = []


class Member(BaseModel):
    """A video of a group, with its score against the medoid (1 for the medoid itself)."""

    path: str
    score: float
    keep: bool
    reason: str


class DuplicateGroup(BaseModel):
    """Each member passes against the medoid, which is a member too."""

    medoid: str
    members: list[Member]


class Match(BaseModel):
    """A query that is a copy of a reference."""

    query: str
    ref: str
    score: float
    verdict: str
    orientation: str
    reason: str


class PairRow(NamedTuple):
    """A row of pairs.csv."""

    query_id: str
    ref_id: str
    scores: PairScores


class DedupResult(BaseModel):
    """What summary.json holds."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial"]
    """partial: a file could not be read, or frames of one that were planned."""
    files: list[File]
    groups: list[DuplicateGroup]
    """Empty where two sets are compared."""
    matches: list[Match]
    """Empty where one set is compared with itself."""
    counts: dict[str, int]
    """videos, pairs, pairs_computed, features_computed, and files by status."""
    settings: dict[str, Any]
    encoder: dict[str, Any]
    thresholds: dict[str, float]
    decisions: dict[str, Any]
    """In force; in the form of decisions.json."""
    notes: list[str]
    output_dir: str | None = None
    outputs: dict[str, int] = {}
    """File name -> bytes."""
    timings: dict[str, float] = {}
    pairs: list[PairRow] = Field(default=[], exclude=True)
    """The rows of pairs.csv, where no file was written."""


class DecidedVideo(BaseModel, extra="forbid"):
    key: str
    path: str = ""


class DecidedApart(BaseModel, extra="forbid"):
    a: DecidedVideo
    b: DecidedVideo


class Decisions(BaseModel, extra="forbid"):
    """What a person decided on the page; the key names the content, the path is for people."""

    schema_version: Literal[1] = 1
    not_duplicates: list[DecidedApart] = []
    keep: list[DecidedVideo] = []


def read_decisions(path: str | Path | None, output_dir: str | Path | None = None) -> Decisions:
    """The decisions in `path`, or in decisions.json of `output_dir`, or none.  Raises: UsageError naming the field."""
    if path is None:
        if output_dir is None or not (Path(output_dir) / DECISIONS).exists():
            return Decisions()
        path = Path(output_dir) / DECISIONS
    try:
        return Decisions.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"decisions {path_id(path)}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"decisions {path_id(path)}: {where}: {first['msg']}") from None

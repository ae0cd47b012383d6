"""What a run is asked for and what came of it."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypedDict

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["done", "skipped", "failed", "quarantined"]


class VideoResult(TypedDict, total=False):
    """One video of the run, as in summary.json. A plain dict: there may be hundreds of thousands."""

    video_path: str
    status: Status
    """done: computed now; skipped: done by an earlier run; failed; quarantined: it ended two processes."""
    name: str
    """NAME of its files."""
    key: str | None
    reason: str
    """Of one that failed."""
    frames: int
    duration_seconds: float
    decoder: str
    lost_frames: int
    notes: list[str]


class EmbedResult(BaseModel):
    """summary.json of `vsim embed`; the first six fields are those of the original batch tool."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["complete", "partial", "nothing", "interrupted", "stopped"]
    """stopped: more failures than allowed."""
    total_videos: int
    processed: int
    """Have their embedding now, computed or found."""
    failed: int
    results: list[dict[str, Any]]
    """`VideoResult` of each video that has its embedding."""
    failed_videos: list[dict[str, Any]]
    """`VideoResult` of each that has not."""
    aliases: list[dict[str, str]] = Field(default_factory=list)
    """Further names of files, as links are: path, same_as."""
    computed: int = 0
    skipped: int = 0
    frames: int = 0
    """Encoded now."""
    output_dir: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    encoder: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=dict)
    """Kind, devices, decoders, workers."""
    notes: list[str] = Field(default_factory=list)
    timings: dict[str, float] = Field(default_factory=dict)
    schema_version: int = 1


class Snapshot(BaseModel):
    """How far a run is."""

    total: int
    done: int
    """Of `total`, with what was found done."""
    failed: int
    frames: int
    seconds: float
    videos_per_second: float
    frames_per_second: float
    decoders_busy: float
    """0..1, of all decoders since the start."""
    encoder_busy: float
    seconds_left: float | None


class BatchProgress(Protocol):
    def batch(self, snapshot: Snapshot) -> None:
        """Called a few times a second."""

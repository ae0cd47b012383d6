"""What goes in and comes out: items to compare, results as results.json holds them, the run as summary.json does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vsim_fast import __version__

PAIR, TRIPLET = ((0, 1),), ((0, 1), (1, 2), (0, 2))


@dataclass(frozen=True)
class Item:
    """Images to compare: two, or three in order of time of which the middle one is judged."""

    number: int
    """From 1, its place in the list it came from; names its folder of pictures."""
    images: tuple[str, ...]
    label: Any = None
    """Whatever the list says; handed on."""

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Pairs of positions in `images` that are compared."""
        return PAIR if len(self.images) == 2 else TRIPLET


class Failure(BaseModel):
    """An item that was not compared."""

    number: int
    images: list[str]
    label: Any = None
    reason: str


class PairResult(BaseModel):
    """An entry of results.json, with the original tool's names. Only what was set is written."""

    model_config = ConfigDict(extra="forbid")

    image_a: str
    """File name without folders; `path_a` has them."""
    image_b: str
    cosine_similarity: float
    cosine_distance: float
    """1 - cosine of the pooled embeddings."""
    embedding_dim: int
    patch_distance: float
    """Root mean square over the patches of the cosine distance at the same position."""
    psnr: float | None = None
    """dB, of 8-bit RGB in the size of image_a; null where the pixels are equal."""
    ssim: float | None = None
    lpips: float | None = None
    grid_size: int | None = None
    num_patches: int | None = None
    mean_similarity_a2b: float | None = None
    mean_similarity_b2a: float | None = None
    mean_mismatch_a: float | None = None
    mean_mismatch_b: float | None = None
    mutual_matches: float | None = None
    """Share of the patches of image_a whose best match has them as its own."""
    mean_displacement: float | None = None
    """Mean distance in patches from a patch of image_a to its best match, over mutual matches."""
    output_dir: str | None = None
    number: int
    """Of the item, from 1."""
    label: Any = None
    path_a: str
    path_b: str
    notes: list[str] = []


class TripletResult(BaseModel):
    """A frame It between I0 and I1. 0t, t1, 01 are the pairs (I0, It), (It, I1), (I0, I1)."""

    model_config = ConfigDict(extra="forbid")

    image_0: str
    image_t: str
    image_1: str
    cosine_distance: float
    """Sum of the distances of It to both neighbours."""
    patch_distance: float
    """Likewise."""
    stands_out: float
    """Mean patch distance of It to its neighbours less that between them: over 0 where It is none between them."""
    cosine_distance_0t: float
    cosine_distance_t1: float
    cosine_distance_01: float
    patch_distance_0t: float
    patch_distance_t1: float
    patch_distance_01: float
    embedding_dim: int
    output_dir: str | None = None
    number: int
    label: Any = None
    paths: list[str]
    notes: list[str] = []


class PairRun(BaseModel):
    """What summary.json holds."""

    schema_version: int = 1
    vsim_fast: str = __version__
    status: Literal["complete", "partial", "nothing", "interrupted"]
    compared: int
    failed: list[Failure]
    images: int
    """Distinct images encoded."""
    mean_cosine_distance: float | None
    mean_patch_distance: float | None
    settings: dict[str, Any]
    encoder: dict[str, Any]
    notes: list[str]
    output_dir: str
    timings: dict[str, float] = {}
    """Busy seconds per stage (stages overlap), and `total`, the wall time."""


class PairBatch(BaseModel):
    """Results in the order of the items, and the run that made them."""

    results: list[PairResult | TripletResult]
    run: PairRun

    def as_dict(self) -> dict[str, Any]:
        """{"results": what results.json holds, "run": what summary.json holds}."""
        return {"results": results_as_dicts(self.results), "run": self.run.model_dump(mode="json")}


def results_as_dicts(results: list[Any]) -> list[dict[str, Any]]:
    return [result.model_dump(mode="json", exclude_unset=True) for result in results]

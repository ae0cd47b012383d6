"""Pairs and triplets of images, as one batch: every distinct image is encoded once, in full batches, through the
pipeline of videos; what is left to do of a pair is done by other processes while the next ones are encoded.

    items ─► distinct images ─► pipeline ─► tokens ─► distances, matches ─► pixel metrics, pictures ─► results
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsim_fast.encode import load_encoder
from vsim_fast.encode.base import Encoder
from vsim_fast.errors import UnsupportedVideo, UsageError, VsimError
from vsim_fast.frame_pairs.dense import compare_densely
from vsim_fast.frame_pairs.drawing import Folder
from vsim_fast.frame_pairs.finishing import Finishers
from vsim_fast.frame_pairs.metrics import DEFAULT_METRICS, check_metrics, pixel_metrics
from vsim_fast.frame_pairs.records import (
    Failure,
    Item,
    PairBatch,
    PairResult,
    PairRun,
    TripletResult,
    results_as_dicts,
)
from vsim_fast.image_quality import Lpips
from vsim_fast.pairs import Pooling, cosine_distance, pooled_embedding, pooled_patch_distance
from vsim_fast.pipeline import Timings, stream_videos
from vsim_fast.pipeline.many import MEMORY_SHARE, Frames, early_server, free_memory
from vsim_fast.pipeline.reading import Failed, Finished, Opened, Task
from vsim_fast.processor import usable_cores
from vsim_fast.records import Progress
from vsim_fast.report import PairDrawing
from vsim_fast.store import OutputFolder
from vsim_fast.video import Sampling, is_image, read_image

IMAGE_SIZE = 518
"""Side of `builtin`'s input unless told otherwise: that of DINOv2, and of the original tool. Others have their own."""
CUDA_PAIRS = 16
"""Pairs compared at a time on a GPU; on a CPU one by one, which is as fast."""
MOST_FINISHERS = 12
MANY = 8
"""Items from which on it pays to start processes, which takes seconds of a core each."""


def load_pair_encoder(spec: str, image_size: int | None, **options: Any) -> Encoder:
    """The encoder of `spec` at `image_size`, or at the size that pairs are compared in."""
    if image_size is None and spec == "builtin":
        image_size = IMAGE_SIZE
    return load_encoder(spec, image_size=image_size, **options)


def frame_embeddings(encoder: Encoder, patches: Tensor, cls: Tensor | None, pooling: Pooling) -> Tensor:
    """float32 [B, D] of what `encoder` made of B frames; its CLS counts where it is one of the sequence's tokens."""
    return pooled_embedding(patches, cls if encoder.has_cls_token else None, pooling=pooling)


def pair_images(
    items: Sequence[Item | Failure | Sequence[str]],
    encoder: str | Encoder = "builtin",
    *,
    output_dir: str | os.PathLike | None = None,
    visualize: bool = False,
    arrow_stride: int = 4,
    pca: bool = True,
    compat: bool = False,
    pooling: Pooling = "all",
    metrics: Sequence[str] = DEFAULT_METRICS,
    image_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    progress: Progress | None = None,
    timings: Timings | None = None,
    started: float | None = None,
) -> PairBatch:
    """Distances, and on demand dense correspondence with pictures, of pairs or triplets of images.

    Args:
        items: two paths each, or three in order of time of which the middle one is judged; or what `read_config` gives.
        encoder: spec, or an encoder made by `load_encoder` (`image_size`, `device` and `precision` are then its own).
        output_dir: results.json and summary.json go there, and with `visualize` the folders pair_001, pair_002, ... by
            the number of the item; None writes nothing.
        arrow_stride: every how many patches an arrow of vector_field.png starts.  pca: draw pca_features.png.
        compat: relative mismatch maps, as the original's; see `pairs.mismatch`.
        pooling: see `pairs.pooled_embedding`.
        metrics: of "psnr", "ssim", "lpips", beside the distances; of pairs only.
    Returns:
        Results in the order of the items. An item that cannot be compared is a `Failure` of the run; others are done.
        An interrupt is raised on, once what has been compared is written.
    Raises:
        UsageError, DeviceError, EncoderError, OutputError, ImportError: for all of it.
    Memory: tokens of the images that are waited for, at most a quarter of what is free: beyond that the items are done
        in several rounds, and an image of two rounds is encoded in both.
    """
    started = time.perf_counter() if started is None else started
    timings = timings or Timings()
    items = [item if isinstance(item, (Item, Failure)) else _item(n, item) for n, item in enumerate(items, 1)]
    _check(items, visualize, output_dir, arrow_stride, metrics)
    lpips = Lpips() if "lpips" in metrics else None
    isolate = None if len(items) >= MANY else False
    folder, ended = None if output_dir is None else Path(output_dir), None
    with ExitStack() as stack:
        out = None if folder is None else stack.enter_context(OutputFolder(folder))
        server = early_server(device if isinstance(encoder, str) else str(encoder.device), "auto", isolate)
        if server is not None:
            stack.callback(server.close)
        if isinstance(encoder, str):
            with timings.stage("load_encoder"):
                encoder = load_pair_encoder(encoder, image_size, device=device, precision=precision, offline=offline)
        plan = _Plan(folder, visualize, arrow_stride, pca, compat, pooling, tuple(metrics))
        todo = [item for item in items if isinstance(item, Item)]
        failed = [item for item in items if isinstance(item, Failure)]
        with Finishers(min(usable_cores(), MOST_FINISHERS), processes=len(items) >= MANY) as finishers:
            comparing = _Comparing(todo, encoder, plan, finishers, lpips, timings)
            try:
                for window in windows(todo, _images_at_a_time(encoder)):
                    for _ in comparing.run(window, isolate, server):
                        if progress:
                            progress.advance("pairs", comparing.ended + len(failed), len(items))
                    server = None  # ended with its stream
            except (KeyboardInterrupt, SystemExit) as error:  # what is compared is not lost
                ended = error
            results, broken = comparing.results()
        failed = sorted(failed + broken, key=lambda failure: failure.number)
        settings = {
            "image_size": list(encoder.preprocess.size), "pooling": pooling, "compat": compat,
            "metrics": list(metrics), "visualize": visualize, "arrow_stride": arrow_stride, "pca": pca,
        }  # fmt: skip
        status = "partial" if failed or comparing.problems else "complete"
        run = PairRun(
            status="interrupted" if ended else status if results else "nothing",
            compared=len(results), failed=failed, images=comparing.encoded, settings=settings,
            mean_cosine_distance=_mean([result.cosine_distance for result in results]),
            mean_patch_distance=_mean([result.patch_distance for result in results]),
            encoder=encoder.describe(), notes=encoder_notes(encoder), output_dir="" if folder is None else str(folder),
            timings=timings.summary(started),
        )  # fmt: skip
        batch = PairBatch(results=results, run=run)
        if out is not None:
            out.write_json("results.json", results_as_dicts(results))
            out.write_json("summary.json", run.model_dump(mode="json"))
    if ended is not None:
        raise ended
    return batch


def windows(items: Sequence[Item], most_images: int) -> Iterator[list[Item]]:
    """Runs of items that name at most `most_images` distinct images together."""
    window: list[Item] = []
    named: set[str] = set()
    for item in items:
        if window and len(named) + len(set(item.images) - named) > most_images:
            yield window
            window, named = [], set()
        window.append(item)
        named |= set(item.images)
    if window:
        yield window


class _Plan(NamedTuple):
    folder: Path | None
    visualize: bool
    arrow_stride: int
    pca: bool
    compat: bool
    pooling: Pooling
    metrics: tuple[str, ...]

    def folder_of(self, item: Item, link: tuple[int, int]) -> Path:
        folder = self.folder / f"pair_{item.number:03d}"
        return folder if len(item.images) == 2 else folder / "I{}_I{}".format(*("0t1"[end] for end in link))


class _Image(NamedTuple):
    """What is kept of an image while pairs wait for it."""

    patches: Tensor
    """[P, D]"""
    embedding: Tensor
    """float32 [D]"""
    picture: np.ndarray | None
    size: tuple[int, int]
    notes: tuple[str, ...]


class _Link(NamedTuple):
    """Two images of an item, to be compared."""

    item: Item
    ends: tuple[int, int]


class _Measured(NamedTuple):
    """What the tokens of a link say."""

    cosine_distance: float
    patch_distance: float
    facts: dict[str, Any]
    drawing: PairDrawing | None


class _Compared(NamedTuple):
    """All that is told of a link."""

    cosine_distance: float
    patch_distance: float
    facts: dict[str, Any]
    """By the names of `PairResult`."""
    problems: list[str]
    """Why there are no metrics, or no pictures."""


@contextmanager
def _noted(problems: list[str], what: str) -> Iterator[None]:
    """An error that does not take from what is known already."""
    try:
        yield
    except VsimError as error:
        problems.append(f"{what}: {error}")


class _Comparing:
    """Takes images as they come out of the pipeline and compares those that are all there."""

    def __init__(
        self, items: list[Item], encoder: Encoder, plan: _Plan, finishers: Finishers, lpips: Lpips | None,
        timings: Timings,
    ):  # fmt: skip
        self.encoder, self.plan, self.finishers, self.lpips, self.timings = encoder, plan, finishers, lpips, timings
        self.ended = self.encoded = 0
        """Items that are compared, or known to fail; images encoded."""
        self.problems = 0
        """Items that were compared, but not finished: without metrics or pictures."""
        self._items = items
        self._needed: Counter[str] = Counter()
        self._images: dict[str, _Image | VsimError] = {}
        self._facts: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {}
        self._found: dict[tuple[int, tuple[int, int]], Future[_Compared]] = {}
        self._errors: dict[int, VsimError] = {}
        self._ready: deque[_Link] = deque()
        self._at_a_time = CUDA_PAIRS if encoder.device.type == "cuda" else 1

    def run(self, items: list[Item], isolate: bool | None, server: Any) -> Iterator[None]:
        """Encode and compare the items of one round; yields now and then."""
        waiting: dict[str, list[Item]] = {}
        missing: dict[int, set[str]] = {}
        for item in items:
            missing[item.number] = set(item.images)
            for image in missing[item.number]:
                waiting.setdefault(image, []).append(item)
                self._needed[image] += 1
        for image in list(waiting):
            if os.path.exists(image) and not is_image(image):
                kind = "a folder" if os.path.isdir(image) else "no file of one by its name"
                self._images[image] = UnsupportedVideo(image, f"must be an image, is {kind}")
                self._settled(image, waiting, missing)
        tasks = [Task(n, image, image) for n, image in enumerate(waiting)]
        options = dict(isolate=isolate, server=server, timings=self.timings)
        stream = stream_videos(tasks, self.encoder, Sampling("all"), **options)
        opened: dict[int, Opened] = {}
        with closing(stream):
            for event in stream:
                if isinstance(event, Opened):
                    opened[event.video] = event
                elif isinstance(event, Frames):
                    self._keep(tasks[event.video].path, event, opened[event.video])
                elif isinstance(event, (Finished, Failed)):
                    opened.pop(event.video, None)
                    image = tasks[event.video].path
                    if isinstance(event, Failed):
                        self._images[image] = event.error
                    self._settled(image, waiting, missing)
                if len(self._ready) >= self._at_a_time or event is None:
                    self._compare()
                yield
        while self._ready:
            self._compare()
        yield

    def _settled(self, image: str, waiting: dict[str, list[Item]], missing: dict[int, set[str]]) -> None:
        """The image is encoded, or known to fail."""
        for item in waiting.pop(image):
            missing[item.number].discard(image)
            if not missing[item.number]:
                self._all_there(item)

    def _keep(self, path: str, frames: Frames, opened: Opened) -> None:
        features, pixels = frames.encoded.features, frames.encoded.pixels
        patches = features.patches[0]
        if patches.untyped_storage().nbytes() > patches.nbytes:  # a batch of several images would live as long
            patches = patches.clone()
        embedding = frame_embeddings(self.encoder, features.patches, features.cls, self.plan.pooling)[0]
        picture = self.encoder.picture(pixels[0], self.encoder.preprocess.size) if self.plan.visualize else None
        notes = opened.info.notes
        if frames.encoded.featureless[0]:
            notes = (*notes, "black or without texture: its distances mean little")
        self._images[path] = _Image(patches, embedding, picture, opened.info.display_size, notes)
        self.encoded += 1

    def _all_there(self, item: Item) -> None:
        errors = [self._images[image] for image in item.images if isinstance(self._images[image], VsimError)]
        if errors:
            self._errors[item.number] = errors[0]
            self._done(item)
        else:
            self._facts |= {image: (self._images[image].size, self._images[image].notes) for image in item.images}
            self._ready += [_Link(item, ends) for ends in item.links]

    def _done(self, item: Item) -> None:
        self.ended += 1
        for image in set(item.images):
            self._needed[image] -= 1
            if not self._needed[image]:
                del self._images[image]

    def _compare(self) -> None:
        links = [self._ready.popleft() for _ in range(min(self._at_a_time, len(self._ready)))]
        if not links:
            return
        a, b = ([self._images[link.item.images[link.ends[side]]] for link in links] for side in (0, 1))
        if self.encoder.device.type == "cuda":
            measured = self._measure(a, b)
            futures = [self.finishers.submit(self._finish, *pair) for pair in zip(links, measured, strict=True)]
        else:  # pairs side by side, one thread each
            futures = [self.finishers.submit(self._measure_and_finish, *one) for one in zip(links, a, b, strict=True)]
        for link, future in zip(links, futures, strict=True):
            self._found[link.item.number, link.ends] = future
            if link.ends == link.item.links[-1]:
                self._done(link.item)

    def _measure(self, a: list[_Image], b: list[_Image]) -> list[_Measured]:
        """Distances of pairs of images, and their dense correspondence if it is wanted."""
        with self.timings.stage("compare"), torch.inference_mode():
            pooled = cosine_distance(*(torch.stack([image.embedding for image in side]) for side in (a, b)))
            patches_a, patches_b = (torch.stack([image.patches for image in side]) for side in (a, b))  # [B, P, D]
            local = pooled_patch_distance(cosine_distance(patches_a, patches_b))
            dense = [({}, None)] * len(a)
            if self.plan.visualize:
                pictures = [[image.picture for image in side] for side in (a, b)]
                options = dict(compat=self.plan.compat, pca=self.plan.pca)
                dense = compare_densely(patches_a, patches_b, *pictures, self.encoder.grid, **options)
            distances = zip(pooled.tolist(), local.tolist(), strict=True)
            return [_Measured(*pair, *one) for pair, one in zip(distances, dense, strict=True)]

    def _measure_and_finish(self, link: _Link, a: _Image, b: _Image) -> _Compared:
        return self._finish(link, *self._measure([a], [b]))

    def _finish(self, link: _Link, measured: _Measured) -> _Compared:
        """Pixel metrics and pictures of a pair."""
        distance, patch_distance, facts, drawing = measured
        paths = [link.item.images[end] for end in link.ends]
        metrics, problems = {}, []
        if self.plan.metrics and len(link.item.images) == 2:
            with self.timings.stage("metrics"), _noted(problems, "no metrics"):
                metrics = pixel_metrics(*map(read_image, paths), self.plan.metrics, self.lpips)
        if drawing is not None:
            path = str(self.plan.folder_of(link.item, link.ends))
            named = {"image_a": os.path.basename(paths[0]), "image_b": os.path.basename(paths[1])}
            size = {"embedding_dim": self.encoder.dim, "cosine_distance": distance, "patch_distance": patch_distance}
            summary = named | facts | size | metrics | {"output_dir": path}
            with self.timings.stage("pictures"), _noted(problems, "no pictures"):
                self.finishers.draw(Folder(path, drawing, summary, self.plan.arrow_stride, self.plan.compat))
                facts = facts | {"output_dir": path}
        return _Compared(distance, patch_distance, facts | metrics, problems)

    def results(self) -> tuple[list[PairResult | TripletResult], list[Failure]]:
        """Of all items that were begun, waiting for what is still being finished."""
        results: list[PairResult | TripletResult] = []
        failed: list[Failure] = []
        for item in self._items:
            try:
                if item.number in self._errors:
                    raise self._errors[item.number]
                if (item.number, item.links[-1]) not in self._found:
                    continue  # interrupted
                with self.timings.stage("finish"):
                    compared = [self._found[item.number, ends].result() for ends in item.links]
            except VsimError as error:
                failure = Failure(number=item.number, images=list(item.images), label=item.label, reason=str(error))
                failed.append(failure)
                continue
            make = self._pair if len(item.images) == 2 else self._triplet
            results.append(make(item, compared))
        return results, failed

    def _common(self, item: Item, compared: list[_Compared]) -> dict[str, Any]:
        facts = [self._facts[image] for image in item.images]
        notes = [problem for one in compared for problem in one.problems]
        self.problems += bool(notes)
        if len({size for size, _ in facts}) > 1:
            sizes = ", ".join("{1}x{0}".format(*size) for size, _ in facts)
            notes.append(
                f"sizes differ ({sizes}): each was resized to the encoder's input, and for metrics to the first"
            )
        for image, (_, said) in zip(item.images, facts, strict=True):
            notes += [f"{os.path.basename(image)}: {note}" for note in said]
        label = {} if item.label is None else {"label": item.label}
        return {"number": item.number, "embedding_dim": self.encoder.dim, "notes": notes} | label

    def _pair(self, item: Item, compared: list[_Compared]) -> PairResult:
        (a, b), (one,) = item.images, compared
        return PairResult(
            image_a=os.path.basename(a), image_b=os.path.basename(b), path_a=a, path_b=b,
            cosine_similarity=1 - one.cosine_distance, cosine_distance=one.cosine_distance,
            patch_distance=one.patch_distance, **one.facts, **self._common(item, compared),
        )  # fmt: skip

    def _triplet(self, item: Item, compared: list[_Compared]) -> TripletResult:
        names = ("0t", "t1", "01")
        patch = [one.patch_distance for one in compared]
        distances = {
            f"{kind}_{name}": getattr(one, kind)
            for kind in ("cosine_distance", "patch_distance")
            for name, one in zip(names, compared, strict=True)
        }
        folder = {"output_dir": str(self.plan.folder / f"pair_{item.number:03d}")} if self.plan.visualize else {}
        return TripletResult(
            **dict(zip(("image_0", "image_t", "image_1"), map(os.path.basename, item.images), strict=True)),
            paths=list(item.images), cosine_distance=sum(one.cosine_distance for one in compared[:2]),
            patch_distance=sum(patch[:2]), stands_out=(patch[0] + patch[1]) / 2 - patch[2],
            **distances, **folder, **self._common(item, compared),
        )  # fmt: skip


def _item(number: int, images: Sequence[str | os.PathLike]) -> Item:
    if isinstance(images, (str, os.PathLike)) or len(images) not in (2, 3):
        raise UsageError(f"items must be two or three paths each, got {images!r}")
    return Item(number, tuple(map(os.fsdecode, images)))


def _check(
    items: Sequence[Item | Failure], visualize: bool, output_dir: Any, arrow_stride: int, metrics: Iterable[str]
) -> None:
    if not items:
        raise UsageError("there are no pairs to compare")
    if len({item.number for item in items}) < len(items):
        raise UsageError("items must have numbers of their own")
    if visualize and output_dir is None:
        raise UsageError("visualize needs an output_dir for the pictures")
    if not isinstance(arrow_stride, int) or arrow_stride < 1:
        raise UsageError(f"arrow_stride must be a whole number of 1 or more, got {arrow_stride!r}")
    check_metrics(metrics)


def _images_at_a_time(encoder: Encoder) -> int:
    size = encoder.grid[0] * encoder.grid[1] * encoder.dim * encoder.token_dtype.itemsize
    size += 3 * encoder.preprocess.size[0] * encoder.preprocess.size[1]
    return max(16, int(MEMORY_SHARE * free_memory(encoder.device)) // size)


def encoder_notes(encoder: Encoder) -> list[str]:
    """What whoever reads its distances must know."""
    notes = [f"{encoder.spec}: random weights; the numbers mean nothing"] if encoder.random_weights else []
    if held := encoder.describe().get("checkpoint"):
        notes.append(
            f"{encoder.spec}: {held['tower']}, {held['matched']} of {held['total']} tensors; embedding head "
            f"{held['embedding_head'] or 'none'}; {held['ignored']} other keys left out"
        )
    return notes


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""The `vsim` command: parse, call, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

STARTED = time.perf_counter()

import typer  # noqa: E402 - the clock starts first

from vsim_fast.errors import CorruptVideo, UsageError, VsimError  # noqa: E402

EXIT_ERROR, EXIT_PARTLY, EXIT_NOTHING, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 3, 4, 130, 143
OUT_OF_MEMORY = ("out of memory", "allocate memory")
"""What torch's errors say on a GPU and on a CPU, where they have no type of their own."""
WrongUsage = typer.BadParameter.__base__
"""What the parser raises: click's UsageError, from whichever copy of click typer brings."""

app = typer.Typer(
    help="Video similarity: what is alike, where, when and in which direction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never fetch weights, even for a hub id.")]


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float8 = "float8"


class Execution(StrEnum):
    eager = "eager"
    compiled = "compiled"
    graphs = "graphs"
    compiled_graphs = "compiled+graphs"


class Decoder(StrEnum):
    auto = "auto"
    pyav = "pyav"
    nvdec = "nvdec"


OfEncoder = Annotated[Precision, typer.Option(help="Of the encoder.")]
HowToRun = Annotated[
    Execution, typer.Option(help="How the encoder runs: compiled blocks, recorded CUDA graphs; same features.")
]
OfVideos = Annotated[Decoder, typer.Option(help="nvdec decodes on the GPU.")]
Model = Annotated[str, typer.Option("--model", help="Encoder, as for analyze.")]
Paths = Annotated[
    list[str] | None,
    typer.Argument(
        help="Folders (searched through), files, quoted patterns like 'a/**/*.mp4', lists (.txt, .csv, .json).",
        show_default=False,
    ),
]


class Orientations(StrEnum):
    none = "none"
    mirror = "mirror"
    all = "all"


class Reduce(StrEnum):
    stats = "stats"
    topk = "topk"


class Pooling(StrEnum):
    all = "all"
    patches = "patches"


class OnLength(StrEnum):
    shortest = "shortest"
    error = "error"


class SearchLevel(StrEnum):
    video = "video"
    frame = "frame"


class SearchBackend(StrEnum):
    exact = "exact"
    faiss = "faiss"
    lance = "lance"


class SaveFormat(StrEnum):
    numpy = "numpy"
    json = "json"
    both = "both"


class Layout(StrEnum):
    safetensors = "safetensors"
    npy = "npy"


class EngineKind(StrEnum):
    local = "local"
    ray = "ray"


class ProgressKind(StrEnum):
    auto = "auto"
    plain = "plain"
    json = "json"


class ArrayType(StrEnum):
    float32 = "float32"
    float16 = "float16"


@app.callback()
def _commands() -> None:
    pass


@app.command()
def analyze(
    video: Annotated[str | None, typer.Argument(help="Video file, or folder of images.", show_default=False)] = None,
    video_path: Annotated[str | None, typer.Option(help="The same, as an option.", show_default=False)] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Analyse a generated clip with cuts and motion.")] = False,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="builtin, timm:NAME[@PATH|@random], hf:ID-or-DIR[@random], videollama3:DIR, vfi:CHECKPOINT; a plain "
            "folder means videollama3:DIR.",
        ),
    ] = "builtin",
    output_dir: Annotated[Path, typer.Option(help="Where the results go.")] = Path("patch_analysis_results"),
    fps: Annotated[float, typer.Option(help="Frames taken per second.")] = 1.0,
    max_frames: Annotated[int, typer.Option(help="Most frames; more are thinned out evenly.")] = 100,
    image_size: Annotated[int, typer.Option(help="Side of the encoder's input, a multiple of its patch.")] = 448,
    patch_size: Annotated[
        int | None, typer.Option(help="Patch side the encoder is expected to have.", show_default=False)
    ] = None,
    device: Device = "auto",
    precision: OfEncoder = Precision.auto,
    execution: HowToRun = Execution.eager,
    decoder: OfVideos = Decoder.auto,
    visualize_positions: Annotated[int, typer.Option(help="Positions that get a heat map.")] = 10,
    reduce: Annotated[
        Reduce | None,
        typer.Option(help="Store statistics, or the best matches per row, not whole matrices.", show_default=False),
    ] = None,
    topk: Annotated[int, typer.Option(help="Matches per row with --reduce topk.")] = 8,
    dtype: Annotated[ArrayType, typer.Option(help="Of the arrays written.")] = ArrayType.float32,
    compress: Annotated[bool, typer.Option("--compress", help="Deflate the .npz files: slow, saves little.")] = False,
    image_fps: Annotated[
        float | None, typer.Option(help="Frame rate of a folder of images.", show_default=False)
    ] = None,
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """Similarity of every patch of a video over time, of its frames, and within each frame."""
    if [bool(video), bool(video_path), demo].count(True) != 1:
        raise UsageError("give one video: vsim analyze VIDEO (or --video-path VIDEO, or --demo)")
    from vsim_fast.analysis import analyze as run
    from vsim_fast.pipeline import Timings
    from vsim_fast.store import atomic_path, output_errors
    from vsim_fast.video.demo import write_demo_clip

    timings = Timings()
    timings.add("import", time.perf_counter() - STARTED)
    if demo:
        with output_errors(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
        video = str(output_dir / "demo.mp4")
        with atomic_path(Path(video)) as partial:
            write_demo_clip(partial)
    with _progress() as progress:
        summary = run(
            video or video_path, _encoder_spec(model), output_dir=output_dir, fps=fps, max_frames=max_frames,
            image_size=image_size, patch_size=patch_size, device=device, precision=precision.value,
            execution=execution.value, decoder=decoder.value, visualize_positions=visualize_positions,
            reduce=reduce and reduce.value, topk=topk, dtype=dtype.value, compress=compress, image_fps=image_fps,
            offline=offline, progress=progress, timings=timings, started=STARTED,
        )  # fmt: skip
    if json_:
        print(summary.model_dump_json())
    else:
        _print_analysis(summary)
    if summary.status != "complete":
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def compare(
    videos: Annotated[list[str] | None, typer.Argument(help="Two video files.", show_default=False)] = None,
    video1: Annotated[str | None, typer.Option(help="The first, as an option.", show_default=False)] = None,
    video2: Annotated[str | None, typer.Option(help="The second, as an option.", show_default=False)] = None,
    video_dir: Annotated[
        Path | None, typer.Option(help="Compare all pairs of the videos in a folder.", show_default=False)
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Run the study on drawn motions; fails where a hypothesis does.")
    ] = False,
    model: Annotated[
        str, typer.Option("--model", help="Encoder, as for analyze; a plain file means a DINOv3 ViT-L/16 checkpoint.")
    ] = "builtin",
    output_dir: Annotated[Path, typer.Option(help="Where the results go.")] = Path("comparison_results"),
    fps: Annotated[float, typer.Option(help="Frames taken per second.")] = 10.0,
    sample_rate: Annotated[
        int | None, typer.Option(help="Take every n-th frame instead of --fps.", show_default=False)
    ] = None,
    max_frames: Annotated[int, typer.Option(help="Most frames per video; more are thinned out evenly.")] = 300,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the encoder's input; default the model's own.", show_default=False)
    ] = None,
    device: Device = "auto",
    precision: OfEncoder = Precision.auto,
    execution: HowToRun = Execution.eager,
    decoder: OfVideos = Decoder.auto,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the semantic score in the fusion, 0 to 1.", show_default="0.3")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Fusion from which it is the same motion.", show_default="0.65")
    ] = None,
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """Whether two videos show the same motion in the same order: every score, their fusion, which second is which."""
    pair = [*(videos or []), *(video for video in (video1, video2) if video is not None)]
    if (len(pair) == 2) + (video_dir is not None) + synthetic != 1 or len(pair) not in (0, 2):
        raise UsageError("give two videos: vsim compare V1 V2 (or --video-dir FOLDER, or --synthetic)")
    if synthetic:
        _synthetic_study(output_dir, json_)
        return
    from vsim_fast import comparison
    from vsim_fast.pipeline import Timings

    timings = Timings()
    timings.add("import", time.perf_counter() - STARTED)
    given = {"alpha": alpha, "threshold": threshold}
    with _progress() as progress:
        options = dict(
            output_dir=output_dir, fps=fps, sample_rate=sample_rate, max_frames=max_frames, image_size=image_size,
            device=device, precision=precision.value, execution=execution.value, decoder=decoder.value,
            offline=offline, progress=progress, timings=timings, started=STARTED,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        spec = f"{DINOV3}@{model}" if ":" not in model and Path(model).is_file() else _encoder_spec(model)
        if video_dir is not None:
            result: Any = comparison.compare_folder(video_dir, spec, **options)
        else:
            result = comparison.compare(*pair, spec, **options)
    if json_:
        print(result.model_dump_json())
    elif video_dir is not None:
        _print_pairs(result)
    else:
        _print_comparison(result)
    if result.status != "complete":
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def pair(
    frames: Annotated[
        list[str] | None,
        typer.Argument(help="Two images, or three in order of time: the middle one is judged.", show_default=False),
    ] = None,
    image_a: Annotated[str | None, typer.Option(help="The first of two, as an option.", show_default=False)] = None,
    image_b: Annotated[str | None, typer.Option(help="The second, as an option.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help='JSON: a list of pairs, or {"pairs": [...]}; see the README.', show_default=False),
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="Judge every frame of a video (or folder of images).", show_default=False)
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The true video, frame by frame.", show_default="its own neighbours")
    ] = None,
    validate: Annotated[
        Path | None,
        typer.Option(
            help="Check the metrics: distort frames of a video, a folder, or folders of triplets by known amounts.",
            show_default=False,
        ),
    ] = None,
    model: Model = "builtin",
    model_name: Annotated[str | None, typer.Option(help="A timm model; --model timm:NAME.", show_default=False)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A merged checkpoint; --model vfi:PATH.", show_default=False)
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            "--resize",
            "--image-size",
            help="Side of the encoder's input, a multiple of its patch.",
            show_default="518, or the model's own",
        ),
    ] = None,
    device: Device = "auto",
    precision: OfEncoder = Precision.auto,
    decoder: OfVideos = Decoder.auto,
    visualize: Annotated[
        bool, typer.Option("--visualize", help="Pictures of each pair: matches, mismatch, PCA.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "--output-dir", help="Where the results go.")] = Path("output"),
    arrow_stride: Annotated[int, typer.Option(help="Patches between the arrows of the vector field.")] = 4,
    no_pca: Annotated[bool, typer.Option("--no-pca", help="Without pca_features.png.")] = False,
    compat: Annotated[
        bool, typer.Option("--compat", help="Mismatch relative to each map, as the original tool's.")
    ] = False,
    pooling: Annotated[
        Pooling, typer.Option(help="Tokens whose mean is the embedding: all with CLS, or the patches alone.")
    ] = Pooling.all,
    metrics: Annotated[
        str, typer.Option(help="Of psnr,ssim,lpips (extra lpips), beside the distances; '' for none.")
    ] = "psnr,ssim",
    fps: Annotated[
        float | None, typer.Option(help="Compare videos on a grid of time.", show_default="every frame, by number")
    ] = None,
    on_length: Annotated[
        OnLength, typer.Option(help="Where video and reference differ in length.")
    ] = OnLength.shortest,
    worst: Annotated[int, typer.Option(help="Most worst frames of a video that get a picture.")] = 24,
    count: Annotated[int, typer.Option(help="Frames that --validate distorts.")] = 8,
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """How alike frames are, by deep features: two images, lists of pairs, a video against the truth or by itself."""
    images = [*(frames or []), *(image for image in (image_a, image_b) if image is not None)]
    asked = [bool(images), config is not None, video is not None, validate is not None].count(True)
    if asked != 1 or (images and len(images) not in (2, 3)) or (reference is not None and video is None):
        raise UsageError(
            "give one of: two or three images, --config PAIRS.json, --video V [--reference TRUTH], --validate FRAMES"
        )
    if not images and config is None and (visualize or compat or no_pca):
        raise UsageError("--visualize, --compat and --no-pca are for images")
    if video is None and (fps is not None or on_length is not OnLength.shortest):
        raise UsageError("--fps and --on-length are for --video")
    from vsim_fast import frame_pairs
    from vsim_fast.pipeline import Timings

    timings = Timings()
    timings.add("import", time.perf_counter() - STARTED)
    spec = _pair_spec(model, model_name, checkpoint)
    common = dict(
        output_dir=out, pooling=pooling.value, metrics=_names(metrics),
        image_size=resize, device=device, precision=precision.value, offline=offline, timings=timings, started=STARTED,
    )  # fmt: skip
    if checkpoint is not None and model_name:
        options = dict(device=device, precision=precision.value, offline=offline)
        spec = frame_pairs.load_pair_encoder(spec, resize, **options)
        frame_pairs.check_model_name(spec, model_name)
    with _progress() as progress:
        if validate is not None:
            result: Any = frame_pairs.validate_metrics(validate, spec, count=count, progress=progress, **common)
        elif video is not None:
            result = frame_pairs.pair_video(
                video, reference, spec, decoder=decoder.value, fps=fps, on_length=on_length.value, worst=worst,
                progress=progress, **common,
            )  # fmt: skip
        else:
            items = [images] if images else frame_pairs.read_config(config)
            result = frame_pairs.pair_images(
                items, spec, visualize=visualize, arrow_stride=arrow_stride, pca=not no_pca, compat=compat,
                progress=progress, **common,
            )  # fmt: skip
    if json_:
        print(json.dumps(result.as_dict(), allow_nan=False))
    elif validate is not None:
        _print_ladders(result)
    elif video is not None:
        _print_video_pair(result)
    else:
        _print_image_pairs(result)
    if result.run.status != "complete":
        raise typer.Exit(EXIT_NOTHING if result.run.status == "nothing" else EXIT_PARTLY)


@app.command("eval")
def evaluate(
    pairs: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="Scored: dedup's pairs.csv, VSC candidates or matches.")
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="True pairs: query_id,ref_id; optionally VSC's times, and family, severity, base. An empty ref_id "
            "lists a query without a copy.",
        ),
    ],
    column: Annotated[str, typer.Option(help="Column of PAIRS that is the score.")] = "score",
    precision: Annotated[float, typer.Option(help="Precision at which recall is taken.")] = 0.9,
    false_share: Annotated[float, typer.Option(help="Share of false pairs at which recall is taken.")] = 0.01,
    bootstrap: Annotated[int, typer.Option(help="Resamples behind the 95 % intervals; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    either_order: Annotated[
        bool, typer.Option("--either-order", help="A pair means both (a, b) and (b, a): one set against itself.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for everything found.", show_default=False)] = None,
    vsc_out: Annotated[
        Path | None, typer.Option(help="CSV file for the pairs as VSC's tools read them.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """How good scored pairs are: average precision, recall, segment AP, per family, with bootstrap intervals."""
    from vsim_fast import evaluation
    from vsim_fast.store import atomic_path

    listed, true = evaluation.read_pairs(pairs, column=column), evaluation.read_truth(truth)
    result = evaluation.evaluate(
        *((listed.both_ways(), true.both_ways()) if either_order else (listed, true)),
        precision=precision, false_share=false_share, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    result.settings.update({"pairs": str(pairs), "truth": str(truth), "column": column, "either_order": either_order})
    if output is not None:
        with atomic_path(output) as partial:
            partial.write_text(json.dumps(result.as_dict(), indent=2, allow_nan=False), encoding="utf-8")
    if vsc_out is not None:
        with atomic_path(vsc_out) as partial:
            evaluation.write_vsc(partial, listed)
    if json_:
        print(json.dumps(result.as_dict(), allow_nan=False))
    else:
        _print_evaluation(result, [path for path in (output, vsc_out) if path is not None])


@app.command()
def dedup(
    paths: Paths = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Look for copies of these (as PATHS; may be repeated) instead.", show_default=False),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the results go, and features to be used again.")] = Path(
        "dedup_results"
    ),
    model: Model = "builtin",
    orientations: Annotated[
        Orientations, typer.Option(help="Also look for mirrored copies, or for turned ones, too.")
    ] = Orientations.mirror,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            help="Videos that are not among PATHS and measure chance (as PATHS); default generated pictures.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(help="List only the best pairs of each video.", show_default=False)] = None,
    min_score: Annotated[float, typer.Option(help="Least score of a pair listed.")] = 0.2,
    decisions: Annotated[
        Path | None,
        typer.Option(help="Marks saved by the page.", show_default="decisions.json of the output folder, if any"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read files again that could not be read before.")
    ] = False,
    device: Device = "auto",
    precision: OfEncoder = Precision.auto,
    execution: HowToRun = Execution.eager,
    decoder: OfVideos = Decoder.auto,
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """Find copies among videos: groups, which one to keep and why, and a page to check them. Nothing is deleted."""
    if not paths:
        raise UsageError("give folders or files: vsim dedup PATHS...")
    from vsim_fast.deduplication import dedup as run
    from vsim_fast.pipeline import Timings

    timings = Timings()
    timings.add("import", time.perf_counter() - STARTED)
    with _progress() as progress:
        result = run(
            paths, against=against or None, output_dir=output_dir, encoder=_encoder_spec(model),
            orientations=orientations.value, noise=noise or (), top=top, min_score=min_score, decisions=decisions,
            retry_failed=retry_failed, device=device, precision=precision.value, execution=execution.value,
            decoder=decoder.value, offline=offline, progress=progress, timings=timings, started=STARTED,
        )  # fmt: skip
    if json_:
        print(result.model_dump_json())
    else:
        _print_duplicates(result, against=bool(against))
    if result.status != "complete":
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def embed(
    paths: Paths = None,
    video_dir: Annotated[str | None, typer.Option(help="The same, as an option.", show_default=False)] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the results go; a run into it again goes on.")] = Path(
        "embeddings"
    ),
    model: Model = "builtin",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the encoder's input; default the model's own.", show_default=False)
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames taken per second.")] = 1.0,
    max_frames: Annotated[int, typer.Option(help="Most frames per video; more are thinned out evenly.")] = 100,
    keep: Annotated[
        str, typer.Option(help="Features to store: of patches,cls,attention,pooled; the embedding always is.")
    ] = "pooled",
    save_format: Annotated[SaveFormat, typer.Option(help="Of the embedding of each video.")] = SaveFormat.both,
    consolidated: Annotated[
        bool | None,
        typer.Option(
            "--consolidated/--no-consolidated", help="All embeddings in one JSON.", show_default="up to 10,000 videos"
        ),
    ] = None,
    summary: Annotated[bool, typer.Option("--summary/--no-summary", help="Write summary.json.")] = True,
    layout: Annotated[Layout, typer.Option(help="Of the store's files.")] = Layout.safetensors,
    device: Annotated[
        str, typer.Option(help="auto (every GPU, else the CPU), cpu, mps, cuda:N; several with commas, a process each.")
    ] = "auto",
    precision: OfEncoder = Precision.auto,
    execution: HowToRun = Execution.eager,
    decoder: OfVideos = Decoder.auto,
    workers: Annotated[
        int | None, typer.Option(help="Videos decoded at a time.", show_default="cores, at most 4; 8 on a GPU")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds without progress until a decoder is ended.")] = 120.0,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only what matches this pattern, such as '*.mp4' (may be repeated).", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Nothing that matches this pattern, such as 'raw/**' (may be repeated).", show_default=False),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="A folder of images is a video.")] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Keep local copies of URLs there.", show_default="in the output folder, until the end"),
    ] = None,
    cache_gb: Annotated[float, typer.Option(help="How much those may take together.")] = 10.0,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch from addresses that are not public, too.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="I/N: only each N-th video from the I-th on.", show_default=False)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read files again that could not be read before.")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(help="End the run when more videos than this have failed.", show_default=False)
    ] = None,
    engine: Annotated[EngineKind, typer.Option(help="ray: on a Ray cluster (extra ray).")] = EngineKind.local,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster: auto, HOST:PORT.", show_default="one for this run")
    ] = None,
    progress_: Annotated[
        ProgressKind, typer.Option("--progress", help="A bar, lines, or JSON lines on stderr.")
    ] = ProgressKind.auto,
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """Embeddings and features of many videos. Whatever ends a run, the next one into the same folder goes on."""
    paths = [*(paths or []), *([video_dir] if video_dir is not None else [])]
    if not paths:
        raise UsageError("give folders or files: vsim embed PATHS...")
    if not 0 < cache_gb < float("inf"):
        raise UsageError(f"--cache-gb must be above 0, got {cache_gb:g}")
    from vsim_fast.batch import embed as run
    from vsim_fast.pipeline import Timings

    timings = Timings()
    timings.add("import", time.perf_counter() - STARTED)
    # Ray prints what happens to its workers on stdout.
    with _progress(progress_.value) as progress, _drained_by_interrupt() as stop, redirect_stdout(sys.stderr):
        result = run(
            paths, output_dir=output_dir, encoder=_encoder_spec(model), image_size=image_size, fps=fps,
            max_frames=max_frames, keep=[name.strip() for name in keep.split(",") if name.strip()],
            save_format=save_format.value, consolidated=consolidated, summary=summary, layout=layout.value,
            device=device, precision=precision.value, execution=execution.value, decoder=decoder.value,
            workers=workers, timeout=timeout, include=include or (), exclude=exclude or (), images=images,
            cache_dir=cache_dir, cache_bytes=int(cache_gb * 2**30), allow_private=allow_private, shard=_shard(shard),
            retry_failed=retry_failed, max_failures=max_failures, offline=offline, engine=engine.value,
            address=address, stop=stop, progress=progress, timings=timings, started=STARTED,
        )  # fmt: skip
    if json_:
        print(result.model_dump_json())
    else:
        _print_embedded(result)
    if code := EMBED_CODES[result.status]:
        sys.exit(code)  # an interrupted run has said so: typer.Exit would have it said again


EMBED_CODES = {
    "complete": 0, "partial": EXIT_PARTLY, "nothing": EXIT_NOTHING, "interrupted": EXIT_INTERRUPTED,
    "stopped": EXIT_ERROR,
}  # fmt: skip


@app.command()
def status(folder: Annotated[Path, typer.Argument(help="Output folder of embed.")], json_: Json = False) -> None:
    """How far the videos of an output folder are, what failed and why; also while a run works there."""
    from vsim_fast.batch.inspection import batch_status

    found = batch_status(folder)
    if json_:
        print(json.dumps(found))
    else:
        _print_status(found)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Output folder of embed.")], json_: Json = False) -> None:
    """Read every file of an output folder and compare it with what was written. Damaged ones are made again by the
    next run."""
    from vsim_fast.batch.inspection import verify as run

    found = run(folder)
    if json_:
        print(found.model_dump_json())
    else:
        for problem in found.problems:
            print(f"{problem.file}: {problem.reason}", file=sys.stderr)
        print(f"the files of {found.videos} videos read, {len(found.problems)} damaged or missing")
    if found.problems:
        raise typer.Exit(EXIT_PARTLY)


@app.command()
def search(
    query: Annotated[
        str | None, typer.Argument(help="Image, video, or .npy with a vector of the store.", show_default=False)
    ] = None,
    like: Annotated[str | None, typer.Option(help="The same, as an option.", show_default=False)] = None,
    store: Annotated[Path, typer.Option(help="Output folder of embed.")] = Path("embeddings"),
    top: Annotated[int, typer.Option(help="Videos to list.")] = 10,
    level: Annotated[
        SearchLevel | None,
        typer.Option(help="Compare whole videos, or their frames.", show_default="frame for an image, else video"),
    ] = None,
    backend: Annotated[SearchBackend, typer.Option(help="faiss and lance are extras.")] = SearchBackend.exact,
    duplicates: Annotated[
        float | None,
        typer.Option(
            "--near-duplicates", help="Instead: all pairs of videos at least this alike (cosine).", show_default=False
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file, or CSV of the pairs.", show_default=False)] = None,
    device: Device = "auto",
    offline: Offline = False,
    json_: Json = False,
) -> None:
    """The videos of a store most like an image or a video, or those most like each other."""
    if [query is not None, like is not None, duplicates is not None].count(True) != 1:
        raise UsageError("give one query: vsim search QUERY (or --like QUERY, or --near-duplicates COSINE)")
    from vsim_fast import vector_search
    from vsim_fast.store import atomic_path

    if duplicates is not None:
        pairs = vector_search.near_duplicates(store, duplicates, device=device)
        if output is not None:
            vector_search.write_near_duplicates(output, pairs)
        if json_:
            print(json.dumps({"pairs": [pair._asdict() for pair in pairs]}))
        else:
            table = _table("score", "query", "reference")
            for pair in pairs[:SHOWN_GROUPS]:
                table.add_row(f"{pair.score:.4f}", _escape(pair.query), _escape(pair.ref))
            _console().print(table)
            to = f" -> {_printable(str(output))}" if output is not None else ""
            print(f"{len(pairs)} pairs of videos with a cosine of {duplicates:g} or more{to}")
        return
    asked = query if query is not None else like
    if level is None:
        level = SearchLevel.frame if vector_search.is_image(asked) else SearchLevel.video
    found = vector_search.search(
        asked, store, k=top, level=level.value, backend=backend.value, device=device, offline=offline
    )
    if output is not None:
        with atomic_path(output) as partial:
            partial.write_text(found.model_dump_json(indent=2), encoding="utf-8")
    if json_:
        print(found.model_dump_json())
        return
    table = _table("", "score", "video", "at", "query at")
    for hit in found.hits:
        times = ("" if t is None else f"{t:.2f} s" for t in (hit.pts_seconds, hit.query_pts_seconds))
        table.add_row(str(hit.rank), f"{hit.score:.4f}", _escape(hit.path), *times)
    _console().print(table)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    what = "frames" if found.level == "frame" else "embeddings"
    print(f"{found.vectors} {what} of {found.videos} videos searched ({found.backend}); encoder {found.encoder}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Output folder of embed.")],
    to: Annotated[
        Path, typer.Argument(help=".parquet, .npz (as the Video Similarity Challenge reads it), or .lance (a folder).")
    ],
    json_: Json = False,
) -> None:
    """Embeddings of a store for other tools: Parquet, the challenge's npz, or a LanceDB table."""
    from vsim_fast import exports
    from vsim_fast.batch.inspection import store_folder
    from vsim_fast.feature_store import Store

    kinds = {".parquet": exports.export_parquet, ".npz": exports.export_vsc, ".lance": exports.export_lance}
    if to.suffix not in kinds:
        raise UsageError(f"TO must end in one of {', '.join(kinds)}, got {str(to)!r}")
    with Store(store_folder(folder)) as store:
        count = kinds[to.suffix](store, to)
    what = "frames" if to.suffix == ".npz" else "embeddings"
    print(json.dumps({what: count, "to": _printable(str(to))}) if json_ else f"{count} {what} -> {_printable(str(to))}")


@app.command()
def doctor(json_: Json = False) -> None:
    """What this machine can do, and for each thing it cannot: why, and the cure."""
    from vsim_fast.doctor import diagnose, exit_code

    checks = diagnose()
    code = exit_code(checks)
    if json_:
        print(json.dumps({"ok": code == 0, "checks": [check.as_dict() for check in checks]}))
    else:
        table = _table("", "check", "detail", "cure")
        for check in checks:
            mark = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]-[/]"}[check.ok]
            table.add_row(mark, *map(_escape, (check.name, check.detail, check.cure)))
        _console().print(table)
    raise typer.Exit(code)


@app.command()
def models(
    check: Annotated[bool, typer.Option("--check", help="Show on clips what `builtin` tells apart.")] = False,
    media: Annotated[
        Path | None, typer.Option(help="Folder of the real clips for --check.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """The encoders, and what each needs."""
    if check:
        from dataclasses import asdict

        from vsim_fast.models import check_builtin, render_rows

        rows = check_builtin(media)
        ok = all(row.ok for row in rows)
        if json_:
            print(json.dumps({"ok": ok, "rows": [asdict(row) for row in rows]}))
        else:
            _console().print(render_rows(rows))
        if not ok:
            raise typer.Exit(EXIT_ERROR)
        return
    from vsim_fast.encode import known_encoders

    encoders = known_encoders()
    if json_:
        print(json.dumps({"encoders": encoders}))
    else:
        table = _table("spec", "what", "needs")
        for encoder in encoders:
            table.add_row(*(_escape(str(encoder[key])) for key in ("spec", "what", "needs")))
        _console().print(table)


@app.command()
def bench(
    show: Annotated[bool, typer.Option("--show", help="Print the recorded rows instead of measuring.")] = False,
    rows: Annotated[Path, typer.Option(help="File or folder of rows.")] = Path("bench/results"),
    op: Annotated[str, typer.Option(help="Show only ops whose name contains this.", show_default=False)] = "",
    json_: Json = False,
) -> None:
    """Measured speed beside its peers: run the suite of a source checkout, or show its rows."""
    if not show:
        import subprocess

        if op:
            raise UsageError("--op chooses among recorded rows: use it with --show")
        if not Path("bench/test_ops.py").exists():
            raise UsageError("bench measures from a source checkout: run it in its root, or use --show --rows PATH")
        raise typer.Exit(subprocess.run([sys.executable, "-m", "pytest", "bench", "--rows", str(rows)]).returncode)
    from dataclasses import asdict

    from vsim_fast.benchmark import latest, named, read_rows, table, terminal_table

    if not rows.exists():
        raise UsageError(f"--rows must be a file or folder of benchmark rows, got {str(rows)!r}")
    try:
        recorded = read_rows(rows)
    except ValueError as error:
        raise UsageError(f"--rows: {error}") from None
    if not recorded:
        raise UsageError(f"--rows must be a file or folder of benchmark rows, got one without any: {str(rows)!r}")
    try:
        shown = named(latest(recorded), op)
    except ValueError as error:
        raise UsageError(f"--op: {error}") from None
    if json_:
        print(json.dumps({"rows": [asdict(row) for row in shown]}))
    elif (console := _console()).is_terminal:
        console.print(terminal_table(shown, recorded))
    else:
        print(table(shown, recorded))


class _Bar:
    """Progress on stderr: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, *, plain: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar_shown = self.console.is_terminal and not plain
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.bar_shown)
        self.tasks: dict[str, Any] = {}
        self.last_line = time.perf_counter()

    def plan(self, frames: int, array_bytes: int) -> None:
        noun = "frame" if frames == 1 else "frames"
        self.console.print(f"{frames} {noun}, arrays of {_size(array_bytes)}", highlight=False)

    def advance(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total)
        self.bar.update(self.tasks[stage], completed=done)
        now = time.perf_counter()
        if not self.bar_shown and now - self.last_line > 10:
            self.last_line = now
            print(f"{stage}: {done} of {total}", file=sys.stderr)

    def batch(self, snapshot: Any) -> None:
        ended = snapshot.done + snapshot.failed
        facts = (
            f"{snapshot.videos_per_second:.1f} videos/s, {snapshot.frames_per_second:.0f} frames/s, decoders "
            f"{snapshot.decoders_busy:.0%}, encoder {snapshot.encoder_busy:.0%}, {snapshot.failed} failed"
        )
        if "videos" not in self.tasks:
            self.tasks["videos"] = self.bar.add_task("videos", total=snapshot.total)
        self.bar.update(self.tasks["videos"], completed=ended, total=snapshot.total, description=f"videos ({facts})")
        now = time.perf_counter()
        if not self.bar_shown and now - self.last_line > 10:
            self.last_line = now
            left = "" if snapshot.seconds_left is None else f", {snapshot.seconds_left:.0f} s left"
            print(f"{ended} of {snapshot.total} videos: {facts}{left}", file=sys.stderr, flush=True)


class _JsonLines:
    """Progress as one JSON object per line on stderr, for machines."""

    def advance(self, stage: str, done: int, total: int) -> None:
        print(json.dumps({"stage": stage, "done": done, "total": total}), file=sys.stderr, flush=True)

    def batch(self, snapshot: Any) -> None:
        print(snapshot.model_dump_json(), file=sys.stderr, flush=True)


@contextmanager
def _progress(kind: str = "auto"):
    if kind == "json":
        yield _JsonLines()
        return
    bar = _Bar(plain=kind == "plain")
    with bar.bar:
        yield bar


@contextmanager
def _drained_by_interrupt():
    """An event that the first Ctrl-C sets; the second raises KeyboardInterrupt."""
    import threading

    stop = threading.Event()

    def interrupted(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("finishing what has begun; interrupt again to end at once", file=sys.stderr, flush=True)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a background job of a script: Ctrl-C is not for it
        yield stop
        return
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise UsageError(f"--shard must be I/N with 1 <= I <= N, got {text!r}")
    return int(first), int(count)


def _print_analysis(summary: Any) -> None:
    from rich.console import Console

    table = _table("", "mean", "std", "min", "max", "shape")
    for name, stats in summary.statistics.items():
        numbers = (f"{stats[key]:.4f}" for key in ("mean", "std", "min", "max"))
        table.add_row(name, *numbers, "×".join(map(str, stats["shape"])))
    Console().print(table)
    for note in summary.notes:
        print(f"note: {note}", file=sys.stderr)
    size = sum(summary.outputs.values())
    print(
        f"{summary.frames} frames in {summary.timings['total']:.1f} s -> {summary.output_dir} "
        f"({len(summary.outputs) + 1} files, {_size(size)}); decoder {summary.decoder['backend']}, "
        f"{_of_encoder(summary.encoder)}"
    )


def _print_comparison(result: Any) -> None:
    table = _table("score", "", "")
    meanings = {
        "temporal_derivative": "changes of the embedding, frame to frame",
        "multiscale_derivative": "the same at three distances",
        "trajectory_stats": "path of the centre of attention: statistics",
        "trajectory_dtw": "path of the centre of attention: course",
        "semantic_baseline": "mean embedding, blind to order",
        "order": "1 same way, 0.5 cannot tell, 0 reversed",
        "match": "share of changes that the alignment explains",
    }
    for name, value in result.scores.items():
        table.add_row(name, f"{value:.4f}", meanings[name])
    table.add_row("fusion", f"{result.fusion:.4f}", _fusion_formula(result))
    _console().print(table)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{result.verdict} ({result.rule})")
    backends = " and ".join(sorted({video.decoder["backend"] for video in (result.video1, result.video2)}))
    print(
        f"{result.video1.frames} and {result.video2.frames} frames in {result.timings['total']:.1f} s -> "
        f"{result.output_dir} (comparison.json, {', '.join(result.outputs)}); decoder {backends}, "
        f"{_of_encoder(result.encoder)}"
    )


def _fusion_formula(result: Any) -> str:
    if result.nonsemantic is None:
        return "the semantic score alone: no order to compare"
    return f"{result.alpha:g} · semantic + {1 - result.alpha:g} · {result.nonsemantic:.4f} (2 · order - 1)"


def _print_pairs(result: Any) -> None:
    names = list(result.pairs[0].scores)
    table = _table("video 1", "video 2", *(name.replace("_", " ") for name in names), "fusion", "verdict")
    for pair in result.pairs:
        paths = (_escape(Path(path).name) for path in (pair.video1, pair.video2))
        table.add_row(*paths, *(f"{pair.scores[name]:.3f}" for name in names), f"{pair.fusion:.3f}", pair.verdict)
    _console().print(table)
    for failure in result.failed:
        print(f"not read: {failure.error}", file=sys.stderr)
    for note in (
        *result.notes,
        *(f"{Path(video.path).name}: {note}" for video in result.videos for note in video.notes),
    ):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{len(result.pairs)} pairs in {result.timings['total']:.1f} s -> {result.output_dir} (comparison.json); "
        f"{_of_encoder(result.encoder)}"
    )


SHOWN_GROUPS, SHOWN_NOTES, SHOWN_FRAMES = 30, 20, 12


def _pair_spec(model: str, model_name: str | None, checkpoint: Path | None) -> str:
    """The encoder by the options of the original tool, or by ours. A checkpoint says itself which model it holds."""
    if model != "builtin" and (model_name or checkpoint):
        raise UsageError("give one of --model, --model-name and --checkpoint")
    if checkpoint is not None:
        return f"vfi:{checkpoint}"
    return f"timm:{model_name}" if model_name else _encoder_spec(model)


def _names(listed: str) -> list[str]:
    """Each once, of a list with commas."""
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


def _print_image_pairs(result: Any) -> None:
    pairs = [one for one in result.results if hasattr(one, "image_a")]
    triplets = [one for one in result.results if not hasattr(one, "image_a")]
    run = result.run
    if pairs:
        metrics = run.settings["metrics"]
        table = _table("pair", "image a", "image b", "cosine distance", "patch distance", *metrics)
        for one in pairs[:SHOWN_GROUPS]:
            names = (_escape(name) for name in _told_apart(one.path_a, one.path_b))
            numbers = (f"{one.cosine_distance:.4f}", f"{one.patch_distance:.4f}")
            table.add_row(str(one.number), *names, *numbers, *(_figure(getattr(one, name), 3) for name in metrics))
        _console().print(table)
    if triplets:
        table = _table("triplet", "middle frame", "cosine distance", "patch distance", "stands out")
        for one in triplets[:SHOWN_GROUPS]:
            numbers = (f"{one.cosine_distance:.4f}", f"{one.patch_distance:.4f}", f"{one.stands_out:+.4f}")
            table.add_row(str(one.number), _escape(one.image_t), *numbers)
        _console().print(table)
    if (rest := max(len(pairs), len(triplets)) - SHOWN_GROUPS) > 0:
        print(f"and {rest} more, see {run.output_dir}/results.json")
    for failure in run.failed[:SHOWN_GROUPS]:
        print(f"not compared: pair {failure.number}: {failure.reason}", file=sys.stderr)
    _print_note_lines(run.notes, ((f"pair {one.number}", one.notes) for one in result.results), "pairs")
    averages = ""
    if run.compared:
        averages = f"; on average cosine distance {run.mean_cosine_distance:.4f}, patch {run.mean_patch_distance:.4f}"
    print(
        f"{run.compared} of {run.compared + len(run.failed)} compared ({run.images} images) in "
        f"{run.timings['total']:.1f} s{averages} -> {run.output_dir}; {_of_encoder(run.encoder)}"
    )


def _print_ladders(result: Any) -> None:
    study, run = result.study, result.run
    names = dict.fromkeys(name for ladder in study.ladders for name in ladder.metrics)
    table = _table("distortion", *(name.replace("_", " ") for name in names), "frames", "strengths")
    for ladder in study.ladders:
        figures = (_figure(ladder.metrics[n].mean if n in ladder.metrics else None, 2) for n in names)
        strengths = f"{ladder.strengths[0]:g} - {ladder.strengths[-1]:g}: {ladder.strength}"
        table.add_row(ladder.distortion.replace("_", " "), *figures, str(ladder.frames), strengths)
    _console().print(table)
    print("Spearman's correlation with the strength, mean over the frames: 1 means worse at every step")
    for ladder in study.ladders:
        if ladder.left_out:
            print(f"note: {ladder.distortion}: changes nothing in {len(ladder.left_out)} frames", file=sys.stderr)
    for skipped in study.skipped[:SHOWN_GROUPS]:
        print(f"skipped: {skipped.name}: {skipped.reason}", file=sys.stderr)
    _print_note_lines(run.notes, ())
    print(
        f"{len(study.frames)} of {len(study.frames) + len(study.skipped)} frames in {run.timings['total']:.1f} s -> "
        f"{run.output_dir} (validation.json); {_of_encoder(run.encoder)}"
    )


def _told_apart(a: str, b: str) -> tuple[str, str]:
    """Names of two files, with their folders where the names alone are equal."""
    names = os.path.basename(a), os.path.basename(b)
    return names if names[0] != names[1] else (a, b)


def _print_video_pair(result: Any) -> None:
    from vsim_fast.frame_pairs import verdict

    (one,), run = result.results, result.run
    if one.worst_frames:
        metrics = [name for name in run.settings["metrics"] if getattr(one, name) is not None]
        table = _table("frame", "at", "", "excess", "patch distance", "cosine distance", *metrics)
        for worst in one.worst_frames[:SHOWN_FRAMES]:
            numbers = (worst.excess, worst.patch_distance, worst.cosine_distance)
            shown = (*(_figure(number, 4) for number in numbers), *(_figure(getattr(worst, n), 3) for n in metrics))
            table.add_row(str(worst.frame), f"{worst.time_seconds:.2f} s", worst.kind, *shown)
        _console().print(table)
        if (rest := len(one.worst_frames) - SHOWN_FRAMES) > 0:
            print(f"and {rest} more, see {run.output_dir}/results.json")
    _print_note_lines(run.notes, ())
    print(verdict(one))
    backends = " and ".join(sorted({decoder["backend"] for decoder in run.decoder.values()}))
    print(
        f"{run.timings['total']:.1f} s -> {run.output_dir} (report.html, frames.csv, {len(run.outputs)} files); "
        f"decoder {backends}, {_of_encoder(run.encoder)}"
    )


def _print_duplicates(result: Any, *, against: bool) -> None:
    try:
        folder = os.path.commonpath([os.path.dirname(file.path) for file in result.files])
    except ValueError:  # some are relative
        folder = ""

    def shown(path: str) -> str:  # what lies in one folder needs not say so in every row
        return _escape(os.path.relpath(path, folder) if folder else path)

    if result.groups:
        table = _table("group", "score", "", "video", "why")
        for n, group in enumerate(result.groups[:SHOWN_GROUPS], 1):
            for member in group.members:
                score = "" if member.path == group.medoid else f"{member.score:.3f}"
                keep = "[green]keep[/]" if member.keep else ""
                table.add_row(str(n), score, keep, shown(member.path), _escape(member.reason))
        _console().print(table)
    if result.matches:
        table = _table("query", "reference", "score", "verdict", "orientation")
        for match in result.matches[:SHOWN_GROUPS]:
            numbers = (f"{match.score:.3f}", match.verdict, match.orientation)
            table.add_row(shown(match.query), shown(match.ref), *numbers)
        _console().print(table)
    if (rest := max(len(result.groups), len(result.matches)) - SHOWN_GROUPS) > 0:
        print(f"and {rest} more, see {result.output_dir}/report.html")
    for file in result.files:
        if file.status != "ok":
            print(
                f"not {'read' if file.status == 'failed' else 'compared'}: {file.path}: {file.reason}", file=sys.stderr
            )
    _print_notes(result)
    counts = result.counts
    grouped = sum(len(group.members) for group in result.groups)
    found = f"{len(result.matches)} matches" if against else f"{len(result.groups)} groups of {grouped} videos"
    decoders = " and ".join(sorted({file.decoder for file in result.files if file.decoder}))
    print(
        f"{counts['videos']} videos ({counts['features_computed']} new), {counts['pairs']} pairs "
        f"({counts['pairs_computed']} new) in {result.timings['total']:.1f} s: {found} -> {result.output_dir} "
        f"({', '.join(result.outputs)}, summary.json); decoder {decoders}, "
        f"{_of_encoder(result.encoder)}"
    )


def _print_embedded(result: Any) -> None:
    for video in result.failed_videos[:SHOWN_GROUPS]:
        what = "given up" if video["status"] == "quarantined" else "not read"
        print(f"{what}: {video['video_path']}: {video['reason']}", file=sys.stderr)
    if (rest := len(result.failed_videos) - SHOWN_GROUPS) > 0:
        print(f"and {rest} more that failed, see summary.json", file=sys.stderr)
    _print_note_lines(result.notes, ((video["video_path"], video["notes"]) for video in result.results))
    seconds = result.timings["total"]
    decoders = " and ".join(sorted({video["decoder"] for video in result.results if video["decoder"]})) or "none"
    state = {"interrupted": "interrupted: ", "stopped": "stopped, too many failures: "}.get(result.status, "")
    print(
        f"{state}{result.processed} of {result.total_videos} videos have their embedding ({result.computed} new, "
        f"{result.frames} frames), {result.failed} failed, in {seconds:.1f} s -> {result.output_dir}; "
        f"decoder {decoders}, {_of_encoder(result.encoder)}"
    )


def _print_status(found: dict[str, Any]) -> None:
    print(
        f"{found['folder']}: {found['files']} files done ({found['videos']} contents, "
        f"{_size(found['feature_bytes'])}), {found['failed']} failed, {found['quarantined']} given up"
    )
    for failure in found["failures"]:
        print(f"{failure['status']}: {failure['path']}: {failure['reason']}")
    if (rest := found["failed"] + found["quarantined"] - len(found["failures"])) > 0:
        print(f"and {rest} more that failed")
    if writer := found["writer"]:
        print("a run works there: " + ", ".join(f"{name} {value}" for name, value in writer.items()))
    if last := found["last_run"]:
        print(f"last run: {last['status']}, {last['computed']} new videos in {last['seconds']:.1f} s")


def _print_notes(result: Any) -> None:
    """Those on all of it, then each kind of note on videos once."""
    _print_note_lines(result.notes, ((file.path, file.notes) for file in result.files))


def _print_note_lines(notes: list[str], of_items: Iterable[tuple[str, list[str]]], what: str = "videos") -> None:
    items: dict[str, list[str]] = {}
    for name, notes_of_one in of_items:
        for note in notes_of_one:
            items.setdefault(note, []).append(name)
    whose = {note: names[0] if len(names) == 1 else f"{len(names)} {what}" for note, names in items.items()}
    lines = [*notes, *(f"{who}: {note}" for note, who in whose.items())]
    for line in lines[:SHOWN_NOTES]:
        print(f"note: {line}", file=sys.stderr)
    if len(lines) > SHOWN_NOTES:
        print(f"note: {len(lines) - SHOWN_NOTES} more in summary.json", file=sys.stderr)


def _print_evaluation(result: Any, written: list[Path]) -> None:
    from vsim_fast.evaluation import MEASURES

    settings = result.settings
    chosen = {
        "recall_at_precision": f"recall at precision {settings['precision']:g}",
        "recall_at_false_share": f"recall at {100 * settings['false_share']:.3g} % false pairs",
    }
    table = _table("measure", "", "95 % interval", "from score", "")
    for name, measure in result.totals.items():
        label = chosen.get(name, name.replace("_", " "))
        interval = "-" if measure.low is None else f"{measure.low:.4f} - {measure.high:.4f}"
        threshold = result.thresholds.get(name)
        score = "" if threshold is None else f"{threshold:.4g}"
        table.add_row(label, _figure(measure.value, 4), interval, score, MEASURES[name])
    _console().print(table)
    if result.groups:
        names = [*result.totals, "false_passing"]
        labels = (chosen.get(name, name.replace("_", " ")) for name in names)
        table = _table("family", "severity", "true pairs", "found", *labels)
        for group in result.groups:
            of = ("all" if label is None else _escape(_printable(label)) for label in (group.family, group.severity))
            figures = (_figure(group.measures[name].value, 3) for name in names)
            table.add_row(*of, str(group.true_pairs), str(group.found), *figures)
        _console().print(table)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = f"{result.found} of {result.true_pairs} true pairs and {result.false_pairs} false ones listed"
    intervals = f"{settings['bootstrap']} resamples of {result.bases} bases, seed {settings['seed']}"
    if result.totals["uAP"].low is None:
        intervals = "no intervals"
    to = f" -> {', '.join(_printable(str(path)) for path in written)}" if written else ""
    print(f"{result.queries} queries, {counts}; {intervals}{to}")


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _printable(text: str) -> str:
    """Names may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _synthetic_study(output_dir: Path, json_: bool) -> None:
    """Exit code 1, and one line per hypothesis, where the study fails."""
    from vsim_fast.motion_study import motion_patterns, run_motion_study
    from vsim_fast.report import write_trajectories
    from vsim_fast.store import OutputFolder, output_errors

    study = run_motion_study()
    with OutputFolder(output_dir) as out:
        write_trajectories(out.file("trajectories.png"), motion_patterns(noise=study.noise))
        path = out.file("motion_study.json")
        with output_errors(path):
            path.write_text(study.model_dump_json(indent=2), encoding="utf-8")
    if json_:
        print(study.model_dump_json())
    else:
        table = _table("", "score", "same", "apart", "least margin", "required", "")
        for row in study.separations:
            numbers = (f"{x:.3f}" for x in (row.same_median, row.cross_median, row.margin_min))
            claim = ("-", "no claim") if row.required is None else (f"{row.required:g}", "yes" if row.holds else "NO")
            table.add_row(row.hypothesis, row.score, *numbers, *claim)
        _console().print(table)
        for hypothesis, statement in {row.hypothesis: row.statement for row in study.separations}.items():
            print(f"{hypothesis}: {statement}")
        print(f"{study.seeds} trials, noise {study.noise:g} -> {output_dir} (trajectories.png, motion_study.json)")
    for failure in study.failures():
        print(f"error: {failure}", file=sys.stderr)
    if not study.ok:
        raise typer.Exit(EXIT_ERROR)


def _of_encoder(encoder: dict[str, Any]) -> str:
    weights = " (random weights)" if encoder["random_weights"] else ""
    return f"device {encoder['device']}, {encoder['token_dtype']}, encoder {encoder['spec']}{weights}"


def _encoder_spec(model: str) -> str:
    """A plain folder, as the original tool's --model_path takes it, means a VideoLLaMA3 checkpoint."""
    return f"videollama3:{model}" if model and ":" not in model and Path(model).is_dir() else model


def _console() -> Any:
    from rich.console import Console

    return Console()


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


DINOV3 = "timm:vit_large_patch16_dinov3"
"""What the original comparison tool loads from its --model-path."""
ALIASES = {"--model-path": "--model", "--encoder": "--model"}


def main(arguments: list[str] | None = None) -> None:
    """Entry point: option names may be written with `_` or `-`; every error is one line."""
    arguments = [_option(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # so that what is half-written is removed
    try:
        code = app(arguments, standalone_mode=False)  # otherwise wrong usage is a box of several lines
    except WrongUsage as error:
        code = EXIT_ERROR
        if message := error.format_message():  # none where only the help was printed
            _fail("UsageError", f"{message.rstrip('.')}; see --help", arguments)
    except VsimError as error:
        code = EXIT_NOTHING if isinstance(error, CorruptVideo) else EXIT_ERROR
        _fail(type(error).__name__, str(error), arguments)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        code = EXIT_ERROR
        cure = ", or --reduce stats" if "analyze" in arguments else ""
        _fail("OutOfMemory", f"out of memory; use a smaller --image-size or --max-frames{cure}", arguments)
    except (typer.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        _fail("Interrupted", "interrupted", arguments)
    sys.exit(code)


def _fail(kind: str, message: str, arguments: list[str]) -> None:
    message = " ".join(message.split())
    print(f"error: {message}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": {"type": kind, "message": message}}))


def _option(argument: str) -> str:
    """An option in its one spelling; anything else unchanged."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    return ALIASES.get(name, name) + equals + value


def run() -> None:
    """The console command. A process of its own need not collect garbage among the libraries it imports (0.5 s), nor
    take them down piece by piece at its end (1 s): what was written is whole by then."""
    gc.set_threshold(200_000, 50, 50)
    try:
        main()
    except SystemExit as end:
        with suppress(OSError):  # whoever read the output may have gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":
    run()

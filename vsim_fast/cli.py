"""The `vsim` command: parse, call, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
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


class Decoder(StrEnum):
    auto = "auto"
    pyav = "pyav"
    nvdec = "nvdec"


class Reduce(StrEnum):
    stats = "stats"
    topk = "topk"


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
            help="builtin, timm:NAME[@PATH|@random], hf:ID-or-DIR[@random], videollama3:DIR; a plain folder means "
            "videollama3:DIR.",
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
    precision: Annotated[Precision, typer.Option(help="Of the encoder.")] = Precision.auto,
    decoder: Annotated[Decoder, typer.Option(help="nvdec decodes on the GPU.")] = Decoder.auto,
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
            decoder=decoder.value, visualize_positions=visualize_positions, reduce=reduce and reduce.value, topk=topk,
            dtype=dtype.value, compress=compress, image_fps=image_fps, offline=offline, progress=progress,
            timings=timings, started=STARTED,
        )  # fmt: skip
    if json_:
        print(summary.model_dump_json())
    else:
        _print_analysis(summary)
    if summary.status != "complete":
        raise typer.Exit(EXIT_PARTLY)


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
    json_: Json = False,
) -> None:
    """Measured speed beside its peers: run the suite of a source checkout, or show its rows."""
    if not show:
        import subprocess

        if not Path("bench/test_ops.py").exists():
            raise UsageError("bench measures from a source checkout: run it in its root, or use --show --rows PATH")
        raise typer.Exit(subprocess.run([sys.executable, "-m", "pytest", "bench", "--rows", str(rows)]).returncode)
    from dataclasses import asdict

    from vsim_fast.benchmark import latest, read_rows, table

    if not rows.exists():
        raise UsageError(f"--rows must be a file or folder of benchmark rows, got {str(rows)!r}")
    recorded = latest(read_rows(rows))
    print(json.dumps({"rows": [asdict(row) for row in recorded]}) if json_ else table(recorded))


class _Bar:
    """Progress on stderr: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
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
        if not self.console.is_terminal and (now - self.last_line > 10):
            self.last_line = now
            print(f"{stage}: {done} of {total}", file=sys.stderr)


@contextmanager
def _progress():
    bar = _Bar()
    with bar.bar:
        yield bar


def _print_analysis(summary: Any) -> None:
    from rich.console import Console

    table = _table("", "mean", "std", "min", "max", "shape")
    for name, stats in summary.statistics.items():
        numbers = (f"{stats[key]:.4f}" for key in ("mean", "std", "min", "max"))
        table.add_row(name, *numbers, "×".join(map(str, stats["shape"])))
    Console().print(table)
    for note in summary.notes:
        print(f"note: {note}", file=sys.stderr)
    encoder, size = summary.encoder, sum(summary.outputs.values())
    print(
        f"{summary.frames} frames in {summary.timings['total']:.1f} s -> {summary.output_dir} "
        f"({len(summary.outputs) + 1} files, {_size(size)}); decoder {summary.decoder['backend']}, "
        f"device {encoder['device']}, {encoder['token_dtype']}, encoder {encoder['spec']}"
        + (" (random weights)" if encoder["random_weights"] else "")
    )


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
        _fail("OutOfMemory", "out of memory; use a smaller --image-size or --max-frames, or --reduce stats", arguments)
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

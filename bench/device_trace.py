"""Profile a hardware-decoded run: no frame crosses to or from the host before it is encoded; how idle is the GPU.

The window runs from the first to the last pixel kernel, so that loading weights before it and writing results behind
it stay outside. Within it a copy to or from the host of at least one luma plane is a frame on the wrong side. Exits
with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

PIXEL_KERNEL = "nv12"  # part of the name of the kernel that turns planes into encoder input


def window(events: list[dict]) -> tuple[float, float]:
    """(start, end) in µs of the time in which frames are between decoder and encoder."""
    kernels = [e for e in events if e["cat"] == "kernel" and PIXEL_KERNEL in e["name"]]
    if not kernels:
        raise SystemExit(f"the trace has no kernel named *{PIXEL_KERNEL}*: frames took another way")
    return min(e["ts"] for e in kernels), max(e["ts"] + e["dur"] for e in kernels)


def host_copies(events: list[dict], at_least: int, start: float, end: float) -> list[dict]:
    """Copies between host and device of `at_least` bytes that begin within start..end."""
    return [
        {"name": e["name"], "bytes": e["args"]["bytes"], "at_ms": (e["ts"] - start) / 1e3}
        for e in events
        if e["cat"] == "gpu_memcpy" and ("HtoD" in e["name"] or "DtoH" in e["name"])
        and e["args"]["bytes"] >= at_least and start <= e["ts"] <= end
    ]  # fmt: skip


def idle_share(events: list[dict], start: float, end: float) -> dict[str, float]:
    """Share of start..end in which the busiest stream, and the whole GPU, run no kernel.

    Kernels of a replayed graph may be reported on streams of the driver's own, whatever stream the graph was launched
    on; they are known by the correlation id of the launch, which all of them share, and are put beside the busiest of
    the others.
    """
    kernels = [e for e in events if e["cat"] == "kernel"]
    launched = Counter(e["args"].get("correlation") for e in kernels)
    streams: dict[int, list[tuple[float, float]]] = defaultdict(list)
    replayed: list[tuple[float, float]] = []
    for e in kernels:
        first, last = max(e["ts"], start), min(e["ts"] + e["dur"], end)
        if first < last:
            correlation = e["args"].get("correlation")
            of_graph = correlation is not None and launched[correlation] > 1
            (replayed if of_graph else streams[e["args"]["stream"]]).append((first, last))

    def busy(spans: list[tuple[float, float]]) -> float:
        total, reached = 0.0, start
        for first, last in sorted(spans):
            total += max(0.0, last - max(first, reached))
            reached = max(reached, last)
        return total

    length = end - start
    everything = [span for spans in (replayed, *streams.values()) for span in spans]
    return {
        "compute_stream": 1 - max(busy(spans + replayed) for spans in streams.values()) / length,
        "gpu": 1 - busy(everything) / length,
    }


def record(work, path: Path) -> list[dict]:
    """Run `work()` under the profiler; the device's events."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, nargs="?", help="H.264 or HEVC video; default as in the benchmark")
    parser.add_argument("--model", default="timm:vit_base_patch14_dinov2@random")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--execution", default="eager", help="as of `vsim analyze`")
    parser.add_argument("--out", type=Path, help="where the findings go as JSON")
    args = parser.parse_args()

    from clips import find_clip

    from vsim_fast import Sampling, analyze, load_encoder, open_video, probe
    from vsim_fast.pipeline import encode_video

    scratch = tempfile.TemporaryDirectory()
    clip = args.clip or find_clip(Path(scratch.name))
    info = probe(clip)
    encoder = load_encoder(args.model, device="cuda", image_size=args.image_size, execution=args.execution)

    def features() -> None:
        sampling = Sampling("stride", stride=1, end_seconds=60)
        options = dict(decoder="nvdec", device=encoder.device, batch_size=encoder.batch_size)
        with open_video(clip, sampling, **options) as reader:
            for _ in encode_video(reader, encoder):
                pass

    def whole() -> None:
        analyze(clip, encoder, output_dir=Path(scratch.name) / "out", fps=1, max_frames=100, decoder="nvdec")

    luma = info.width * info.height
    findings, passed = {"clip": clip.name, "luma_plane_bytes": luma}, True
    features()  # compiles, loads and allocates outside the profile
    for name, work in {"decode to features": features, "analyze": whole}.items():
        events = record(work, Path(scratch.name) / "trace.json")
        start, end = window(events)
        copies = host_copies(events, luma, start, end)
        # `analyze` also brings results home while it runs; nothing of that size may go up.
        wrong = copies if work is features else [copy for copy in copies if "HtoD" in copy["name"]]
        passed &= not wrong
        idle, milliseconds = idle_share(events, start, end), (end - start) / 1e3
        findings[name] = {
            "window_ms": milliseconds, "copies_of_a_plane_or_more": copies, "wrong": len(wrong), "idle": idle,
        }  # fmt: skip
        print(f"{name}: {len(wrong)} frame-sized host copies in {milliseconds:.1f} ms, "
              f"compute stream idle {idle['compute_stream']:.1%}, GPU idle {idle['gpu']:.1%}")  # fmt: skip
        for copy in wrong[:5]:
            print(f"  {copy['name']}: {copy['bytes']} bytes at {copy['at_ms']:.2f} ms")
    if args.out:
        args.out.write_text(json.dumps(findings, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

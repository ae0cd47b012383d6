"""From file to result: `vsim analyze` beside the straightforward script, and the engine beside its two roofs.

Runs of the two programs alternate, so that both meet the same neighbours on a shared machine; a row's speed-up is the
ratio of medians within the run. Weights are random: speed does not depend on them, and nothing is downloaded.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import ROOT, VSIM, run_in_turn
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL, BASE = "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"
PROGRAMS = {  # device -> (model, image size, precisions of ours)
    "cpu": [(SMALL, 448, ("float32", "bfloat16"))],
    "cuda": [(BASE, 224, ("float16",)), (BASE, 518, ("float16",))],
}[DEVICE]
LARGE = "vit_large_patch14_dinov2"
MODELS = {"cpu": [(SMALL, 224)], "cuda": [(BASE, 224), (LARGE, 448), (BASE, 518)]}[DEVICE]
EXACT = "eager fp32"
MODES = {  # device -> provider, precision, execution; the first is what the others are compared with
    "cpu": [
        (EXACT, "float32", "eager"), ("compiled fp32", "float32", "compiled"), ("eager", "bfloat16", "eager"),
        ("compiled", "bfloat16", "compiled"),
    ],
    "cuda": [
        (EXACT, "float32", "eager"), ("eager bfloat16", "bfloat16", "eager"), ("eager", "float16", "eager"),
        ("eager, unfused attention", "float16", "eager"), ("graphs", "float16", "graphs"),
        ("compiled", "float16", "compiled"), ("compiled+graphs", "float16", "compiled+graphs"),
        ("eager float8", "float8", "eager"), ("compiled float8", "float8", "compiled"),
    ],
}[DEVICE]  # fmt: skip
ENGINES = {"cpu": [(SMALL, 224)], "cuda": [(BASE, 224), (BASE, 518)]}[DEVICE]
READERS = 8


@pytest.mark.parametrize(("model", "size", "precisions"), PROGRAMS)
def test_analyze_beside_the_straightforward_script(model, size, precisions, clip, tmp_path, recorder, quick):
    frames, rounds = (8, 1) if quick else (40, 3 if DEVICE == "cpu" else 2)
    options = ["--fps", "1", "--max-frames", str(frames), "--image-size", str(size), "--device", DEVICE]
    baseline = "straightforward"
    script = [sys.executable, str(ROOT / "bench" / "straightforward.py"), str(clip), "--model", model, "--random"]
    ours = [*VSIM, "analyze", str(clip), "--json"]
    programs = {baseline: [*script, *options, "--out", str(tmp_path / baseline)]}
    for precision in precisions:
        out = ["--model", f"timm:{model}@random", "--precision", precision, "--output-dir", str(tmp_path / precision)]
        programs[precision] = [*ours, *options, *out]

    runs = run_in_turn(programs, rounds)

    def positions(name: str) -> np.ndarray:
        return np.load(tmp_path / name / "position_similarities.npz")["position_similarities"]

    for name, results in runs.items():
        _, peak, result = sorted(results, key=lambda one: one[0])[len(results) // 2]
        stages, counted = result["timings"], result["frames"]
        assert counted == runs[baseline][0][2]["frames"], f"{name} took {counted} frames"
        seconds = [one[0] for one in results]
        wall = float(np.median(seconds))
        recorder.add(
            seconds, op="analyze", provider=name if name == baseline else "vsim_fast",
            dtype="float32" if name == baseline else name, shape=f"{clip.stem}-{model}-S{size}-T{counted}",
            baseline=baseline, rate=counted / wall, unit="frames/s", peak_mib=peak, stages=stages,
            max_error=float(np.abs(positions(name) - positions(baseline)).max()),
            note=f"all but encoding: {1 - stages['encode'] / wall:.0%} of wall time; random weights; {DEVICE}",
        )  # fmt: skip


def discard(clip: Path, sampling, device, batch_size: int) -> int:
    """Decode and drop; the number of frames."""
    from vsim_fast import open_video

    count = 0
    with open_video(clip, sampling, device=device, batch_size=batch_size) as reader:
        for batch in reader:
            count += len(batch)
            batch.release()
    return count


@pytest.mark.parametrize(("model", "size"), ENGINES)
def test_engine_beside_its_roofs(model, size, clip, recorder, quick):
    """Frames of the clip to features: all on CUDA, one in four seconds on CPU.

    Roofs: the same frames decoded and dropped; as many resident ones encoded.
    """
    from vsim_fast import Sampling, load_encoder, open_video
    from vsim_fast.pipeline import encode_video

    encoder = load_encoder(f"timm:{model}@random", device=DEVICE, image_size=size)
    sampling = Sampling("stride", stride=1) if DEVICE == "cuda" else Sampling(fps=0.25)

    def decode() -> int:
        return discard(clip, sampling, encoder.device, encoder.batch_size)

    def engine() -> int:
        with open_video(clip, sampling, device=encoder.device, batch_size=encoder.batch_size) as reader:
            return sum(len(batch.index) for batch in encode_video(reader, encoder))

    frames = decode()
    resident = torch.randn(encoder.batch_size, 3, size, size, device=encoder.device).to(encoder.dtype)

    def encode() -> int:
        for start in range(0, frames, encoder.batch_size):
            encoder.forward_in_batches(resident[: min(encoder.batch_size, frames - start)])
        return frames

    work: dict[str, Callable[[], int]] = {"decode roof": decode, "encoder roof": encode, "engine": engine}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    counts = {}
    for round_ in range(2 if quick else 4):
        for name, call in work.items():
            synchronise()
            start = time.perf_counter()
            counts[name] = call()
            synchronise()
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)

    rates = {name: counts[name] / float(np.median(times)) for name, times in seconds.items()}
    slower = min(("decode roof", "encoder roof"), key=rates.get)
    shape = f"{clip.stem}-{model}-S{size}-T{frames}"
    for name, times in seconds.items():
        recorder.add(
            times, op="file to features", provider=name, dtype=str(encoder.dtype).removeprefix("torch."), shape=shape,
            baseline=slower if name == "engine" else "", rate=rates[name], unit="frames/s",
            of_ceiling=rates["engine"] / rates[slower] if name == "engine" else None,
            note=f"batch {encoder.batch_size}; the slower roof is the {slower}; random weights",
        )  # fmt: skip


@pytest.mark.parametrize(("model", "size"), MODELS)
def test_encoder_modes(model, size, recorder, quick):
    """Resident frames encoded in every precision and way to run the forward pass that there is here.

    The weights are such that every block changes the tokens: as they are drawn, LayerScale is 1e-5, and whatever a
    block gets wrong would not show.
    """
    from vsim_fast.encode import timm_encoder
    from vsim_fast.encode.execution import check_execution
    from vsim_fast.encode.network import candidate_dtypes, resolve_device
    from vsim_fast.encode.spec import Spec
    from vsim_fast.errors import VsimError
    from vsim_fast.processor import cpu_has_bfloat16

    device, batches, rounds = resolve_device(DEVICE), 1 if quick else 4 if DEVICE == "cuda" else 2, 1 if quick else 3
    drawn = timm_encoder.load(Spec.parse(f"timm:{model}@random"), image_size=size, fit="squash", offline=True)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in drawn.network.named_parameters():
        if name.endswith("gamma"):
            parameter.fill_(0.3)
        elif name.startswith("blocks") and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    encoders, failed = {}, {}
    for provider, precision, execution in MODES:
        slow = quick and "compiled" in execution
        if slow or (device.type == "cpu" and precision == "bfloat16" and not cpu_has_bfloat16()):
            continue
        check_execution(execution, device)
        dtypes = candidate_dtypes(precision, device)
        encoder = encoders[provider] = copy.deepcopy(drawn).settle(device, dtypes, execution)
        if provider.endswith("unfused attention"):
            for block in encoder.blocks()[:-1]:  # the last one's is watched for the attention row
                block.attn.fused_attn = False
    batch = encoders[EXACT].batch_size
    frames = torch.nn.functional.interpolate(torch.randn(batch, 3, 16, 16), (size, size), mode="bicubic").to(device)

    def encode(name: str, count: int) -> tuple[float, Tensor]:
        """Seconds for `count` batches, and patch cosines [2, P, P] of their first frames."""
        resident = frames.to(encoders[name].dtype)
        synchronise()
        start = time.perf_counter()
        for _ in range(count):
            tokens = encoders[name].forward_in_batches(resident)
        synchronise()
        taken = time.perf_counter() - start
        unit = torch.nn.functional.normalize(tokens.patches[:2].float(), dim=-1)
        return taken, unit @ unit.mT

    first: dict[str, tuple[float, Tensor]] = {}
    for name in encoders:
        try:
            first[name] = encode(name, 1)  # compiles, records
        except (VsimError, RuntimeError) as error:  # of one mode: no reason to lose the rows of the others
            failed[name] = error
    seconds = [{name: encode(name, batches)[0] for name in first} for _ in range(rounds)]
    for name, precision, execution in MODES:
        if name in first:
            taken = [one[name] for one in seconds]
            recorder.add(
                taken, op="encode", provider=name, dtype=precision, shape=f"{model}-S{size}-T{batches * batch}",
                baseline=EXACT, rate=batches * batch / float(np.median(taken)), unit="frames/s",
                max_error=(first[name][1] - first[EXACT][1]).abs().max().item(),
                note=f"{execution}; first batch {first[name][0]:.1f} s; error is that of patch cosines; random weights",
            )  # fmt: skip
    assert not failed, failed


def synchronise() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@pytest.mark.skipif(DEVICE == "cpu", reason="one reader already takes every core of a CPU")
def test_decode_roof_of_many_readers(clip, recorder):
    """Every frame of the clip, by one reader and by several at once, decoded and dropped."""
    from vsim_fast import Sampling

    def decode(_: int) -> int:
        return discard(clip, Sampling("stride", stride=1), DEVICE, 32)

    for readers in (1, READERS):
        seconds = []
        with ThreadPoolExecutor(readers) as pool:
            for _ in range(3):
                start = time.perf_counter()
                frames = sum(pool.map(decode, range(readers)))
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        recorder.add(
            seconds, op="decode", provider=f"{readers} readers", dtype="uint8", shape=f"{clip.stem}-T{frames}",
            baseline="", rate=frames / float(np.median(seconds)), unit="frames/s",
        )  # fmt: skip

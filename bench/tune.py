"""Tile settings of the fused Triton kernels: compiled and counted on any machine, timed and checked on a GPU.

A candidate replaces an entry of a kernel's table `TILES`; everything else is as the package does it. Its floor is the
longest of three times, by rates measured in the same run: bytes that cross memory, bytes that tiles read (through L2
where not from memory), FLOPs of whole tiles. On an H200 at 4.3 TB/s, 790 TFLOP/s and, estimated, 6 TB/s from L2, in µs:

    kernel          memory  tiles  FLOPs
    intra-frame        104    315    172   as in cuBLAS arithmetic should bind; tiles of 128 x 256 read 275
    best_match         125    552    247   the same; 128 x 256: 460. Memory counts the inputs twice, first for the norms
    position            60     39     49   memory: one read of the tensor, so what counts is loads in flight
    nv12                51     55     71   filters are whole matrices: FLOPs fall with a tile's height, reads rise;
                                           under 64 rows the matrix instructions are a warp's, at 60 % of that rate;
                                           issue of 500 instructions per warp and step takes 115 if nothing ever waits
    top_k, 100 of 1M   357    768    249   queries are read again for every tile of vectors, these once per 64 queries
    top_k, 1 of 1M     357    272     31   memory
    inverse_norms       31                 memory
    frame_means         55                 memory

usage: tune.py [--dry-run] [--budget S] [--out FILE] [KERNEL…]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
import triton
from cases import FP16, Case, best_match_case, nv12_case, similarity_case, top_k_case

from vsim_fast import ops
from vsim_fast.ops._triton_compile import CompileCase, compile_case
from vsim_fast.ops.cosine import triton_impl as cosine
from vsim_fast.ops.nv12 import triton_impl as nv12
from vsim_fast.ops.top_k import triton_impl as top_k

SHARED_LIMIT = 227 << 10  # bytes of one program on sm_90
ROUNDS, PASSES = 10, 2


@dataclass(frozen=True)
class Work:
    """What one call moves and does at least, with a given tile."""

    memory: float
    """Bytes of device memory."""
    tiles: float = 0
    """Bytes that tiles read, from L2 where not from memory."""
    flops: float = 0


@dataclass(frozen=True)
class Kernel:
    case: Case
    module: ModuleType
    key: str
    """Its entry in the module's table."""
    compiled: str
    """Name of the compile case of the timed shape."""
    work: Callable[[Any], Work]
    candidates: list[tuple[int, ...]]
    """Fields of the module's `Tile`, the best by prediction first; the present one is added."""
    bound: float = 1e-3
    """Largest error allowed, tests/compare.py."""
    call: Callable[..., Any] | None = None
    """In place of the public function of `vsim_fast.ops`."""

    def tiles(self) -> list[tuple[int, ...]]:
        return list(dict.fromkeys([self.module.TILES[self.key], *(self.module.Tile(*one) for one in self.candidates)]))

    def use(self, tile: tuple[int, ...]) -> None:
        self.module.TILES[self.key] = self.module.Tile(*tile)

    def compile_case(self) -> CompileCase:
        """As timed on sm_90, with the tile now in use."""
        cases = self.module.compile_cases()
        return next(case for case in cases if case.name == self.compiled and 90 in case.archs)

    def run(self, *inputs: torch.Tensor) -> Any:
        call = self.call or getattr(ops, self.case.op)
        return call(*inputs, **({} if self.call else {**self.case.options, "backend": "triton"}))


def position_work(tile: Any, T: int = 100, P: int = 1024, D: int = 1152) -> Work:
    return Work(2 * P * T * (D + T), 2 * P * T * D, 2 * P * tile.bm**2 * D)


def intra_frame_work(tile: Any, T: int = 100, P: int = 1024, D: int = 1152) -> Work:
    high, wide = P // tile.bm, tile.bn // tile.bm
    upper = sum(min(wide * (j + 1), high) - 1 for j in range(P // tile.bn))
    reads = upper * (tile.bm + tile.bn) + high * tile.bm
    return Work(2 * T * P * (D + P), 2 * T * reads * D, 2 * T * (upper * tile.bm * tile.bn + high * tile.bm**2) * D)


def best_match_work(tile: Any, B: int = 64, P: int = 1369, D: int = 768) -> Work:
    count = B * ceil(P / tile.bm) * ceil(P / tile.bn)
    inputs = 4 * B * P * D  # read twice, the first time for the norms
    return Work(2 * inputs, count * 2 * (tile.bm + tile.bn) * D + inputs, 2 * count * tile.bm * tile.bn * D)


def nv12_work(tile: Any, B: int = 64, H: int = 1080, W: int = 1920, S: int = 224) -> Work:
    count = B * ceil(S / tile.th) * ceil(S / tile.tw)
    rows = ceil((tile.th + 4) * H / S / 2 / tile.kh) * tile.kh  # a bicubic filter reaches over four outputs
    cols = ceil((tile.tw + 4) * W / S / 2 / tile.kw) * tile.kw
    down, across = 12 * 2 * tile.th * rows * cols, 6 * 2 * tile.th * tile.tw * cols
    return Work(B * (1.5 * H * W + 6 * S * S), count * 6 * rows * cols, count * (down + across))


def top_k_work(Q: int, tile: Any, N: int = 1_000_000, D: int = 768) -> Work:
    blocks = ceil(Q / tile.bm)
    return Work(2 * N * D, 2 * blocks * N * D * (1 + tile.bm / tile.bn), 2 * blocks * tile.bm * N * D)


def top_k_kernel(Q: int, key: str, candidates: list[tuple[int, ...]]) -> Kernel:
    case = top_k_case("cuda", Q=Q, N=1_000_000, D=768, k=10)
    return Kernel(case, top_k, key, f"top_k-Q{Q}-k10-fp16", lambda tile: top_k_work(Q, tile), candidates)


def norms_case(B: int, P: int, D: int) -> Case:
    return Case(
        "inverse_norms", dict(B=B, P=P, D=D), FP16, eager=None, bytes=2 * B * P * D, flops=0,
        draw=lambda device: (torch.randn(B, P, D, device=device).half(),),
        oracle=lambda x: x.double().norm(dim=-1).reciprocal(),
    )  # fmt: skip


SIMILARITY = dict(T=100, P=1024, D=1152)
KERNELS = {  # by what there is to win
    "intra-frame": Kernel(
        similarity_case("intra_frame_similarity", FP16, **SIMILARITY), cosine, "upper", "gram-upper-store-M1024-fp16",
        intra_frame_work,
        [(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 256, 32, 8, 4),
         (128, 128, 64, 4, 4), (128, 256, 128, 8, 2), (128, 128, 128, 8, 2), (128, 128, 32, 8, 5)],
    ),
    "best_match": Kernel(
        best_match_case(FP16, B=64, P=1369, D=768), cosine, "best_match sm_90", "best_match-fp16", best_match_work,
        [(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4),
         (64, 256, 64, 4, 3), (128, 128, 64, 4, 4), (128, 256, 32, 8, 4), (128, 128, 128, 4, 2), (256, 64, 64, 4, 4)],
    ),
    "position": Kernel(
        similarity_case("position_similarity", FP16, **SIMILARITY), cosine, "diagonal", "gram-diagonal-store-M100-fp16",
        position_work,
        [(128, 128, 64, 8, 5), (128, 128, 128, 8, 3), (128, 128, 64, 8, 6), (128, 128, 128, 8, 2), (128, 128, 64, 8, 3),
         (128, 128, 64, 4, 4), (128, 128, 128, 4, 3), (128, 128, 64, 4, 6), (128, 128, 32, 8, 6)],
    ),
    "nv12": Kernel(
        nv12_case(FP16, B=64, H=1080, W=1920, S=224), nv12, "nv12_to_pixels", "nv12_to_pixels-8bit-fp16", nv12_work,
        [(16, 64, 32, 64, 8, 3), (16, 64, 32, 64, 4, 3), (16, 32, 32, 64, 4, 3), (16, 64, 16, 64, 4, 3),
         (16, 128, 32, 64, 8, 3), (32, 64, 16, 64, 4, 3), (32, 32, 32, 64, 8, 3), (32, 64, 32, 64, 8, 2),
         (16, 64, 16, 128, 8, 3), (32, 64, 16, 128, 8, 3)],
        bound=3 / 255 / 0.224,
    ),
    "top_k-100": top_k_kernel(100, "many queries", [
        (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 8, 4), (64, 256, 64, 8, 3), (64, 128, 64, 4, 3),
        (64, 128, 128, 8, 2), (128, 64, 64, 8, 4),
    ]),
    "inverse_norms": Kernel(
        norms_case(B=64, P=1369, D=768), cosine, "inverse_norms", "inverse_norms-fp16",
        lambda tile: Work(2 * 64 * 1369 * 768),
        [(8, 1, 256, 4, 3), (16, 1, 128, 4, 4), (8, 1, 256, 4, 1), (4, 1, 1024, 4, 1), (16, 1, 256, 4, 1),
         (8, 1, 1024, 8, 1), (32, 1, 128, 4, 3), (4, 1, 256, 4, 3)],
        bound=1e-5, call=cosine.inverse_norms,
    ),
    "frame_means": Kernel(
        similarity_case("frame_similarity", FP16, **SIMILARITY), cosine, "frame_means", "frame_means-fp16",
        lambda tile: Work(2 * 100 * 1024 * 1152),
        [(64, 1, 128, 8, 3), (32, 1, 128, 8, 3), (32, 1, 64, 4, 3), (64, 1, 64, 4, 3), (16, 1, 128, 4, 4),
         (32, 1, 128, 4, 1), (64, 1, 128, 4, 3)],
    ),
    "top_k-1": top_k_kernel(1, "few queries", [
        (16, 256, 64, 8, 3), (16, 128, 128, 4, 2), (16, 256, 32, 4, 4), (32, 128, 64, 4, 3),
        (16, 64, 128, 4, 3),
    ]),
}  # fmt: skip


def prepare(name: str, tile: tuple[int, ...], run: bool) -> dict[str, int] | str:
    """In a process of its own: what the assembler says, or what speaks against the candidate. `run` launches it once,
    which leaves the binary in Triton's cache on disk."""
    kernel = KERNELS[name]
    kernel.use(tile)
    try:
        counts = compile_case(kernel.compile_case(), 90)
        if counts["shared_bytes"] > SHARED_LIMIT:
            return f"{counts['shared_bytes'] >> 10} KiB of shared memory"
        if counts["spill_bytes"]:
            return f"spills {counts['spill_bytes']} bytes"
        if run:
            kernel.run(*kernel.case.draw("cuda"))
            torch.cuda.synchronize()
    except Exception as error:  # of whatever kind: the others are still to be timed
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
    return counts


@dataclass(frozen=True)
class Rates:
    """Bytes and FLOPs per millisecond."""

    memory: float
    l2: float
    matmul: float

    def floor_ms(self, work: Work) -> float:
        return max(work.memory / self.memory, work.tiles / self.l2, work.flops / self.matmul)


H200 = Rates(memory=4.3e9, l2=6e9, matmul=790e9)  # as measured or, for L2, estimated before; for predictions


def milliseconds(call: Callable, inputs: list[tuple], rounds: int, flush: torch.Tensor | None = None) -> list[float]:
    """Device time of each call; a full queue hides the launches, and `flush` empties L2 before each."""
    times = []
    for args in islice(cycle(inputs), rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if flush is not None:
            flush.fill_(1)
        torch.cuda._sleep(1_000_000)
        start.record()
        call(*args)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def measure_rates() -> Rates:
    source = torch.randint(256, (2 << 30,), dtype=torch.uint8, device="cuda")
    target, repeats = torch.empty_like(source), 100
    small = source[: 16 << 20].view(torch.float32).expand(repeats, -1)  # stays in L2, and is summed again and again
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    copy, reads, product = (
        median(milliseconds(call, [()], 7)[2:])
        for call in (lambda: target.copy_(source), lambda: small.sum(1), lambda: a @ b)
    )
    return Rates(2 * source.numel() / copy, 4 * small.numel() / reads, 2 * 8192**3 / product)


def max_error(case: Case, result: Any, truth: Any) -> float:
    got, want = (
        [part for part in ([out] if isinstance(out, torch.Tensor) else out) if part.is_floating_point()]
        for out in (case.sample(result), truth)
    )
    return max((g.double() - w.double()).abs().max().item() for g, w in zip(got, want, strict=True))


def time_kernel(name: str, tiles: list[tuple[int, ...]], rates: Rates, flush: torch.Tensor, end: float) -> list[dict]:
    """A row per candidate, the first of which is the present one; a second pass shows what drifts."""
    kernel = KERNELS[name]
    inputs = [kernel.case.draw("cuda") for _ in range(kernel.case.draws or 2)]
    truth = kernel.case.oracle(*inputs[0])
    rows: dict[tuple[int, ...], dict] = {}
    for turn in range(PASSES):
        for tile in tiles:
            if time.monotonic() > end:
                break
            kernel.use(tile)
            if not turn:
                floor = rates.floor_ms(kernel.work(kernel.module.Tile(*tile)))
                error = max_error(kernel.case, kernel.run(*inputs[0]), truth)
                rows[tile] = dict(tile=tile, floor_ms=floor, error=error, ms=[])
            if rows.get(tile, {}).get("error", kernel.bound) < kernel.bound:
                rows[tile]["ms"] += milliseconds(kernel.run, inputs, ROUNDS, flush)
    kernel.use(tiles[0])
    return list(rows.values())


def show(name: str, counts: dict[tuple[int, ...], dict[str, int] | str], rows: list[dict]) -> None:
    kernel, timed = KERNELS[name], {row["tile"]: row for row in rows}
    fields = ", ".join(kernel.module.Tile._fields)
    print(f"\n{name} {kernel.case.shape_id}: tile ({fields}); the first is the present one")
    print(f"{'tile':28} {'floor µs':>8} {'µs':>8} {'of floor':>8} {'error':>8} {'registers':>9} {'KiB shared':>10}")
    for tile, found in counts.items():
        row = timed.get(tile)
        floor = row["floor_ms"] if row else H200.floor_ms(kernel.work(kernel.module.Tile(*tile)))
        figures = "" if isinstance(found, str) else f"{found['registers']:9} {found['shared_bytes'] / 1024:10.0f}"
        ms = median(row["ms"]) if row and row["ms"] else None
        timing = f"{ms * 1e3:8.1f} {floor / ms:8.0%}" if ms else f"{'-':>8} {'-':>8}"
        error = f"{row['error']:8.1e}" if row else f"{'-':>8}"
        note = found if isinstance(found, str) else "" if not row or row["ms"] else "wrong or out of time"
        print(f"{','.join(map(str, tile)):28} {floor * 1e3:8.1f} {timing} {error} {figures} {note}")
    if best := [row for row in rows if row["ms"]]:
        first, winner = best[0], min(best, key=lambda row: median(row["ms"]))
        gain = median(first["ms"]) / median(winner["ms"])
        print(f"winner: {','.join(map(str, winner['tile']))}, {gain:.2f} times as fast as the present one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)}; default: all")
    parser.add_argument("--dry-run", action="store_true", help="compile for sm_90 and count; needs no GPU")
    parser.add_argument("--budget", type=float, default=600, metavar="S", help="seconds in all (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all figures as JSON")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 14), help="default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"no kernel {sorted(unknown)}; there are: {', '.join(KERNELS)}")
    if not isinstance(cosine.gram_kernel, triton.JITFunction):
        parser.error("TRITON_INTERPRET must not be set: what is interpreted cannot be compiled")
    end = time.monotonic() + options.budget
    names, timed = options.kernels or list(KERNELS), not options.dry_run
    work = [(name, tile) for name in names for tile in KERNELS[name].tiles()]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(prepare, *zip(*work, strict=True), [timed] * len(work)))
    counts: dict[str, dict] = {name: {} for name in names}
    for (name, tile), result in zip(work, found, strict=True):
        counts[name][tile] = result
    print(f"{len(work)} candidates compiled, {sum(isinstance(one, str) for one in found)} dropped")
    report: dict[str, Any] = {"kernels": {}}
    if timed:
        from conftest import describe_machine

        flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        rates = measure_rates()
        print(f"{rates.memory / 1e9:.2f} TB/s copied, {rates.l2 / 1e9:.2f} TB/s read from L2", end="; ")
        print(f"bf16 products at {rates.matmul / 1e9:.0f} TFLOP/s")
        report |= {"machine": vars(describe_machine()), "rates_per_ms": vars(rates)}
    for name in names:
        rows = []
        if timed and time.monotonic() < end:
            fit = [tile for tile, result in counts[name].items() if not isinstance(result, str)]
            with torch.inference_mode():
                rows = time_kernel(name, fit, rates, flush, end)
        show(name, counts[name], rows)
        found_here = [{"tile": tile, "compiled": result} for tile, result in counts[name].items()]
        report["kernels"][name] = {"shape": KERNELS[name].case.shape, "candidates": found_here, "timed": rows}
        if options.out:
            options.out.write_text(json.dumps(report, indent=1, default=str))
    if timed and time.monotonic() >= end:
        sys.exit(f"{options.budget:.0f} s are spent: what shows no time was left out")


if __name__ == "__main__":
    main()

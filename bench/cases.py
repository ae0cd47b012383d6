"""What is timed: inputs, options, the straightforward chain, the fp64 oracle, the least bytes and FLOPs an op needs.

Oracles are `ops/*/reference.py`, never a copy. Bytes count each input read and each output written once; FLOPs count
one triangle of a symmetric result: the share of a ceiling in a row is that of the fastest the op could ever be.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsim_fast.ops import attention, best_cosines, cosine, dtw, dtw_pairwise, quantize_tokens, top_k
from vsim_fast.ops.derivatives import reference as difference
from vsim_fast.ops.nv12 import reference as nv12

FP16, FP32 = torch.float16, torch.float32
WINDOWS = (1, 5, 15, 30)


@dataclass(frozen=True)
class Case:
    op: str
    """Public function of `vsim_fast.ops`."""
    shape: dict[str, int]
    dtype: torch.dtype
    draw: Callable[[str], tuple[Tensor, ...]]
    """Fresh random inputs on a device."""
    eager: Callable[..., Any] | None
    """The straightforward chain, on the same inputs; None where it does not fit."""
    oracle: Callable[..., Any]
    """The reference, on the same inputs in fp64."""
    bytes: int
    flops: int
    options: dict[str, Any] = field(default_factory=dict)
    baseline: str = "torch eager"
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Other libraries on the same inputs, with a result like ours."""
    cells: int = 0
    """Of dynamic programming, in place of bytes and FLOPs as the rate of a row."""
    operations: int = 0
    """Likewise, of int8 and bfloat16 on CPUs, whose ceiling is measured in float32."""
    ready: Callable[..., tuple] = lambda *inputs: inputs
    """The inputs as our backends take them: what a caller makes once and uses many times, untimed."""
    threads: tuple[int, ...] = ()
    """Of ours, a row each, where the peers run on one. Empty: torch's own for all."""
    sample: Callable[[Any], Any] = lambda result: result
    """The part of a result that the oracle gives, where the whole would take it too long."""
    note: str = ""
    without: tuple[str, ...] = ()
    """Backends that would take hours, "torch compiled" among them."""
    draws: int | None = None
    """Inputs to take turns with, where two or three are too large."""

    @property
    def shape_id(self) -> str:
        reduce = self.options.get("reduce")
        return "-".join([*(f"{axis}{size}" for axis, size in self.shape.items()), *([reduce] if reduce else [])])

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def unit(patches: Tensor) -> Tensor:
    return F.normalize(patches, dim=-1)


def eager_position(patches: Tensor) -> Tensor:
    rows = unit(patches).transpose(0, 1)  # [P, T, D]
    return torch.bmm(rows, rows.mT)


def eager_intra_frame(patches: Tensor) -> Tensor:
    rows = unit(patches)  # [T, P, D]
    return torch.bmm(rows, rows.mT)


def eager_frame(patches: Tensor) -> Tensor:
    rows = unit(patches.mean(1))  # [T, D]
    return rows @ rows.mT


def eager_best_match(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    similarity = torch.bmm(unit(a), unit(b).mT)  # [B, Pa, Pb]
    return *similarity.max(2), *similarity.max(1)


def eager_stats(gram: Callable, patches: Tensor) -> tuple[Tensor, ...]:
    matrices = gram(patches).float()
    return matrices.mean((1, 2)), matrices.std((1, 2), correction=0), matrices.amin((1, 2)), matrices.amax((1, 2))


def similarity_case(op: str, dtype: torch.dtype, T: int, P: int, D: int, reduce: str | None = None) -> Case:
    eager, matrices, side = {
        "position_similarity": (eager_position, P, T),
        "intra_frame_similarity": (eager_intra_frame, T, P),
        "frame_similarity": (eager_frame, 1, T),
    }[op]
    written = matrices * (4 * 8 if reduce else side * side * dtype.itemsize)
    return Case(
        op, dict(T=T, P=P, D=D), dtype,
        draw=lambda device: (torch.randn(T, P, D, device=device).to(dtype),),
        eager=partial(eager_stats, eager) if reduce else eager,
        oracle=lambda patches: getattr(cosine, op)(patches.double(), reduce=reduce, backend="reference"),
        bytes=T * P * D * dtype.itemsize + written, flops=matrices * side * (side + 1) * D,
        options=dict(reduce=reduce),
    )  # fmt: skip


def best_match_case(dtype: torch.dtype, B: int, P: int, D: int) -> Case:
    return Case(
        "best_match", dict(B=B, P=P, D=D), dtype,
        draw=lambda device: tuple(torch.randn(B, P, D, device=device).to(dtype) for _ in range(2)),
        eager=eager_best_match, oracle=lambda a, b: cosine.best_match(a.double(), b.double(), backend="reference"),
        bytes=2 * B * P * (D * dtype.itemsize + dtype.itemsize + 8), flops=2 * B * P * P * D,
    )  # fmt: skip


def eager_best_cosines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All cosines by one matrix product, and their maxima both ways."""
    cosines = (a.flatten(0, 1) @ b.flatten(0, 1).mT).view(*a.shape[:2], *b.shape[:2])  # [N, Ka, M, Kb]
    return cosines.amax(3).transpose(1, 2).float(), cosines.amax(1).float()


def best_cosines_case(N: int, Ka: int, M: int, Kb: int, D: int) -> Case:
    return Case(
        "best_cosines", dict(N=N, Ka=Ka, M=M, Kb=Kb, D=D), torch.bfloat16,
        draw=lambda device: tuple(unit(torch.randn(*s, D, device=device)).bfloat16() for s in ((N, Ka), (M, Kb))),
        ready=lambda *inputs: tuple(map(quantize_tokens, inputs)),
        eager=eager_best_cosines, baseline="torch eager, one thread", threads=(1, 2), without=("reference",),
        oracle=lambda a, b: best_cosines(a.double(), b.double(), backend="reference"),
        bytes=0, flops=0, operations=2 * N * Ka * M * Kb * D,
        note="ours on codes quantised once, untimed; torch on bfloat16",
    )  # fmt: skip


def attention_case(B: int, H: int, N: int, d: int) -> Case:
    return Case(
        "attention", dict(B=B, H=H, N=N, d=d), torch.bfloat16,
        draw=lambda device: tuple(torch.randn(B, N, 3, H, d, device=device).bfloat16().permute(2, 0, 3, 1, 4)),
        eager=F.scaled_dot_product_attention, baseline="torch eager, one thread",
        threads=(1, 2), without=("reference",),
        oracle=lambda q, k, v: attention(q.double(), k.double(), v.double(), backend="reference"),
        bytes=0, flops=0, operations=4 * B * H * N * N * d, note="values from a standard normal distribution",
    )  # fmt: skip


class FaissFlat:
    """`IndexFlatIP` in float32. By default it takes matrix products from 128,000 queries · dimensions on and goes query
    by query below, six times as slow for the case timed here: `blas` has it take them from 20 queries on."""

    made: ClassVar[tuple[weakref.ref, Any] | None] = None
    """(vectors, their index): one at a time, gone with the vectors."""

    def __init__(self, k: int, *, blas: bool):
        self.k, self.blas = k, blas

    @classmethod
    def forget(cls, _: Any) -> None:
        cls.made = None

    def __call__(self, queries: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        import faiss

        if self.made is None or self.made[0]() is not vectors:  # by the first call, which is not timed
            index = faiss.IndexFlatIP(vectors.shape[1])
            for block in vectors.split(1 << 16):
                index.add(block.float().numpy())
            FaissFlat.made = weakref.ref(vectors, self.forget), index
        faiss.omp_set_num_threads(torch.get_num_threads())
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 20 if self.blas else before
        try:
            return tuple(map(torch.from_numpy, self.made[1].search(queries.float().numpy(), self.k)))
        finally:
            faiss.cvar.distance_compute_blas_threshold = before


def eager_top_k(k: int, queries: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
    return (queries @ vectors.mT).float().topk(k, 1)


def top_k_case(device: str, Q: int, N: int, D: int, k: int) -> Case:
    def draw(device: str) -> tuple[Tensor, ...]:
        queries, *blocks = (unit(torch.randn(n, D, device=device)).half() for n in (Q, *[N // 10] * 10))
        return queries, torch.cat(blocks)

    def oracle(queries: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        parts = [top_k(queries.double(), block.double(), k, backend="reference") for block in vectors.split(1 << 16)]
        return (torch.cat([part.scores for part in parts], 1).topk(k, 1).values,)

    common = dict(draw=draw, draws=1, oracle=oracle, options=dict(k=k))
    shape = dict(Q=Q, N=N, D=D, k=k)
    if device == "cuda":
        return Case("top_k", shape, FP16, eager=partial(eager_top_k, k), bytes=N * D * 2, flops=2 * Q * N * D, **common)
    return Case(
        "top_k", shape, FP16, eager=FaissFlat(k, blas=True), baseline="faiss flat, matrix products",
        peers={"faiss flat, by default": FaissFlat(k, blas=False)}, bytes=0, flops=0, operations=2 * Q * N * D,
        note="error of scores; faiss on float32 vectors, its index made before; torch's threads for all", **common,
    )  # fmt: skip


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def eager_nv12(y: Tensor, uv: Tensor, *, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """BT.709 limited range to whole levels, as decoders give RGB, then antialiased bicubic and normalisation."""
    luma = (y.float() - 16) * (255 / 219)
    u, v = ((uv.permute(0, 3, 1, 2).float() - 128) * (255 / 224)).unbind(1)
    u, v = (F.interpolate(c[:, None], scale_factor=2, mode="nearest")[:, 0] for c in (u, v))
    rgb = torch.stack((luma + 1.5748 * v, luma - 0.187324 * u - 0.468124 * v, luma + 1.8556 * u), dim=1)
    levels = F.interpolate(rgb.round().clamp(0, 255), size, mode="bicubic", antialias=True).clamp(0, 255)
    mean, std = (torch.tensor(IMAGENET[key], device=y.device).view(3, 1, 1) for key in ("mean", "std"))
    return ((levels / 255 - mean) / std).to(dtype)


def nv12_case(dtype: torch.dtype, B: int, H: int, W: int, S: int) -> Case:
    options = dict(
        size=(S, S), crop=(0, 0, S, S), matrix="bt709", full_range=False, bit_depth=8, interpolation="bicubic",
        rotation=0, mirrored=False, dtype=dtype, **IMAGENET,
    )  # fmt: skip
    taps = 4 * max(1, H / S) + 4 * max(1, W / S)  # separable filter, per output value and input row
    return Case(
        "nv12_to_pixels", dict(B=B, H=H, W=W, S=S), dtype,
        draw=lambda device: (
            torch.randint(16, 236, (B, H, W), dtype=torch.uint8, device=device),
            torch.randint(16, 241, (B, H // 2, W // 2, 2), dtype=torch.uint8, device=device),
        ),
        eager=partial(eager_nv12, size=(S, S), dtype=dtype),
        oracle=lambda y, uv: nv12.nv12_to_pixels(y, uv, **{**options, "dtype": torch.float64, "out": None}),
        bytes=B * (H * W * 3 // 2 + 3 * S * S * dtype.itemsize), flops=int(B * 3 * S * S * 2 * taps),
        options=options, note="max error in normalised units, 1 level = 0.017",
    )  # fmt: skip


def numpy_derivatives(embeddings: Tensor) -> tuple[Tensor, ...]:
    """Per window: difference, norm, direction, change of direction, mean and variance of directions."""
    x = embeddings.numpy()
    (B, T, D), S = x.shape, len(WINDOWS)
    magnitudes, changes = np.zeros((2, B, S, T), np.float32)
    mean, variance = np.zeros((B, S, D), np.float32), np.zeros((B, S), np.float32)
    for s, w in enumerate(WINDOWS):
        d = x[:, w:] - x[:, :-w]
        norm = np.linalg.norm(d, axis=-1)
        u = d / np.maximum(norm, 1e-12)[..., None]
        magnitudes[:, s, : T - w] = norm
        changes[:, s, : T - w - 1] = np.linalg.norm(u[:, 1:] - u[:, :-1], axis=-1)
        mean[:, s], variance[:, s] = u.mean(1), u.var(1, ddof=1).mean(-1)
    return tuple(map(torch.from_numpy, (magnitudes, changes, mean, variance)))


def derivatives_case(device: str, B: int, T: int, D: int) -> Case:
    def reference(embeddings: Tensor) -> tuple[Tensor, ...]:
        counts = torch.tensor([T - w for w in WINDOWS], device=embeddings.device).expand(B, -1)
        return difference.derivatives(embeddings, WINDOWS, counts)

    S = len(WINDOWS)
    return Case(
        "derivatives", dict(B=B, T=T, D=D, S=S), FP32,
        draw=lambda device: (torch.randn(B, T, D, device=device).cumsum(1),),
        eager=reference if device == "cuda" else numpy_derivatives,
        oracle=lambda x: reference(x.double()),
        bytes=4 * B * (T * D + S * (2 * T + D + 1)), flops=9 * B * T * D * S,
        options=dict(windows=WINDOWS), baseline="torch eager" if device == "cuda" else "numpy",
    )  # fmt: skip


def aeon_pair(x: Tensor, y: Tensor) -> Tensor:
    from aeon.distances import dtw_distance

    return torch.tensor(dtw_distance(*(one.mT.double().contiguous().numpy() for one in (x, y)))).sqrt()


def dtaidistance_pair(x: Tensor, y: Tensor) -> Tensor:
    from dtaidistance import dtw_ndim

    return torch.tensor(dtw_ndim.distance_fast(x.double().numpy(), y.double().numpy()))


def tslearn_pair(x: Tensor, y: Tensor) -> Tensor:
    from tslearn.metrics import dtw

    return torch.tensor(dtw(x.double().numpy(), y.double().numpy()))


def aeon_pairwise(x: Tensor, *, radius: int | None) -> Tensor:
    from aeon.distances import dtw_pairwise_distance

    window = None if radius is None else radius / x.shape[1]
    return torch.from_numpy(dtw_pairwise_distance(x.mT.double().contiguous().numpy(), window=window, n_jobs=1)).sqrt()


def dtaidistance_pairwise(x: Tensor, *, radius: int | None) -> Tensor:
    from dtaidistance import dtw_ndim

    window = None if radius is None else radius + 1  # it counts the diagonal
    matrix = dtw_ndim.distance_matrix(list(x.double().numpy()), window=window, use_c=True, parallel=False)
    return torch.from_numpy(np.asarray(matrix)).fill_diagonal_(0)


def tslearn_pairwise(x: Tensor, *, radius: int | None) -> Tensor:
    from tslearn.metrics import cdist_dtw

    options = {} if radius is None else dict(global_constraint="sakoe_chiba", sakoe_chiba_radius=radius)
    return torch.from_numpy(cdist_dtw(x.double().numpy(), **options))


def walks(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device).cumsum(-2) / shape[-1] ** 0.5


DTW_NOTE = "distances, root taken; peers in float64"


def dtw_case(T: int, D: int, baseline: str) -> Case:
    peers = dict(aeon=aeon_pair, dtaidistance=dtaidistance_pair, tslearn=tslearn_pair)
    return Case(
        "dtw", dict(T=T, D=D), FP32,
        draw=lambda device: tuple(walks(T, D, device=device) for _ in range(2)),
        eager=peers.pop(baseline), peers=peers, baseline=baseline, threads=(1,), without=("reference",),
        oracle=lambda x, y: dtw(x.double(), y.double(), backend="reference"),
        bytes=0, flops=0, cells=T * T, note=f"{T * T} cells; {DTW_NOTE}",
    )  # fmt: skip


def dtw_pairwise_case(N: int, T: int, D: int, baseline: str, radius: int | None = None) -> Case:
    per_pair = T * T if radius is None else T * (2 * radius + 1) - radius * (radius + 1)
    cells = N * (N - 1) // 2 * per_pair
    peers = dict(aeon=aeon_pairwise, dtaidistance=dtaidistance_pairwise, tslearn=tslearn_pairwise)
    peers = {name: partial(call, radius=radius) for name, call in peers.items()}
    few, options = min(N, 5), dict(sakoe_chiba_radius=radius)
    return Case(
        "dtw_pairwise", dict(N=N, T=T, D=D, **({} if radius is None else dict(R=radius))), FP32,
        draw=lambda device: (walks(N, T, D, device=device),),
        eager=peers.pop(baseline), peers=peers, baseline=baseline, threads=(1, 2), without=("reference",),
        options=options,
        oracle=lambda x: dtw_pairwise(x[:few].double(), **options, backend="reference"),
        sample=lambda matrix: matrix[:few, :few],
        bytes=0, flops=0, cells=cells,
        note=f"{cells} cells; {DTW_NOTE}; error of {few} x {few}",
    )  # fmt: skip


def eager_dtw_pairwise(x: Tensor) -> Tensor:
    """All pairs at once: the cost matrices [N, N, T, T], then one anti-diagonal after the other."""
    N, T, _ = x.shape
    costs = (x[:, None, :, None] - x[None, :, None]).square().sum(-1)
    before, last = (x.new_full((N, N, T + 1), float("inf")) for _ in range(2))  # totals by row, from row -1
    before[..., 0] = 0
    for k in range(2 * T - 1):
        i = torch.arange(max(0, k - T + 1), min(T, k + 1), device=x.device)
        now = torch.full_like(last, float("inf"))
        least = torch.minimum(torch.minimum(before[..., i], last[..., i]), last[..., i + 1])
        now[..., i + 1] = least + costs[:, :, i, k - i]
        before, last = last, now
    return last[..., T].sqrt().fill_diagonal_(0)


def dtw_pairwise_cuda_case(N: int, T: int, D: int, *, eager: bool) -> Case:
    cells = N * (N - 1) // 2 * T * T
    return Case(
        "dtw_pairwise", dict(N=N, T=T, D=D), FP32,
        draw=lambda device: (torch.randn(N, T, D, device=device).cumsum(1),),
        eager=eager_dtw_pairwise if eager else None,
        oracle=(lambda x: eager_dtw_pairwise(x.double())) if eager
        else (lambda x: dtw_pairwise(x.cpu(), backend="cpp").double().to(x.device)),
        bytes=0, flops=0, cells=cells,
        without=("reference", "torch compiled"),  # which unrolls 2T - 1 steps: 85 s of compiling for T = 50
        note=f"{cells:.4g} cells at {3 * D + 1} FLOPs" + ("" if eager else "; max_error against the C++ core"),
    )  # fmt: skip


CASES = {
    "cuda": [
        similarity_case("position_similarity", FP16, T=100, P=1024, D=1152),
        similarity_case("intra_frame_similarity", FP16, T=100, P=1024, D=1152),
        similarity_case("frame_similarity", FP16, T=100, P=1024, D=1152),
        similarity_case("intra_frame_similarity", FP16, T=100, P=1024, D=1152, reduce="stats"),
        best_match_case(FP16, B=64, P=1369, D=768),
        top_k_case("cuda", Q=100, N=1_000_000, D=768, k=10),
        nv12_case(FP16, B=64, H=1080, W=1920, S=224),
        derivatives_case("cuda", B=512, T=300, D=1024),
        dtw_pairwise_cuda_case(N=48, T=300, D=2, eager=True),
        dtw_pairwise_cuda_case(N=2000, T=300, D=2, eager=False),
    ],
    "cpu": [
        similarity_case("position_similarity", FP32, T=40, P=256, D=384),
        similarity_case("intra_frame_similarity", FP32, T=10, P=1024, D=384),
        similarity_case("frame_similarity", FP32, T=40, P=1024, D=384),
        similarity_case("intra_frame_similarity", FP32, T=10, P=1024, D=384, reduce="stats"),
        best_match_case(FP32, B=4, P=1024, D=384),
        best_cosines_case(N=5, Ka=144, M=8, Kb=312, D=384),
        best_cosines_case(N=5, Ka=144, M=128, Kb=312, D=384),
        attention_case(B=8, H=6, N=257, d=64),
        attention_case(B=4, H=6, N=1025, d=64),
        attention_case(B=2, H=6, N=1370, d=64),
        top_k_case("cpu", Q=100, N=1_000_000, D=768, k=10),
        top_k_case("cpu", Q=1, N=1_000_000, D=768, k=10),
        nv12_case(FP32, B=4, H=720, W=1280, S=224),
        derivatives_case("cpu", B=64, T=300, D=384),
        dtw_pairwise_case(N=200, T=300, D=2, baseline="aeon"),
        dtw_pairwise_case(N=200, T=300, D=2, radius=30, baseline="aeon"),
        dtw_case(T=1000, D=2, baseline="aeon"),
        dtw_pairwise_case(N=16, T=300, D=768, baseline="dtaidistance"),
    ],
}

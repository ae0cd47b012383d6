"""The compiled core: C++ SIMD on CPU tensors, CUDA on CUDA tensors. Outputs are allocated here, pointers cross here."""

from __future__ import annotations

import torch
from torch import Tensor

from vsim_fast import _C


def derivatives(
    x: Tensor, windows: tuple[int, ...], counts: Tensor, *, threads: int | None = None, simd: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As reference.derivatives. CPU only: `threads` (None: torch's, 0: all) and `simd` ("": the fastest here)."""
    (videos, frames, dim), scales = x.shape, len(windows)
    steps = torch.tensor(windows, device=x.device)  # int64 [S]
    options = dict(dtype=torch.float32, device=x.device)
    magnitudes = torch.empty(videos, scales, frames, **options)
    changes = torch.empty(videos, scales, frames, **options)
    mean = torch.empty(videos, scales, dim, **options)
    variance = torch.empty(videos, scales, **options)
    arrays = (x, steps, counts, magnitudes, changes, mean, variance)
    if x.device.type == "cpu":
        threads = torch.get_num_threads() if threads is None else threads
        _C.derivatives(*(array.numpy() for array in arrays), threads=threads, simd=simd)
    else:
        assert all(array.is_contiguous() and array.device == x.device for array in arrays)
        partial = torch.empty(videos, scales, -(-frames // _C.CUDA_CHUNK), dim, **options)
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream().cuda_stream
            pointers = (array.data_ptr() for array in (*arrays, partial))
            _C.derivatives_cuda(*pointers, B=videos, T=frames, D=dim, S=scales, stream=stream)
    return magnitudes, changes, mean, variance

"""Which backend serves which op, and why one cannot. The only place that knows."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module

ORDER = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpp", "torch", "reference")}
IMPLS = {  # op -> backend -> module under vsim_fast.ops
    "position_similarity": {"triton": "cosine.triton_impl", "reference": "cosine.reference"},
    "intra_frame_similarity": {"triton": "cosine.triton_impl", "reference": "cosine.reference"},
    "frame_similarity": {"triton": "cosine.triton_impl", "reference": "cosine.reference"},
    "best_match": {"triton": "cosine.triton_impl", "reference": "cosine.reference"},
    "attention": {"cpp": "attention.native_impl", "reference": "attention.reference"},
    "best_cosines": {"cpp": "best_cosines.native_impl", "reference": "best_cosines.reference"},
    "top_k": {"triton": "top_k.triton_impl", "cpp": "top_k.native_impl", "reference": "top_k.reference"},
    "pairs_above": {"cpp": "top_k.native_impl", "reference": "top_k.reference"},
    "nv12_to_pixels": {"triton": "nv12.triton_impl", "torch": "nv12.torch_impl", "reference": "nv12.reference"},
    "rgb_to_pixels": {"torch": "nv12.torch_impl", "reference": "nv12.reference"},
    "derivatives": {
        "cuda": "derivatives.native_impl",
        "cpp": "derivatives.native_impl",
        "reference": "derivatives.reference",
    },
    "dtw": {"cuda": "dtw.cuda_impl", "cpp": "dtw.native_impl", "reference": "dtw.reference"},
    "dtw_path": {"cuda": "dtw.cuda_impl", "cpp": "dtw.native_impl", "reference": "dtw.reference"},
    "dtw_pairwise": {"cuda": "dtw.cuda_impl", "cpp": "dtw.native_impl", "reference": "dtw.reference"},
    "dtw_knn": {"cuda": "dtw.cuda_impl", "cpp": "dtw.native_impl", "reference": "dtw.reference"},
}


def choose(op: str, device: str, backend: str | None = None) -> Callable:
    """The implementation of `op` for tensors on `device` ("cuda", "cpu", …).

    Unset `backend` takes the best that can run; a named one runs or raises. An exception inside a kernel propagates.
    """
    impls = IMPLS[op]
    if backend is None:
        backend = next(b for b in ORDER.get(device, ("reference",)) if b in impls and why_not(b, device) is None)
    elif backend not in impls:
        raise ValueError(f"{op}: backend must be one of {sorted(impls)}, got {backend!r}")
    elif reason := why_not(backend, device):
        raise RuntimeError(f"{op}: backend {backend!r} cannot run: {reason}")
    return getattr(import_module(f"vsim_fast.ops.{impls[backend]}"), op)


@cache
def why_not(backend: str, device: str) -> str | None:
    """Why `backend` cannot serve tensors on `device`, with the cure; None when it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            return f"triton does not import ({error}); it is published for Linux only"
        if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return f"Triton kernels run on CUDA tensors, got a {device} tensor (TRITON_INTERPRET=1 interprets them, slowly)"
    wanted = {"cpp": "cpu", "torch": "cpu", "cuda": "cuda"}[backend]
    if device != wanted:
        return f"it serves {wanted} tensors, got a {device} tensor"
    if backend == "torch":  # torch's own CPU kernels, where they beat the reference
        return None
    try:
        from vsim_fast import _C
    except ImportError as error:
        return f"the compiled core is not installed ({error}); install a C++ compiler and reinstall vsim_fast"
    if backend == "cuda" and not _C.has_cuda:
        return "the compiled core was built without CUDA; install nvcc and reinstall with VSIM_CUDA=ON"
    return None

"""Tensors in, tensors out: every op is one public function with a plain-torch reference and faster backends."""

from vsim_fast.ops.derivatives import Derivatives, derivatives

__all__ = ["Derivatives", "derivatives"]

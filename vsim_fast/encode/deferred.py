"""Library imports without the one second of `torch._dynamo` that torchvision's RoI pooling asks for and we never use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

COMPILER = "torch._dynamo.utils"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """In the block, `from torch._dynamo.utils import is_compile_supported` gives a function that imports the compiler
    when it is called; any other name imports it at once. Nothing is left behind but that function."""
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        yield
        return
    stand_in = ModuleType(COMPILER)

    def real(name: str) -> object:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
        return getattr(import_module(COMPILER), name)

    stand_in.is_compile_supported = lambda device_type: real("is_compile_supported")(device_type)
    stand_in.__getattr__ = real
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]

"""What this machine can do, and for each thing it cannot: why, and the cure. Nothing here raises or downloads."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vsim_fast.encode import cached_repos, hub_cache
from vsim_fast.processor import BFLOAT16, instruction_sets, usable_cores

NVIDIA_LIBRARIES = {  # soname -> what needs it
    "libcuda.so.1": "every GPU computation",
    "libnvcuvid.so.1": "decoding on the GPU",
    "libnvidia-encode.so.1": "importing PyNvVideoCodec, also where it only decodes",
}
VIDEO_CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "prores", "mjpeg")
NVDEC_FORMATS = [("h264", 8), ("hevc", 8), ("hevc", 10), ("vp9", 8), ("av1", 8)]  # codec, bits per sample; 4:2:0
REINSTALL = "pip install --force-reinstall --no-deps . in the source folder"
ENCODER_FAMILIES = ("dinov2", "dinov3", "siglip", "clip", "videollama3", "vit")


@dataclass(frozen=True)
class Check:
    """One line of `vsim doctor`; `asdict`-able to JSON."""

    name: str
    ok: bool | None
    """True: works; False: does not; None: neither good nor bad, or it cannot be told."""
    detail: str
    """What was found, or the reason for a no."""
    cure: str = ""
    """What to do about a no; empty for a yes."""
    required: bool = False
    """Whether the package cannot work without it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> list[Check]:
    """Every check, in a fixed order. A probe that fails in an unforeseen way is itself a no, the error its reason."""
    checks: list[Check] = []
    for probe in PROBES:
        name = probe.__name__.strip("_").replace("_", " ")
        try:
            checks += probe()
        except Exception as error:  # a broken driver or library must not hide the other answers
            checks.append(Check(name, False, f"{type(error).__name__}: {error}", "reinstall the named library"))
    return checks


def exit_code(checks: list[Check]) -> int:
    """0 unless something required is broken: a machine without a GPU is not an error."""
    return int(any(check.required and check.ok is False for check in checks))


def _python() -> Iterator[Check]:
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    yield Check("python", good, found, "" if good else "use Python 3.11 or newer", required=True)
    for package, required in (("torch", True), ("numpy", True), ("timm", False), ("transformers", False)):
        try:
            version = importlib.import_module(package).__version__ if required else metadata.version(package)
        except Exception as error:
            yield Check(package, False, _reason(error), f"pip install {package}", required)
        else:
            yield Check(package, True, version, required=required)


def _gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            name = f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
            yield Check(f"gpu {index}", True, f"{name}; torch built for CUDA {torch.version.cuda}")
    elif torch.version.cuda is None:
        yield Check("gpu", False, f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch")
    elif reason := _library_error("libcuda.so.1"):
        yield Check("gpu", False, reason, "install the NVIDIA driver; in a container, run it with --gpus all")
    else:
        cure = "check nvidia-smi, CUDA_VISIBLE_DEVICES, and that the driver is new enough for torch's CUDA"
        yield Check("gpu", False, f"the driver is there, but torch (CUDA {torch.version.cuda}) sees no device", cure)


def _driver() -> Iterator[Check]:
    for library, use in NVIDIA_LIBRARIES.items():
        if reason := _library_error(library):
            cure = "install the NVIDIA driver; in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
            yield Check(library, False, f"{reason}; needed for {use}", cure)
        else:
            yield Check(library, True, f"loads; needed for {use}")
    if _library_error("libcuda.so.1") is None:
        version = ctypes.c_int()
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        found = f"supports CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        yield Check("driver", status == 0, found if status == 0 else f"cuDriverGetVersion returned {status}")


def _nvdec() -> Iterator[Check]:
    from vsim_fast.video import _nvdec

    nv = _nvdec.library()
    if isinstance(nv, str):
        reason, _, cure = nv.partition("; ")
        yield Check("nvdec", False, reason, cure)
        return
    able, unable = [], []
    for codec, depth in NVDEC_FORMATS:
        caps = _nvdec.hardware_limits(codec, depth, gpu=0)
        if isinstance(caps, str):
            unable.append(caps)
        else:
            able.append(f"{codec} in {depth} bits up to {caps['width_max']}x{caps['height_max']}")
    detail = "; ".join([f"decodes {', '.join(able) or 'nothing'}", *unable])
    yield Check("nvdec", bool(able), detail, "" if able else "use a GPU with a video decoder, or --decoder pyav")


def _pyav() -> Iterator[Check]:
    try:
        import av
    except Exception as error:
        yield Check("pyav", False, _reason(error), "pip install av", required=True)
        return
    missing = [codec for codec in VIDEO_CODECS if codec not in av.codecs_available]
    detail = f"PyAV {av.__version__}, FFmpeg {getattr(av, 'ffmpeg_version_info', 'unknown')}; decodes " + ", ".join(
        codec for codec in VIDEO_CODECS if codec not in missing
    )
    cure = "install PyAV's own wheel (pip install --force-reinstall --only-binary=av av)" if missing else ""
    yield Check("pyav", not missing, detail + (f"; not {', '.join(missing)}" if missing else ""), cure)


def _core() -> Iterator[Check]:
    from vsim_fast.ops._dispatch import why_not

    if reason := why_not("cpp", "cpu"):
        yield Check("compiled core", False, f"{reason}; the torch reference serves instead, slower",
                    f"install a C++17 compiler (apt install g++), then {REINSTALL}")  # fmt: skip
        return
    from vsim_fast import _C

    info = _C.build_info()
    yield Check("compiled core", True, f"runs {_C.simd()}, holds {', '.join(_C.simd_levels())}; {info['compiler']}")
    if _C.has_cuda:
        yield Check("core with CUDA", True, f"CUDA {info['cuda']}, architectures {info['architectures']}")
    else:
        yield Check("core with CUDA", False, "the core was built without CUDA: no nvcc was found",
                    f"install nvcc, then VSIM_CUDA=ON {REINSTALL}")  # fmt: skip


def _triton() -> Iterator[Check]:
    import torch

    from vsim_fast.ops._dispatch import why_not

    if reason := why_not("triton", "cuda"):
        yield Check("triton", False, reason, "pip install triton (Linux)")
    elif not torch.cuda.is_available():
        found = f"triton {metadata.version('triton')} imports, but its kernels need a GPU; the torch reference serves"
        yield Check("triton", False, found, "run on a machine with an NVIDIA GPU")
    else:
        yield Check("triton", True, metadata.version("triton"))


def _processor() -> Iterator[Check]:
    native = BFLOAT16 & instruction_sets()
    if not instruction_sets():
        yield Check("native bf16", None, "this system does not list its CPU's instruction sets")
    elif native:
        yield Check("native bf16", True, f"the CPU has {', '.join(sorted(native))}")
    else:
        cure = "nothing to install: encoders compute in fp32 on this CPU"
        yield Check("native bf16", False, "the CPU has none of AVX512-BF16, AMX-BF16, Arm BF16", cure)
    yield Check("cpu cores", True, f"{usable_cores()} for this process, {os.cpu_count()} in the machine")
    yield _enough("free memory", _free_memory(), 4)
    yield _enough("free disk", shutil.disk_usage(Path.cwd()).free, 2, f" in {Path.cwd()}")


def _extras() -> Iterator[Check]:
    try:
        requirements = metadata.requires("vsim_fast") or []
    except metadata.PackageNotFoundError:
        yield Check("extras", None, "vsim_fast runs from its source folder; extras are known once it is installed",
                    "pip install .")  # fmt: skip
        return
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]
    for extra in metadata.metadata("vsim_fast").get_all("Provides-Extra") or []:
        markers = [(r.name, r.marker) for r in parsed if "extra" in str(r.marker)]
        added = [name for name, marker in markers if marker.evaluate({"extra": extra})]
        if missing := [name for name in added if not _has(name)]:
            cure = f"pip install 'vsim_fast[{extra}]'"
            yield Check(f"extra {extra}", False, f"not installed: {', '.join(missing)}", cure)
        else:
            yield Check(f"extra {extra}", True, ", ".join(added) or "nothing to install on this system")


def _encoders() -> Iterator[Check]:
    yield Check("encoder builtin", True, "ships with the package, needs no download")
    known = [name for name in cached_repos() if any(family in name.lower() for family in ENCODER_FAMILIES)]
    if known:
        shown = ", ".join(known[:8]) + (", …" if known[8:] else "")
        yield Check("encoder weights", True, f"{len(known)} in {hub_cache()}: {shown}")
    else:
        yield Check("encoder weights", None, f"no cached vision model in {hub_cache()}",
                    "name a hub id (timm:NAME, hf:ID) to fetch one, or a local folder")  # fmt: skip


PROBES: list[Callable[[], Iterator[Check]]] = [
    _python, _pyav, _core, _triton, _gpu, _driver, _nvdec, _processor, _encoders, _extras,
]  # fmt: skip


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _library_error(soname: str) -> str | None:
    """Why a shared library does not load, None when it does."""
    try:
        ctypes.CDLL(soname)
    except OSError as error:
        return str(error)
    return None


def _free_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _enough(name: str, free: int | None, least_gib: int, where: str = "") -> Check:
    if free is None:
        return Check(name, None, "this system does not tell")
    detail = f"{free / 2**30:.1f} GiB{where}"
    cure = "" if free >= least_gib * 2**30 else f"free at least {least_gib} GiB, or use --reduce and shorter clips"
    return Check(name, not cure, detail, cure)

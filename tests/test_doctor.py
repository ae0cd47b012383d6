"""`diagnose` answers on any machine: each no has its reason and its cure, and nothing raises."""

from __future__ import annotations

import json
import subprocess
import sys
from email.message import Message
from importlib import metadata

import pytest

from vsim_fast import doctor
from vsim_fast.doctor import Check, diagnose, exit_code
from vsim_fast.ops import _dispatch
from vsim_fast.video import _nvdec


def by_name(checks):
    return {check.name: check for check in checks}


def test_diagnose_on_this_machine():
    checks = diagnose()
    found = by_name(checks)
    assert len(found) == len(checks), "names repeat"
    assert {"python", "torch", "pyav", "compiled core", "triton", "nvdec", "native bf16", "encoder builtin"} <= set(
        found
    )
    for check in checks:
        assert check.detail, check
        assert bool(check.cure) == (check.ok is False) or check.ok is None, check
    assert json.loads(json.dumps([check.as_dict() for check in checks]))[0]["name"] == "python"
    assert exit_code(checks) == 0


def test_a_missing_core_is_told_with_its_cure(monkeypatch):
    reason = "the compiled core is not installed (cannot import name '_C')"
    monkeypatch.setattr(_dispatch, "why_not", lambda backend, device: reason if backend == "cpp" else None)
    check = by_name(diagnose())["compiled core"]
    assert check.ok is False and reason in check.detail
    assert "reference serves" in check.detail and "g++" in check.cure
    assert exit_code([check]) == 0


def test_exit_code_counts_only_what_is_required():
    assert exit_code([Check("gpu", False, "none", "buy one"), Check("torch", True, "2.11", required=True)]) == 0
    assert exit_code([Check("torch", False, "missing", "pip install torch", required=True)]) == 1
    assert exit_code([Check("torch", None, "unknown", required=True)]) == 0


def test_a_probe_that_breaks_hides_nothing(monkeypatch):
    def _broken_driver():
        yield Check("first half", True, "fine")
        raise OSError("ioctl failed")

    monkeypatch.setattr(doctor, "PROBES", [_broken_driver, doctor._processor])
    first, broken, *others = diagnose()
    assert (first.name, broken.name, broken.ok) == ("first half", "broken driver", False)
    assert broken.detail == "OSError: ioctl failed" and others


@pytest.fixture
def fake_nvdec(tmp_path, monkeypatch):
    """Installs a module PyNvVideoCodec with the given source for the test."""

    def install(source: str) -> None:
        (tmp_path / "PyNvVideoCodec.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "PyNvVideoCodec", raising=False)
        _nvdec.library.cache_clear()

    yield install
    sys.modules.pop("PyNvVideoCodec", None)
    _nvdec.library.cache_clear()


def test_nvdec_that_does_not_import_names_the_driver(fake_nvdec):
    fake_nvdec("raise RuntimeError('''\nlibnvidia-encode.so.1 not found\na page of advice''')")
    (check,) = doctor._nvdec()
    assert check.ok is False and check.detail == "PyNvVideoCodec does not import (libnvidia-encode.so.1 not found)"
    assert check.cure.startswith("install the NVIDIA driver")


def test_nvdec_lists_what_it_decodes(fake_nvdec):
    fake_nvdec(
        "class cudaVideoCodec: H264, HEVC, VP9, AV1 = range(4)\n"
        "def GetDecoderCaps(gpuid, codec, bitdepth):\n"
        "    if codec == 2: raise RuntimeError('bad codec')\n"
        "    return dict(num_decoder_engines=7 * (codec != 3), width_max=4096, height_max=4096)\n"
    )
    (check,) = doctor._nvdec()
    assert check.ok and check.detail == (
        "decodes h264 in 8 bits up to 4096x4096, hevc in 8 bits up to 4096x4096, hevc in 10 bits up to 4096x4096; "
        "the GPU does not say whether it decodes vp9 in 8 bits (bad codec); the GPU does not decode av1 in 8 bits"
    )


def test_extras_come_from_the_package_metadata(monkeypatch):
    requires = ["numpy>=1", "triton; platform_system == 'Linux'", "nosuchlib>=2; extra == 'lance'",
                "pytest; extra == 'test'", "winlib; sys_platform == 'nowhere' and extra == 'plot'"]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    message = Message()
    for extra in ("lance", "test", "plot"):
        message["Provides-Extra"] = extra
    monkeypatch.setattr(metadata, "metadata", lambda name: message)
    lance, test, plot = doctor._extras()
    assert lance == Check("extra lance", False, "not installed: nosuchlib", "pip install 'vsim_fast[lance]'")
    assert test == Check("extra test", True, "pytest") and plot.ok


def test_cached_vision_models_are_listed(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert by_name(doctor._encoders())["encoder weights"].ok is None
    for name in ("models--facebook--dinov2-small", "models--org--some-llm"):
        (tmp_path / "hub" / name / "snapshots" / "0").mkdir(parents=True)
    check = by_name(doctor._encoders())["encoder weights"]
    assert check.ok and check.detail.endswith(": facebook/dinov2-small")


def test_diagnose_without_any_library():
    code = (
        "import sys, json\n"
        "for name in ('torch', 'numpy', 'av', 'triton', 'timm', 'transformers', 'PyNvVideoCodec', 'vsim_fast._C'):\n"
        "    sys.modules[name] = None\n"
        "from vsim_fast.doctor import diagnose, exit_code\n"
        "checks = diagnose()\n"
        "print(json.dumps([[c.as_dict() for c in checks], exit_code(checks)]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, status = json.loads(run.stdout)
    assert status == 1
    answers = {row["name"]: row["ok"] for row in rows}
    assert answers["torch"] is answers["pyav"] is answers["core"] is False

#!/usr/bin/env bash
# Download, where an index is at hand, the wheels that a GPU machine with torch, timm and transformers may still lack.
# usage: bench/wheels.sh DIR [REQUIREMENT…]      then there: WHEELS=DIR bench/gpu.sh
# Wheels of the decoder library carry FFmpeg's sources and notebooks, 60 % of their size; those are taken out.
set -euo pipefail
dir=${1:?usage: bench/wheels.sh DIR [REQUIREMENT…]}
shift
python=${PYTHON:-python3}
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(
  "av>=14,<19" "PyNvVideoCodec>=2.2.4" "pydantic>=2" annotated-types typing-inspection typing-extensions
)

fetch() {
  local tags=()
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do tags+=(--platform "${tag}_x86_64"); done
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${TARGET_PYTHON:-3.12}" \
    --implementation cp "${tags[@]}" --dest "$dir" "$@"
}

mkdir -p "$dir"
fetch "${wanted[@]}"
core=$(for wheel in "$dir"/pydantic-[0-9]*.whl; do
  [ ! -e "$wheel" ] || unzip -p "$wheel" '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[^;]*\).*/\1/p'
done)
[ -z "$core" ] || fetch "$core"

"$python" - "$dir" <<'PYTHON'
import sys, zipfile
from pathlib import Path

def wanted(name: str) -> bool:
    return ".data/data/" not in name and not name.startswith("samples/")

for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    with zipfile.ZipFile(wheel) as full:
        if not all(map(wanted, full.namelist())):
            slim = wheel.with_suffix(".tmp")
            with zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as out:
                for info in filter(lambda info: wanted(info.filename), full.infolist()):
                    data = full.read(info)
                    if info.filename.endswith(".dist-info/RECORD"):
                        data = b"".join(line for line in data.splitlines(True) if wanted(line.decode()))
                    out.writestr(info, data)
            slim.replace(wheel)
    print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
PYTHON
du -sh "$dir"

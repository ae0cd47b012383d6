#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU: build, GPU tests, timings, trace, rows. Needs no package index.
# usage: [WHEELS=dir] [CLIPS=dir] [OUT=dir] [BUDGET=480] [PYTHON=python3] bench/gpu.sh [--dry-run]
#   WHEELS  wheels to add to what the machine has (bench/wheels.sh fetches them); CLIPS  real clips to time on;
#   OUT     where rows, trace and log go, default bench/results; BUDGET  seconds in all: steps that no longer fit are cut.
# --dry-run prints the plan and what is missing. Exit code 1 when a step failed or a required one was left out.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3} out=$(realpath -m "${OUT:-bench/results}") budget=${BUDGET:-480}
dry=; [ "${1:-}" = --dry-run ] && dry=1
site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT
mkdir -p "$out" && log=$out/gpu.log && : >"$log"
# Safe path: test the installed package, not the source tree, which has no compiled core.
export PYTHONPATH=$site:$PWD/bench PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg
export VSIM_BENCH_CLIPS=${CLIPS:-}
summary=() failed=0

# why_not WHAT…: the first missing thing among lib:NAME (shared library), py:NAME (module), cmd:NAME, gpu
why_not() {
  local what
  for what in "$@"; do
    case $what in
      lib:*) "$python" -c "import ctypes; ctypes.CDLL('${what#lib:}')" 2>/dev/null ;;
      py:*) "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${what#py:}') is None)" 2>/dev/null ;;
      cmd:*) command -v "${what#cmd:}" >/dev/null ;;
      gpu) "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" 2>/dev/null ;;
    esac || { echo "${what#*:}"; return; }
  done
}

# step NAME required|optional LIMIT_S "NEEDS" COMMAND…
step() {
  local name=$1 weight=$2 limit=$3 needs=$4 left=$((budget - SECONDS)) missing start=$SECONDS status code
  shift 4
  # shellcheck disable=SC2086
  missing=$(why_not $needs)
  if [ -n "$dry" ]; then
    printf '%-12s %-8s %4ss  %s\n%29s%s\n' "$name" "$weight" "$limit" "$*" "" "${missing:+MISSING here: $missing}"
    return
  elif [ -n "$missing" ]; then
    status="left out: no $missing"
    [ "$weight" = required ] && failed=1
  elif [ "$left" -lt 15 ]; then
    status="cut: $budget s are spent" failed=1
  else
    echo "== $name" | tee -a "$log"
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$site/step.log" 2>&1
    code=$?
    cat "$site/step.log" >>"$log"
    case $code in
      0) status=ok; tail -n 4 "$site/step.log" ;;
      124 | 137) status="cut: ran past its time" failed=1; tail -n 15 "$site/step.log" ;;
      *) status="FAILED (exit $code)" failed=1; tail -n 40 "$site/step.log" ;;
    esac
  fi
  summary+=("$(printf '%-12s %4ss  %s' "$name" "$((SECONDS - start))" "$status")")
}

describe() {
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  nvcc --version | tail -n 2
  "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
  local library
  for library in libcuda.so.1 libnvcuvid.so.1 libnvidia-encode.so.1; do
    echo "$library: $([ -z "$(why_not "lib:$library")" ] && echo found || echo missing)"
  done
}

add_wheels() { "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl; }

build() {
  CMAKE_ARGS='-DVSIM_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=80;90' \
    "$python" -m pip install --no-index --no-deps --no-build-isolation --no-compile --target "$site" . &&
    "$python" -c 'from vsim_fast import _C; assert _C.has_cuda, "built without CUDA"; print("compiled core with CUDA:", _C.__file__)'
}

pytest_here() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
gpu_tests() { pytest_here tests -m needs_cuda --require needs_cuda -k "not nvdec"; }
nvdec_tests() { pytest_here tests -m needs_cuda --require needs_cuda -k nvdec; }
time_ops() { pytest_here bench/test_ops.py --rows "$out"; }
time_end_to_end() { pytest_here bench/test_end_to_end.py --rows "$out"; }
trace() { "$python" bench/device_trace.py --out "$out/trace.json"; }
export -f describe why_not add_wheels build pytest_here gpu_tests nvdec_tests time_ops time_end_to_end trace
export python out site log

nvdec="lib:libnvcuvid.so.1 lib:libnvidia-encode.so.1 py:PyNvVideoCodec"
step machine required 30 "cmd:nvidia-smi gpu" bash -c describe
[ -z "${WHEELS:-}" ] || step wheels required 60 "" bash -c add_wheels
step build required 150 "cmd:nvcc py:scikit_build_core py:pybind11" bash -c build
step gpu-tests required 150 "gpu py:pytest py:av py:timm py:transformers" bash -c gpu_tests
step nvdec-tests optional 60 "gpu $nvdec" bash -c nvdec_tests
step ops required 150 "gpu py:pytest_benchmark" bash -c time_ops
step trace optional 60 "gpu $nvdec" bash -c trace
step end-to-end required 120 "gpu py:pytest_benchmark py:av py:timm" bash -c time_end_to_end
[ -n "$dry" ] && exit 0

"$python" -c 'import sys; from pathlib import Path; from vsim_fast.benchmark import latest, read_rows, table
print(table(latest(read_rows(Path(sys.argv[1])))))' "$out" 2>&1 | tee -a "$log"
printf '%s\n' "== summary, $SECONDS of $budget s; log: $log" "${summary[@]}" | tee -a "$log"
exit "$failed"

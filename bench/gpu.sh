#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU: build, GPU tests, timings, trace, rows. Needs no package index.
# usage: [WHEELS=dir] [CLIPS=dir] [OUT=dir] [BUDGET=480] [PYTHON=python3] bench/gpu.sh [--dry-run] [STEP…]
#   WHEELS  wheels to add to what the machine has (bench/wheels.sh fetches them); CLIPS  real clips to time on;
#   OUT     where rows, trace and log go, default bench/results; BUDGET  seconds in all: steps that no longer fit are cut;
#   VSIM_COMMIT  the commit, with -dirty at its end where that holds, if the tree comes without its git folder;
#   STEP…   only these of op-tests, gpu-tests, nvdec-tests, sanitizer, ops, engine, modes, trace, tune, programs,
#           pairs, batches; `correctness` stands for the first four of them, `timings` for the others.
# The limits of all steps add up to more than three times the budget, and one call for all cuts the last ones. Where a
# call may take ten minutes, make two: BUDGET=570 bench/gpu.sh correctness, then BUDGET=570 bench/gpu.sh timings.
# Ops are timed after their tests have passed with the same sources: in a call before on this machine, else in this one.
# --dry-run prints the plan, the sum of its limits and what is missing. Exit code 1 when a step failed or was cut, or a
# required one left out.
set -uo pipefail
out=${OUT:+$(realpath -m "$OUT")} wheels=${WHEELS:+$(realpath -m "$WHEELS")}
export VSIM_BENCH_CLIPS=${CLIPS:+$(realpath -m "$CLIPS")}
cd "$(dirname "$0")/.." || exit 1
dry=
[ "${1:-}" = --dry-run ] && dry=1 && shift
correctness="op-tests gpu-tests nvdec-tests sanitizer" timings="ops engine modes trace tune programs pairs batches"
chosen=" $* " chosen=${chosen/ correctness / $correctness } chosen=${chosen/ timings / $timings }
for name in $chosen; do
  [[ " $correctness $timings " == *" $name "* ]] && continue
  echo "no step $name; there are: $correctness $timings" >&2
  exit 2
done
python=${PYTHON:-python3} out=${out:-$PWD/bench/results} budget=${BUDGET:-480}
site=$(mktemp -d) && trap 'rm -rf "$site"' EXIT
if [ -n "$VSIM_BENCH_CLIPS" ] && ! compgen -G "$VSIM_BENCH_CLIPS/*.mp4" >/dev/null; then
  echo "CLIPS has no *.mp4: $VSIM_BENCH_CLIPS" >&2
  exit 2
fi
log=$out/gpu.log
# Safe path: test the installed package, not the source tree, which has no compiled core.
export PYTHONPATH=$site:$PWD/bench PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg
summary=() failed=0 last= planned=0

# missing WHAT…: which of lib:NAME (shared library), py:NAME (module), cmd:NAME, CLIPS and gpu are not here
missing() {
  local what names=()
  for what in "$@"; do
    case $what in
      lib:*) "$python" -c "import ctypes; ctypes.CDLL('${what#lib:}')" ;;
      py:*) "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${what#py:}') is None)" ;;
      cmd:*) command -v "${what#cmd:}" ;;
      CLIPS) [ -n "$VSIM_BENCH_CLIPS" ] ;;
      gpu) nvidia-smi -L ;;
    esac >/dev/null 2>&1 || names+=("${what#*:}")
  done
  echo "${names[*]}"
}

# step NAME required|optional LIMIT_S "NEEDS" FUNCTION [ARGUMENT…]; `last` is then its status
step() {
  local name=$1 weight=$2 limit=$3 lacks left=$((budget - SECONDS)) start=$SECONDS code
  # shellcheck disable=SC2086
  lacks=$(missing $4)
  shift 4
  if [ -n "$dry" ]; then
    printf '%-12s %-8s %4ss  %s\n' "$name" "$weight" "$limit" "${lacks:+missing here: $lacks}"
    declare -f "$1" | sed '1,2d;$d'
    planned=$((planned + limit))
    return
  elif [ -n "$lacks" ]; then
    last="left out: no $lacks"
    [ "$weight" = required ] && failed=1
  elif [ "$left" -lt 15 ]; then
    last="cut: $budget s are spent" failed=1
  else
    echo "== $name" | tee -a "$log"
    # Interrupted, pytest still says what has failed.
    timeout --signal=INT --kill-after=10 "$((limit < left ? limit : left))" bash -c '"$@"' step "$@" >"$site/step.log" 2>&1
    code=$?
    cat "$site/step.log" >>"$log"
    case $code in
      0) last=ok && tail -n 4 "$site/step.log" ;;
      124 | 137) last="cut: ran past its time" failed=1 && tail -n 15 "$site/step.log" ;;
      *) last="FAILED (exit $code)" failed=1 && tail -n 40 "$site/step.log" ;;
    esac
  fi
  summary+=("$(printf '%-12s %4ss  %s' "$name" "$((SECONDS - start))" "$last")")
}

wanted() { [ "$chosen" = "  " ] || [[ $chosen == *" $1 "* ]]; }

describe() {
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  nvcc --version | tail -n 2
  "$python" -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
  local library
  for library in libcuda.so.1 libnvcuvid.so.1 libnvidia-encode.so.1; do
    echo "$library: $([ -z "$(missing "lib:$library")" ] && echo found || echo missing)"
  done
}

add_wheels() { "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl; }

build() {
  # By this variable, not by CMAKE_ARGS alone: then what does not compile is an error, not an install without the core.
  VSIM_CUDA=ON CMAKE_ARGS='-DCMAKE_CUDA_ARCHITECTURES=80;90' \
    "$python" -m pip install --no-index --no-deps --no-build-isolation --no-compile --target "$site" . &&
    "$python" -c 'from vsim_fast import _C; assert _C.has_cuda, "built without CUDA"; print("compiled core with CUDA:", _C.__file__)'
}

pytest_here() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
# Most of the ops' tests' time goes into compiling kernels: on as many cores as there are, where pytest-xdist is.
op_tests() {
  local spread=()
  [ -n "$(missing py:xdist)" ] || spread=(-p no:benchmark -n "$(($(nproc) * 3 / 4 + 1))" --dist worksteal)
  OMP_NUM_THREADS=2 pytest_here tests/ops --ignore tests/ops/test_triton_compiles.py -m "not needs_nvcc" \
    --require needs_cuda "${spread[@]}"
}
gpu_tests() { pytest_here tests --ignore tests/ops -m "needs_cuda and not needs_nvdec" --require needs_cuda; }
nvdec_tests() { pytest_here tests -m needs_nvdec --require needs_nvdec; }

# sanitize TOOL TESTS [OPTION…]
sanitize() {
  local tool=$1 tests=$2
  shift 2
  echo "-- $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all --require-cuda-init no \
    --report-api-errors no --print-limit 20 "$@" \
    "$python" -m pytest -q -p no:cacheprovider -p no:benchmark tests/ops -k "$tests" --require needs_cuda
}
sanitizer() {
  local core="cuda and (few_short_series or given_costs or test_derivatives) and not source and not emulated"
  local shapes="position_similarity-T17 or intra_frame_similarity-T1-P150 or B2-37x70 or Q17-N300 or 10-bit-odd"
  local own="--kernel-name kns=4vsim" code=0 # the namespace in the mangled names of our own kernels
  # Without torch's cache every block is an allocation, so that what runs over its end shows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck "($core) or (triton and not bfloat16 and ($shapes))" || code=1
  # shellcheck disable=SC2086
  sanitize racecheck "$core" $own || code=1
  # shellcheck disable=SC2086
  sanitize synccheck "$core" $own || code=1
  return "$code"
}
time_ops() { pytest_here bench/test_ops.py --rows "$out" ${1:+"$1"}; }
time_engine() { pytest_here bench/test_end_to_end.py -k "engine or readers" --rows "$out"; }
time_modes() { pytest_here bench/test_end_to_end.py -k modes --rows "$out"; }
time_programs() { pytest_here bench/test_end_to_end.py -k straightforward --rows "$out"; }
time_pairs() { pytest_here bench/test_pairs.py --pairs 8 --rows "$out"; }
time_batches() {
  "$python" bench/batch.py cut "$VSIM_BENCH_CLIPS" "$site/cut" --count 64 &&
    "$python" bench/batch.py roofs "$site/cut" --model timm:vit_base_patch14_dinov2@random --fps 10 --rows "$out"
}
trace() { "$python" bench/device_trace.py --out "$out/trace.json"; }
tune() { "$python" bench/tune.py --budget 130 --out "$out/tune.json"; }
export -f describe missing add_wheels build pytest_here op_tests gpu_tests nvdec_tests sanitize sanitizer tune time_ops time_engine time_modes time_programs time_pairs time_batches trace
export python out site wheels

[ -n "$dry" ] || { mkdir -p "$out" && : >"$log"; } || exit 2
nvdec="gpu lib:libnvcuvid.so.1 lib:libnvidia-encode.so.1 py:PyNvVideoCodec"
step machine required 30 "cmd:nvidia-smi gpu" describe
[ -z "$wheels" ] || step wheels required 60 "" add_wheels
step build required 150 "cmd:nvcc cmd:cmake py:scikit_build_core py:pybind11" build
sources=$(find vsim_fast/ops csrc tests/ops -type f ! -path "*__pycache__*" -print0 | sort -z | xargs -0 cat | sha256sum)
passed=build/op-tests-passed
tested() { [ "$(cat "$passed" 2>/dev/null)" = "$sources" ]; }
if wanted op-tests || { wanted ops && ! tested; }; then
  step op-tests required 200 "gpu py:pytest" op_tests
  [ "$last" = ok ] && mkdir -p build && echo "$sources" >"$passed"
fi
wanted gpu-tests && step gpu-tests required 130 "gpu py:pytest py:av py:timm py:transformers" gpu_tests
wanted nvdec-tests && step nvdec-tests optional 60 "$nvdec" nvdec_tests
wanted sanitizer && step sanitizer optional 90 "gpu py:pytest cmd:compute-sanitizer" sanitizer
wanted ops && step ops required 180 "gpu py:pytest_benchmark" time_ops "$(tested && echo --tested)"
wanted engine && step engine required 60 "gpu py:pytest_benchmark py:av py:timm" time_engine
wanted modes && step modes required 130 "gpu py:pytest_benchmark py:av py:timm" time_modes
wanted trace && step trace optional 60 "$nvdec" trace
wanted tune && step tune optional 150 "gpu" tune
wanted programs && step programs required 150 "gpu py:pytest_benchmark py:av py:timm" time_programs
wanted pairs && step pairs required 150 "gpu py:pytest_benchmark py:av py:timm py:sklearn" time_pairs
wanted batches && step batches optional 150 "CLIPS gpu py:av py:timm" time_batches
[ -n "$dry" ] && echo "limits of these steps: $planned s; budget: $budget s" && exit 0

"$python" -c 'import sys; from pathlib import Path; from vsim_fast.benchmark import latest, read_rows, table
print(table(latest(read_rows(Path(sys.argv[1])))))' "$out" 2>&1 | tee -a "$log"
printf '%s\n' "== summary, $SECONDS of $budget s; log: $log" "${summary[@]}" | tee -a "$log"
exit "$failed"

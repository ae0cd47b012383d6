#!/usr/bin/env bash
# Builds the core with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of its own and runs the tests of its
# ops against it; the first bad access or undefined operation ends the run.
#   tests/native/asan.sh [pytest arguments]     PYTHON, CXX: the interpreter (with pybind11, cmake) and GCC to use.
# Needs an environment in which vsim_fast is not installed as editable: its import hook would hide the build.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python}
cxx=${CXX:-c++}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

flags="-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
cmake -S "$root" -B "$build/cmake" -DVSIM_CUDA=OFF -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$cxx" \
  -DCMAKE_CXX_FLAGS="$flags" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DPython_EXECUTABLE="$(command -v "$python")" -DPYTHON_EXECUTABLE="$(command -v "$python")" --no-warn-unused-cli >"$build/log" || { cat "$build/log"; exit 1; }
cmake --build "$build/cmake" --parallel >"$build/log" 2>&1 || { cat "$build/log"; exit 1; }

mkdir "$build/package"
cp -r "$root/vsim_fast" "$build/package/"
rm -f "$build"/package/vsim_fast/_C*.so
cp "$build"/cmake/_C*.so "$build/package/vsim_fast/"

export PYTHONPATH=$build/package PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
# The C++ library goes first into the process too, or the sanitizer cannot hand on exceptions that cross it.
LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
cd "$root"
"$python" -c "from vsim_fast import _C; assert _C.__file__.startswith('$build'), _C.__file__"
if [ $# -eq 0 ]; then
  set -- tests/ops/test_dtw.py tests/ops/test_dtw_fuzz.py tests/ops/test_derivatives.py \
    tests/ops/test_best_cosines.py tests/ops/test_top_k.py
fi
"$python" -m pytest -q -p no:cacheprovider -k "not cuda" "$@"

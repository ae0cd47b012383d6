// The only file that knows Python: checks, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "derivatives.h"
#include "simd.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // with noconvert(): a wrong dtype or layout raises, never copies

template <class T>
void check_shape(const char* name, const Array<T>& array, std::initializer_list<int64_t> shape) {
  bool same = array.ndim() == static_cast<int64_t>(shape.size());
  std::string want;
  int axis = 0;
  for (int64_t size : shape) {
    same = same && array.shape(axis++) == size;
    want += (want.empty() ? "(" : ", ") + std::to_string(size);
  }
  if (!same) {
    const auto got = py::str(py::tuple(array.attr("shape"))).cast<std::string>();
    throw std::invalid_argument(std::string(name) + " must have shape " + want + "), got " + got);
  }
}

void derivatives(const Array<float>& x, const Array<int64_t>& windows, const Array<int64_t>& counts,
                 Array<float>& magnitudes, Array<float>& changes, Array<float>& mean, Array<float>& variance,
                 int64_t threads, const std::string& simd) {
  if (x.ndim() != 3) throw std::invalid_argument("x must be [B, T, D], got " + std::to_string(x.ndim()) + " axes");
  const int64_t B = x.shape(0), T = x.shape(1), D = x.shape(2), S = windows.size();
  check_shape("windows", windows, {S});
  check_shape("counts", counts, {B, S});
  check_shape("magnitudes", magnitudes, {B, S, T});
  check_shape("changes", changes, {B, S, T});
  check_shape("mean", mean, {B, S, D});
  check_shape("variance", variance, {B, S});
  for (int64_t s = 0; s < S; ++s) {
    const int64_t window = windows.data()[s], most = T > window ? T - window : 0;
    if (window < 1) throw std::invalid_argument("windows must be >= 1, got " + std::to_string(window));
    for (int64_t b = 0; b < B; ++b)
      if (const int64_t count = counts.data()[b * S + s]; count < 0 || count > most)
        throw std::invalid_argument("counts must be in 0.." + std::to_string(most) + ", got " + std::to_string(count));
  }
  const vsim::DerivativesArgs args{x.data(), windows.data(), counts.data(), B, T, D, S, magnitudes.mutable_data(),
                                   changes.mutable_data(), mean.mutable_data(), variance.mutable_data()};
  const vsim::Simd level = vsim::choose_simd(simd);
  py::gil_scoped_release release;
  vsim::derivatives_cpu(args, level, threads);
}

#ifdef VSIM_CUDA_VERSION
template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

void derivatives_cuda(uintptr_t x, uintptr_t windows, uintptr_t counts, uintptr_t magnitudes, uintptr_t changes,
                      uintptr_t mean, uintptr_t variance, uintptr_t partial, int64_t B, int64_t T, int64_t D, int64_t S,
                      uintptr_t stream) {
  const vsim::DerivativesArgs args{pointer<const float>(x), pointer<const int64_t>(windows),
                                   pointer<const int64_t>(counts), B, T, D, S,
                                   pointer<float>(magnitudes), pointer<float>(changes),
                                   pointer<float>(mean), pointer<float>(variance)};
  py::gil_scoped_release release;
  vsim::derivatives_cuda(args, pointer<float>(partial), pointer<void>(stream));
}
#endif

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

py::dict build_info() {
  py::dict info("compiler"_a = kCompiler, "cuda"_a = py::none(), "architectures"_a = py::none());
#ifdef VSIM_CUDA_VERSION
  info["cuda"] = VSIM_CUDA_VERSION;
  info["architectures"] = VSIM_CUDA_ARCHITECTURES;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native core of vsim_fast: numpy arrays or CUDA addresses in, outputs allocated by the caller.";
#ifdef VSIM_CUDA_VERSION
  m.attr("has_cuda") = true;
  m.attr("CUDA_CHUNK") = vsim::kCudaChunk;
  m.def("derivatives_cuda", &derivatives_cuda, "x"_a, "windows"_a, "counts"_a, "magnitudes"_a, "changes"_a, "mean"_a,
        "variance"_a, "partial"_a, "B"_a, "T"_a, "D"_a, "S"_a, "stream"_a);
#else
  m.attr("has_cuda") = false;
#endif
  m.def("simd", [] { return vsim::simd_name(vsim::usable_simd().back()); }, "Fastest instruction set this CPU runs.");
  m.def("simd_levels", [] {
    py::list names;
    for (vsim::Simd simd : vsim::usable_simd()) names.append(vsim::simd_name(simd));
    return names;
  }, "Instruction sets this build holds and this CPU runs, slowest first.");
  m.def("build_info", &build_info, "Compiler, CUDA version and GPU architectures of this build.");
  m.def("derivatives", &derivatives, "x"_a.noconvert(), "windows"_a.noconvert(), "counts"_a.noconvert(),
        "magnitudes"_a.noconvert(), "changes"_a.noconvert(), "mean"_a.noconvert(), "variance"_a.noconvert(),
        "threads"_a = 0, "simd"_a = "");
}

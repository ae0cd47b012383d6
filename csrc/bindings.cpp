// The only file that knows Python: checks, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "attention.h"
#include "best_cosines.h"
#include "derivatives.h"
#include "dtw_cpu.h"
#include "simd.h"
#include "top_k.h"

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

using Strided = py::array_t<uint16_t, 0>;  // bits of bfloat16, in any layout

vsim::Heads heads_of(const char* name, const Strided& x) {
  if (x.ndim() != 4) throw std::invalid_argument(std::string(name) + " must be [B, H, N, d]");
  if (x.shape(3) > 1 && x.strides(3) != 2)
    throw std::invalid_argument(std::string(name) + " must have the numbers of a token side by side");
  return {reinterpret_cast<char*>(const_cast<uint16_t*>(x.data())), x.strides(0), x.strides(1), x.strides(2)};
}

void attention(const Strided& q, const Strided& k, const Strided& v, Strided& out, float scale, int64_t threads) {
  const vsim::AttentionArgs args{heads_of("q", q), heads_of("k", k), heads_of("v", v), heads_of("out", out),
                                 q.shape(0), q.shape(1), q.shape(2), k.shape(2), q.shape(3), scale};
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t size = axis == 2 ? args.Nk : q.shape(axis);
    if (k.shape(axis) != size || v.shape(axis) != size || out.shape(axis) != q.shape(axis))
      throw std::invalid_argument("q and out, and k and v, must have one shape each, and all the same B, H and d");
  }
  if (args.Nk < 1 || args.d < 1) throw std::invalid_argument("k must have at least one token and d >= 1");
  if (!(scale > 0)) throw std::invalid_argument("scale must be positive, got " + std::to_string(scale));
  if (!vsim::usable_bf16()) throw std::runtime_error("attention on bfloat16 needs a CPU with avx512_bf16");
  py::gil_scoped_release release;
  vsim::attention_cpu(args, threads);
}

void best_cosines(const Array<int8_t>& a, const Array<float>& a_scales, const Array<int8_t>& b, const Array<float>& b_scales,
                  Array<float>& a_in_b, Array<float>& b_in_a, int64_t threads, const std::string& simd) {
  if (a.ndim() != 3 || b.ndim() != 3) throw std::invalid_argument("a and b must be [frames, tokens, D]");
  const int64_t N = a.shape(0), M = b.shape(0), Ka = a.shape(1), Kb = b.shape(1), D = a.shape(2);
  if (Ka < 1 || Kb < 1) throw std::invalid_argument("a and b must have at least one token per frame");
  if (D < 1 || D % vsim::kCodeMultiple || D > vsim::kMostCodes)
    throw std::invalid_argument("D must be a multiple of " + std::to_string(vsim::kCodeMultiple) + " up to " +
                                std::to_string(vsim::kMostCodes) + ", got " + std::to_string(D));
  check_shape("b", b, {M, Kb, D});
  check_shape("a_scales", a_scales, {N, Ka});
  check_shape("b_scales", b_scales, {M, Kb});
  check_shape("a_in_b", a_in_b, {N, M, Ka});
  check_shape("b_in_a", b_in_a, {N, M, Kb});
  const vsim::BestCosinesArgs args{a.data(), a_scales.data(), b.data(), b_scales.data(), N, M, Ka, Kb, D,
                                   a_in_b.mutable_data(), b_in_a.mutable_data()};
  const vsim::Simd level = vsim::choose_simd(simd);
  py::gil_scoped_release release;
  vsim::best_cosines_cpu(args, level, threads);
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

// Rows of float32, or of float16 as its bits.
template <class T>
vsim::VectorSet vector_set(const char* name, const Array<T>& rows, int64_t D) {
  if (rows.ndim() != 2 || rows.shape(1) != D || D < 1 || D > vsim::kMostDimensions)
    throw std::invalid_argument(std::string(name) + " must be [rows, D] with D in 1.." + std::to_string(vsim::kMostDimensions));
  return {rows.data(), rows.shape(0)};
}

template <class T>
int64_t top_k(const Array<T>& queries, const Array<T>& vectors, const Array<float>& mean, Array<float>& scores,
              Array<int64_t>& index, int64_t threads, const std::string& simd) {
  const int64_t D = mean.size();
  const auto q = vector_set("queries", queries, D), v = vector_set("vectors", vectors, D);
  if (scores.ndim() != 2) throw std::invalid_argument("scores must be [queries, k]");
  const int64_t k = scores.shape(1);
  if (k > v.count) throw std::invalid_argument("k must be at most " + std::to_string(v.count) + ", got " + std::to_string(k));
  check_shape("scores", scores, {q.count, k});
  check_shape("index", index, {q.count, k});
  const vsim::TopK args{q, v, sizeof(T) == 2, D, k, mean.data(), scores.mutable_data(), index.mutable_data()};
  const vsim::Simd level = vsim::choose_simd(simd);
  py::gil_scoped_release release;
  return vsim::top_k_cpu(args, level, threads);
}

// (first bad vector, -1, or -2 if there are more than `most`; pairs [M, 2]; scores [M])
template <class T>
py::tuple pairs_above(const Array<T>& vectors, const Array<float>& mean, float threshold, int64_t most, int64_t threads,
                      const std::string& simd) {
  const auto v = vector_set("vectors", vectors, mean.size());
  const vsim::Simd level = vsim::choose_simd(simd);
  std::vector<vsim::Pair> found;
  const int64_t bad = [&] {
    py::gil_scoped_release release;
    return vsim::pairs_above_cpu(v, sizeof(T) == 2, mean.size(), mean.data(), threshold, most, found, level, threads);
  }();
  const int64_t count = found.size();
  Array<int64_t> pairs({count, int64_t{2}});
  Array<float> scores(count);
  for (int64_t n = 0; n < count; ++n) {
    pairs.mutable_data()[2 * n] = found[n].i;
    pairs.mutable_data()[2 * n + 1] = found[n].j;
    scores.mutable_data()[n] = found[n].score;
  }
  return py::make_tuple(bad, pairs, scores);
}

vsim::DtwOptions dtw_options(int64_t D, bool euclidean, float scale, bool root, int64_t radius, double fraction, double slope,
                             bool open_begin, bool open_end, const std::string& normalize) {
  const auto kind = normalize == "path"     ? vsim::DtwNormalize::path
                    : normalize == "length" ? vsim::DtwNormalize::length
                                            : vsim::DtwNormalize::none;
  return {D, euclidean, scale, root, radius, fraction, slope, open_begin, open_end, kind};
}

// Sequences within the rows of `values` [rows, D].
vsim::DtwSeries dtw_series(const char* name, const Array<float>& values, const Array<int64_t>& starts,
                           const Array<int64_t>& lengths, int64_t D) {
  if (values.ndim() != 2 || values.shape(1) != D)
    throw std::invalid_argument(std::string(name) + " must be [rows, " + std::to_string(D) + "]");
  const int64_t count = lengths.size(), rows = values.shape(0);
  check_shape("starts", starts, {count});
  check_shape("lengths", lengths, {count});
  for (int64_t k = 0; k < count; ++k) {
    const int64_t start = starts.data()[k], length = lengths.data()[k];
    if (length < 1 || length > rows || start < 0 || start > rows - length)
      throw std::invalid_argument(std::string(name) + "[" + std::to_string(k) + "] must lie within " + std::to_string(rows) +
                                  " rows, got " + std::to_string(length) + " from " + std::to_string(start));
  }
  return {values.data(), starts.data(), lengths.data(), count};
}

using Ints = Array<int64_t>;
using Floats = Array<float>;

void dtw_pairwise(const Floats& x, const Ints& x_starts, const Ints& x_lengths, const std::optional<Floats>& y,
                  const Ints& y_starts, const Ints& y_lengths, const vsim::DtwOptions& o, Floats& out, int64_t threads,
                  const std::string& simd) {
  const auto a = dtw_series("x", x, x_starts, x_lengths, o.D);
  const auto b = y ? dtw_series("y", *y, y_starts, y_lengths, o.D) : a;
  check_shape("out", out, {a.count, b.count});
  const vsim::Simd level = vsim::choose_simd(simd);
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  vsim::dtw_pairwise_cpu(a, y ? &b : nullptr, o, to, level, threads);
}

void dtw_aligned(const Floats& x, const Ints& x_starts, const Ints& x_lengths, const Floats& y, const Ints& y_starts,
                 const Ints& y_lengths, const vsim::DtwOptions& o, Floats& out, int64_t threads, const std::string& simd) {
  const auto a = dtw_series("x", x, x_starts, x_lengths, o.D), b = dtw_series("y", y, y_starts, y_lengths, o.D);
  if (a.count != b.count) throw std::invalid_argument("x and y must hold as many sequences");
  check_shape("out", out, {a.count});
  const vsim::Simd level = vsim::choose_simd(simd);
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  vsim::dtw_aligned_cpu(a, b, o, to, level, threads);
}

// rows and columns [B] within costs [B, n, m]
void check_counts(const Floats& costs, const Ints& rows, const Ints& columns) {
  if (costs.ndim() != 3) throw std::invalid_argument("costs must be [B, n, m]");
  check_shape("rows", rows, {costs.shape(0)});
  check_shape("columns", columns, {costs.shape(0)});
  for (int64_t b = 0; b < costs.shape(0); ++b)
    if (rows.data()[b] < 1 || rows.data()[b] > costs.shape(1) || columns.data()[b] < 1 || columns.data()[b] > costs.shape(2))
      throw std::invalid_argument("rows and columns must lie within costs");
}

void dtw_costs(const Floats& costs, const Ints& rows, const Ints& columns, const vsim::DtwOptions& o, Floats& out,
               int64_t threads, const std::string& simd) {
  check_counts(costs, rows, columns);
  check_shape("out", out, {costs.shape(0)});
  if (o.normalize == vsim::DtwNormalize::path) throw std::invalid_argument("dtw_costs counts no cells; use dtw_path");
  const vsim::Simd level = vsim::choose_simd(simd);
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  vsim::dtw_costs_cpu(costs.data(), costs.shape(0), costs.shape(1), costs.shape(2), rows.data(), columns.data(), o, to, level,
                      threads);
}

// cells [n + m - 1, 2], last cell first; (how many, distance). Either x [n, D] and y [m, D], or costs [n, m].
py::tuple dtw_path(const std::optional<Floats>& x, const std::optional<Floats>& y, const std::optional<Floats>& costs,
                   const vsim::DtwOptions& o, Ints& cells, const std::string& simd) {
  if (costs ? costs->ndim() != 2 : !x || !y || x->ndim() != 2 || y->ndim() != 2 || x->shape(1) != o.D || y->shape(1) != o.D)
    throw std::invalid_argument("dtw_path takes x [n, D] and y [m, D], or costs [n, m]");
  const int64_t n = costs ? costs->shape(0) : x->shape(0), m = costs ? costs->shape(1) : y->shape(0);
  if (n < 1 || m < 1) throw std::invalid_argument("dtw_path takes at least one frame on either side");
  check_shape("cells", cells, {n + m - 1, 2});
  const vsim::Simd level = vsim::choose_simd(simd);
  int64_t* to = cells.mutable_data();
  double distance = 0;
  int64_t count = 0;
  {
    py::gil_scoped_release release;
    count = vsim::dtw_path_cpu(costs ? nullptr : x->data(), n, costs ? nullptr : y->data(), m, costs ? costs->data() : nullptr,
                               o, to, &distance, level);
  }
  return py::make_tuple(count, distance);
}

void dtw_knn(const Floats& x, const Ints& x_starts, const Ints& x_lengths, const Floats& y, const Ints& y_starts,
             const Ints& y_lengths, const vsim::DtwOptions& o, Floats& distances, Ints& indices, int64_t threads,
             const std::string& simd) {
  const auto a = dtw_series("x", x, x_starts, x_lengths, o.D), b = dtw_series("y", y, y_starts, y_lengths, o.D);
  const int64_t k = distances.ndim() == 2 ? distances.shape(1) : 0;
  if (k < 1 || k > b.count) throw std::invalid_argument("distances must be [Q, k] with k in 1.." + std::to_string(b.count));
  check_shape("distances", distances, {a.count, k});
  check_shape("indices", indices, {a.count, k});
  const vsim::Simd level = vsim::choose_simd(simd);
  float* to = distances.mutable_data();
  int64_t* which = indices.mutable_data();
  py::gil_scoped_release release;
  vsim::dtw_knn_cpu(a, b, k, o, to, which, level, threads);
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

void dtw_cuda(const vsim::DtwOptions& o, const std::string& pairs, uintptr_t x, uintptr_t y, uintptr_t tables,
              int64_t x_count, int64_t y_count, uintptr_t costs, int64_t cost_size, int64_t cost_columns, int64_t count,
              int64_t chunk, uintptr_t next, uintptr_t border, uintptr_t border_cells, int64_t longest, int64_t blocks,
              uintptr_t out, uintptr_t stream) {
  const auto kind = pairs == "rectangle"  ? vsim::DtwPairs::rectangle
                    : pairs == "triangle" ? vsim::DtwPairs::triangle
                                          : vsim::DtwPairs::aligned;
  const vsim::DtwCudaArgs args{kind, pointer<const float>(x), pointer<const float>(y), pointer<const int64_t>(tables),
                               x_count, y_count, pointer<const float>(costs), cost_size, cost_columns, count, chunk,
                               pointer<unsigned long long>(next), pointer<double>(border), pointer<int>(border_cells),
                               longest, blocks, pointer<float>(out)};
  py::gil_scoped_release release;
  vsim::dtw_cuda(args, o, pointer<void>(stream));
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
  m.attr("DTW_WARPS") = vsim::kDtwWarps;
  m.attr("DTW_BLOCKS_PER_SM") = vsim::kDtwBlocksPerSm;
  m.def("dtw_cuda", &dtw_cuda, "options"_a, py::kw_only(), "pairs"_a, "x"_a, "y"_a, "tables"_a, "x_count"_a, "y_count"_a,
        "costs"_a, "cost_size"_a, "cost_columns"_a, "count"_a, "chunk"_a, "next"_a, "border"_a, "border_cells"_a,
        "longest"_a, "blocks"_a, "out"_a, "stream"_a);
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
  m.def("attention", &attention, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "out"_a.noconvert(), "scale"_a,
        "threads"_a = 0);
  m.attr("has_bfloat16") = vsim::usable_bf16();
  m.def("best_cosines", &best_cosines, "a"_a.noconvert(), "a_scales"_a.noconvert(), "b"_a.noconvert(),
        "b_scales"_a.noconvert(), "a_in_b"_a.noconvert(), "b_in_a"_a.noconvert(), "threads"_a = 0, "simd"_a = "");
  m.def("derivatives", &derivatives, "x"_a.noconvert(), "windows"_a.noconvert(), "counts"_a.noconvert(),
        "magnitudes"_a.noconvert(), "changes"_a.noconvert(), "mean"_a.noconvert(), "variance"_a.noconvert(),
        "threads"_a = 0, "simd"_a = "");
  const auto def_search = [&m](auto type) {  // one overload per type of the vectors
    using T = decltype(type);
    m.def("top_k", &top_k<T>, "queries"_a.noconvert(), "vectors"_a.noconvert(), "mean"_a.noconvert(), "scores"_a.noconvert(),
          "index"_a.noconvert(), "threads"_a = 0, "simd"_a = "");
    m.def("pairs_above", &pairs_above<T>, "vectors"_a.noconvert(), "mean"_a.noconvert(), "threshold"_a, "most"_a,
          "threads"_a = 0, "simd"_a = "");
  };
  def_search(float{});
  def_search(uint16_t{});

  py::class_<vsim::DtwOptions>(m, "DtwOptions")
      .def(py::init(&dtw_options), "D"_a, "euclidean"_a, "scale"_a, "root"_a, "radius"_a, "fraction"_a, "slope"_a,
           "open_begin"_a, "open_end"_a, "normalize"_a);
  m.def("dtw_pairwise", &dtw_pairwise, "x"_a.noconvert(), "x_starts"_a.noconvert(), "x_lengths"_a.noconvert(),
        "y"_a.noconvert(), "y_starts"_a.noconvert(), "y_lengths"_a.noconvert(), "options"_a, "out"_a.noconvert(),
        "threads"_a = 0, "simd"_a = "");
  m.def("dtw_aligned", &dtw_aligned, "x"_a.noconvert(), "x_starts"_a.noconvert(), "x_lengths"_a.noconvert(),
        "y"_a.noconvert(), "y_starts"_a.noconvert(), "y_lengths"_a.noconvert(), "options"_a, "out"_a.noconvert(),
        "threads"_a = 0, "simd"_a = "");
  m.def("dtw_costs", &dtw_costs, "costs"_a.noconvert(), "rows"_a.noconvert(), "columns"_a.noconvert(), "options"_a,
        "out"_a.noconvert(), "threads"_a = 0, "simd"_a = "");
  m.def("dtw_path", &dtw_path, "x"_a.noconvert(), "y"_a.noconvert(), "costs"_a.noconvert(), "options"_a,
        "cells"_a.noconvert(), "simd"_a = "");
  m.def("dtw_knn", &dtw_knn, "x"_a.noconvert(), "x_starts"_a.noconvert(), "x_lengths"_a.noconvert(), "y"_a.noconvert(),
        "y_starts"_a.noconvert(), "y_lengths"_a.noconvert(), "options"_a, "distances"_a.noconvert(), "indices"_a.noconvert(),
        "threads"_a = 0, "simd"_a = "");
}

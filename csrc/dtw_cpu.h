// The CPU side of dtw: what callers may ask for, and what each instruction set provides.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dtw.h"

namespace vsim {

// out[i * y.count + j]; y null: x against itself, each pair once, mirrored, diagonal zero.
void dtw_pairwise_cpu(const DtwSeries& x, const DtwSeries* y, const DtwOptions& o, float* out, Simd simd, int64_t threads);

// out[b] of pairs (x[b], y[b]).
void dtw_aligned_cpu(const DtwSeries& x, const DtwSeries& y, const DtwOptions& o, float* out, Simd simd, int64_t threads);

// out[b] of given costs [B][stride_rows][stride_columns], of which rows[b] x columns[b] count.
void dtw_costs_cpu(const float* costs, int64_t B, int64_t stride_rows, int64_t stride_columns, const int64_t* rows,
                   const int64_t* columns, const DtwOptions& o, float* out, Simd simd, int64_t threads);

// The optimal path of one pair (of `costs` [n][m] where not null), last cell first: cells [n + m - 1][2]. Returns its length,
// 0 where no path exists.
int64_t dtw_path_cpu(const float* x, int64_t n, const float* y, int64_t m, const float* costs, const DtwOptions& o,
                     int64_t* cells, double* distance, Simd simd);

// The k nearest of y for each of x: distances [x.count][k], indices likewise, nearest first, ties by index.
void dtw_knn_cpu(const DtwSeries& x, const DtwSeries& y, int64_t k, const DtwOptions& o, float* distances, int64_t* indices,
                 Simd simd, int64_t threads);

constexpr int kDtwMaxLanes = 16;
constexpr int64_t kDtwWide = 48;  // from so many dimensions on, costs come from register-blocked tiles, one pair at a time

// Targets side by side, one per lane: values [longest][D][lanes].
struct DtwPack {
  const float* values;
  int64_t lengths[kDtwMaxLanes];
  int64_t longest;
};

// One instruction set. Scratch is aligned to 64 bytes and private to a thread.
struct DtwKernels {
  int lanes;

  // Interleaves `used` sequences; spare lanes repeat the last one.
  void (*pack)(const DtwSeries& y, const int64_t* index, int used, int64_t D, float* values, DtwPack* pack);

  // One query against a pack, one pair per lane: totals [lanes], cells of the paths [lanes] where `steps` is not null. Gives
  // up with infinite totals once no lane can stay at or below `limit`. `fresh`: the pack or n changed since the last call.
  size_t (*many_scratch)(int64_t n, int64_t longest);
  void (*many)(const float* x, int64_t n, const DtwPack& pack, const DtwOptions& o, float limit, bool fresh, void* scratch,
               double* totals, double* steps);

  // One pair, rows in lanes. costs [n][row_stride] are given where not null.
  size_t (*single_scratch)(int64_t n, int64_t m, int64_t D);
  double (*single)(const float* x, int64_t n, const float* y, int64_t m, const float* costs, int64_t row_stride,
                   const DtwOptions& o, void* scratch);

  // Costs of one frame against columns first..last of y: out[last - first + 1].
  void (*row_costs)(const float* x, const float* y, int64_t first, int64_t last, const DtwOptions& o, float* out);

  // Sum of what lies outside lower..upper [n][D]: squared, or per frame rooted (euclidean).
  float (*outside)(const float* x, const float* lower, const float* upper, int64_t n, const DtwOptions& o);
};
namespace portable { const DtwKernels& dtw_kernels(); }
namespace avx2 { const DtwKernels& dtw_kernels(); }
namespace avx512 { const DtwKernels& dtw_kernels(); }

}  // namespace vsim

// Dynamic time warping over ragged batches; CPU and CUDA share this header.
//   total[i][j] = |x[i] - y[j]|^p + min(total[i - 1][j - 1], total[i - 1][j], total[i][j - 1]),  p = 2, or 1 (euclidean)
// Cells are computed in fp32, each from its costs in order of dimension, whatever kernel runs: a pair's distance does not
// depend on the batch around it, and is the same bits with x and y exchanged. So that sums stay exact to 1e-5 at any
// length, the matrix is cut into tiles of kDtwTile rows and columns counted from the first cell; inside a tile totals
// are relative to the least one on its borders, between tiles they are fp64.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define VSIM_HOST_DEVICE __host__ __device__
#else
#define VSIM_HOST_DEVICE
#endif

namespace vsim {

enum class Simd : int;

constexpr int kDtwTile = 384;

struct DtwSeries {  // N sequences of D floats per frame
  const float* values;
  const int64_t* starts;   // [N], first row of each
  const int64_t* lengths;  // [N], >= 1
  int64_t count;
};

enum class DtwNormalize : int { none, path, length };

struct DtwOptions {  // as vsim_fast.ops.dtw._series.Options
  int64_t D;
  bool euclidean;
  float scale;
  bool root;
  int64_t radius;   // steps; -1: none
  double fraction;  // of the shorter length; -1: none
  double slope;     // Itakura; 0: none
  bool open_begin, open_end;
  DtwNormalize normalize;
};

// The cells that a path between n and m frames may touch: columns first..last of each row, both non-decreasing.
struct DtwRegion {
  int64_t n, m, below, above;  // -below <= j - i <= above
  double slope;
};
struct DtwColumns {
  int64_t first, last;  // empty where last < first
};

// Internal linkage: code compiled for one instruction set must not be merged with another's.
VSIM_HOST_DEVICE static inline int64_t dtw_floor(double x) {
  const int64_t whole = static_cast<int64_t>(x);
  return whole - (static_cast<double>(whole) > x);
}

VSIM_HOST_DEVICE static inline DtwRegion dtw_region(const DtwOptions& o, int64_t n, int64_t m) {
  const int64_t shorter = n < m ? n : m, wide = n + m;
  const int64_t radius = o.fraction < 0 ? o.radius : -dtw_floor(-(o.fraction * shorter - 1e-9));
  DtwRegion region{n, m, wide, wide, n > 1 && m > 1 ? o.slope : 0};
  if (radius >= 0 && radius < wide) {
    region.below = radius + (n > m ? n - m : 0);
    region.above = radius + (m > n ? m - n : 0);
  }
  return region;
}

VSIM_HOST_DEVICE static inline bool dtw_constrained(const DtwRegion& r) {
  return r.slope > 0 || r.below < r.n - 1 || r.above < r.m - 1;
}

VSIM_HOST_DEVICE static inline DtwColumns dtw_columns(const DtwRegion& r, int64_t i) {
  int64_t first = i - r.below, last = i + r.above;
  if (r.slope > 0) {
    const double ratio = static_cast<double>(r.m - 1) / (r.n - 1), eps = 1e-9 * r.m, rest = (r.n - 1 - i) * ratio;
    const int64_t bounds[4] = {-dtw_floor(-(i * ratio - eps) / r.slope), -dtw_floor(-(r.m - 1 - r.slope * rest - eps)),
                               dtw_floor(i * ratio * r.slope + eps), dtw_floor(r.m - 1 - (rest - eps) / r.slope)};
    first = bounds[0] > bounds[1] ? bounds[0] : bounds[1];
    last = bounds[2] < bounds[3] ? bounds[2] : bounds[3];
  }
  return {first < 0 ? 0 : first, last > r.m - 1 ? r.m - 1 : last};
}

// The distance of a pair from its total and the cells of its path.
VSIM_HOST_DEVICE static inline double dtw_distance(const DtwOptions& o, double total, double steps, int64_t n, int64_t m) {
  total *= o.scale;
  if (o.normalize == DtwNormalize::path) total /= steps;
  if (o.normalize == DtwNormalize::length) total /= static_cast<double>(n + m);
#ifdef __CUDA_ARCH__
  return o.root ? ::sqrt(total) : total;
#else
  return o.root ? __builtin_sqrt(total) : total;
#endif
}

// ---- CUDA ----
constexpr int kDtwWarps = 4, kDtwBlocksPerSm = 5;  // warps of a block

enum class DtwPairs : int { aligned, rectangle, triangle };

struct DtwCudaArgs {   // all pointers on the device
  DtwPairs pairs;
  const float *x, *y;    // rows of D floats, aligned to 16 bytes
  const int64_t* tables;  // [3, N + M] of x, then y, in the order of work: first row, rows, place in `out`
  int64_t x_count, y_count;  // triangle: the same sequences twice
  const float* costs;        // [B, cost_size] with rows of cost_columns in place of frames, or null
  int64_t cost_size, cost_columns;
  int64_t count, chunk;      // pairs; how many of them a warp takes at once (1 where a block works on a pair)
  unsigned long long* next;  // first pair not yet taken, 0
  double* border;            // [workers, longest], last row of a strip; a worker is a warp, or a block for given costs,
  int* border_cells;         //   D > 4 or Itakura; cells of its paths, for normalize = path only
  int64_t longest, blocks;
  float* out;                // [B], [N, M], or [N, N] but for its diagonal
};

void dtw_cuda(const DtwCudaArgs& args, const DtwOptions& options, void* stream);

}  // namespace vsim

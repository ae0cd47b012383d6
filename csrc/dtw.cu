// Dynamic time warping on the GPU: one launch for all pairs, whatever their lengths.
// A warp sweeps a pair in strips of 32 * R rows: lane l holds R rows in registers and is at column k - l in step k, so
// that one shuffle per step brings the cell over its first row. The last row of a strip waits in global memory, fp64.
// Totals are fp32, relative to a base that follows the least of them every kRebase steps: sums stay short at any
// length. How a pair is cut depends on its own lengths alone, and the shorter sequence (of equally long ones, the
// smaller in the first frame that differs) gives the rows: the same bits in any batch, and with x and y exchanged.
#include <climits>
#include <type_traits>

#include "check.h"
#include "dtw.h"

namespace vsim {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kRebase = 64;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kFramesBlocks = kDtwBlocksPerSm - 1;  // or registers spill
#else
constexpr int kFramesBlocks = kDtwBlocksPerSm;
#endif

__device__ float infinity() { return __int_as_float(0x7f800000); }

template <int D>
struct alignas(D == 3 ? 4 : 4 * D) Frame {
  float v[D];
};

template <int D>
__device__ Frame<D> load_frame(const float* p) {
  return *reinterpret_cast<const Frame<D>*>(p);
}

__device__ float square_root(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(x));  // below 1e-19 it is 0
  return x;
#else
  return sqrtf(x);
#endif
}

struct Pair {
  int64_t i, j;
};

__device__ Pair pair_at(const DtwCudaArgs& a, int64_t p) {
  const int64_t m = a.y_count;
  if (a.pairs == DtwPairs::aligned) return {p, p};
  if (a.pairs == DtwPairs::rectangle) return {p / m, p % m};
  const auto start = [m](int64_t i) { return i * (2 * m - i - 1) / 2; };  // pairs before row i of the upper triangle
  const double side = 2.0 * m - 1;
  int64_t i = static_cast<int64_t>((side - ::sqrt(side * side - 8.0 * p)) / 2);
  while (start(i) > p) --i;  // the root is rounded
  while (start(i + 1) <= p) ++i;
  return {i, p - start(i) + i + 1};
}

// The first pair of a.chunk that this warp is to do.
__device__ int64_t take(const DtwCudaArgs& a, int lane) {
  unsigned long long p = 0;
  if (lane == 0) p = atomicAdd(a.next, static_cast<unsigned long long>(a.chunk));
  return static_cast<int64_t>(__shfl_sync(kAll, p, 0));
}

struct Sequence {
  const float* frames;
  int length;
};

__device__ Sequence sequence(const DtwCudaArgs& a, const float* frames, int64_t at, int64_t D) {
  return {frames + a.tables[at] * D, static_cast<int>(a.tables[a.x_count + a.y_count + at])};
}

__device__ int64_t place(const DtwCudaArgs& a, int64_t at) { return a.tables[2 * (a.x_count + a.y_count) + at]; }

// Which of two equally long sequences gives the rows: the one that is smaller where they first differ.
__device__ bool precedes(const float* y, const float* x, int64_t size, int lane) {
  for (int64_t k0 = 0; k0 < size; k0 += 32) {
    const int64_t k = k0 + lane < size ? k0 + lane : size - 1;
    const unsigned differs = __ballot_sync(kAll, x[k] != y[k]), less = __ballot_sync(kAll, y[k] < x[k]);
    if (differs) return less & (differs & (0u - differs));
  }
  return false;
}

struct Swept {  // a pair: its total and the cells of its path
  double total;
  int cells;
};

struct Band {  // cells with -below <= j - i <= above of n x m
  int n, m, below, above;
};

// Rows [row0, row0 + rows) of a pair and the columns [first, last] that any of them may touch; the same in all lanes.
struct Strip {
  int row0, rows, first, last, top_last;  // top_last: last column in which the border holds the row above
  bool opening, closing, has_corner;      // first strip, last strip; the border holds column first - 1
  int64_t border;                         // where this worker's begins

  __device__ int width() const { return last - first + 1; }
  __device__ bool edges(const DtwOptions& o) const { return !opening || !closing || o.open_end; }
};

__device__ bool least_of(const Swept& a, const Swept& b) {
  return a.total < b.total || (a.total == b.total && a.cells < b.cells);
}

// One strip on one warp. Rows gives the cost of a cell: fetch(column) once per step, add(fetched, r, least) per row.
template <int R, bool Path>
struct Wave {
  float total[R], corner, top;  // this column; over and left of its next cell; over lane 0 in an opening strip
  int cells[Path ? R : 1], corner_cells;
  double base;
  int lane;

  __device__ void start(const DtwCudaArgs& a, const DtwOptions& o, const Strip& s, int l) {
    lane = l;
    base = 0;
    corner_cells = 0;
    corner = top = infinity();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      total[r] = infinity();
      if constexpr (Path) cells[r] = 0;
    }
    if (s.opening) {
      if (lane == 0) corner = 0;
      if (o.open_begin) top = 0;
      return;
    }
    __syncwarp();  // another lane wrote the border
    const int column = s.first + lane;
    float least = column <= s.top_last ? static_cast<float>(a.border[s.border + column]) : infinity();
    for (int other = 16; other > 0; other /= 2) least = fminf(least, __shfl_xor_sync(kAll, least, other));
    if (least < infinity()) base = least;
    if (lane == 0 && s.has_corner) {
      corner = static_cast<float>(a.border[s.border + s.first - 1] - base);
      if constexpr (Path) corner_cells = a.border_cells[s.border + s.first - 1];
    }
  }

  __device__ void rebase(const DtwOptions& o, const Strip& s) {
    float least = total[0];
#pragma unroll
    for (int r = 1; r < R; ++r) least = fminf(least, total[r]);
    for (int other = 16; other > 0; other /= 2) least = fminf(least, __shfl_xor_sync(kAll, least, other));
    if (!(least < infinity())) return;
    base += least;
#pragma unroll
    for (int r = 0; r < R; ++r) total[r] -= least;
    corner -= least;
    if (s.opening && o.open_begin) top = static_cast<float>(-base);
  }

  // U columns from step k on. Inside: all lanes are within the columns; else what runs over is never used.
  // Edges: the border is read or written.
  template <int U, bool Inside, bool Edges, class Rows>
  __device__ void columns(const DtwCudaArgs& a, const DtwOptions& o, const Strip& s, const Rows& rows, int k) {
    const int column = s.first + k - lane;
    typename Rows::Column fetched[U];
    float over[U];
    int over_cells[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      fetched[u] = rows.template fetch<Inside>(s, column + u, k + u);
      over[u] = top;
      over_cells[u] = 0;
      if constexpr (Edges) {
        if (lane == 0 && !s.opening && column + u <= s.top_last) {
          over[u] = static_cast<float>(a.border[s.border + column + u] - base);
          if constexpr (Path) over_cells[u] = a.border_cells[s.border + column + u];
        }
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float above = __shfl_up_sync(kAll, total[R - 1], 1);
      if (lane == 0) above = over[u];
      int above_cells = 0;
      if constexpr (Path) {
        above_cells = __shfl_up_sync(kAll, cells[R - 1], 1);
        if (lane == 0) above_cells = over_cells[u];
      }
      const float next_corner = above;
      const int next_cells = above_cells;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float left = total[r], least = fminf(fminf(corner, left), above);
        if constexpr (Path) {
          int fewest = corner == least ? corner_cells : INT_MAX - 1;
          if (left == least) fewest = min(fewest, cells[r]);
          if (above == least) fewest = min(fewest, above_cells);
          corner_cells = cells[r];
          above_cells = cells[r] = fewest + 1;
        }
        corner = left;
        above = total[r] = rows.add(fetched[u], r, least);
      }
      corner = next_corner;
      if constexpr (Path) corner_cells = next_cells;
      if constexpr (Edges) {
        const int j = column + u;
        if ((!s.closing || o.open_end) && lane == (s.rows - 1) / R && (Inside || (j >= s.first && j <= s.last))) {
          const Swept here = s.closing ? end(s) : Swept{base + total[R - 1], Path ? cells[R - 1] : 0};
          a.border[s.border + j] = here.total;
          if constexpr (Path) a.border_cells[s.border + j] = here.cells;
        }
      }
    }
  }

  // The last row of the strip, in the lane that holds it.
  __device__ Swept end(const Strip& s) const {
    const int row = (s.rows - 1) % R;
    float value = infinity();
    int count = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {  // total[row] would move the array out of registers
      value = fminf(value, r == row ? total[r] : infinity());
      if constexpr (Path) count += r == row ? cells[r] : 0;
    }
    return {base + value, count};
  }

  __device__ int steps(const Strip& s) const { return s.width() + (s.closing ? (s.rows - 1) / R : 31); }

  template <bool Edges, class Rows>
  __device__ void run(const DtwCudaArgs& a, const DtwOptions& o, const Strip& s, const Rows& rows, int k, int stop) {
    constexpr int U = Edges ? 2 : Rows::kUnroll;
    while (k < stop) {
      const int shift = (k / kRebase + 1) * kRebase, until = stop < shift ? stop : shift;
      const int inner = until < s.width() ? until : s.width();  // past the 32nd column every lane has begun
      if (k >= 32)
        for (; k + U <= inner; k += U) columns<U, true, Edges>(a, o, s, rows, k);
      const int outer = k < 32 && until > 32 ? 32 : until;
      for (; k < outer; ++k) columns<1, false, Edges>(a, o, s, rows, k);
      if (k % kRebase == 0) rebase(o, s);
    }
  }

  // After the last step of a closing strip, in all lanes.
  __device__ Swept result(const DtwCudaArgs& a, const DtwOptions& o, const Strip& s) const {
    Swept out = end(s);
    if (!o.open_end) {
      out.total = __shfl_sync(kAll, out.total, (s.rows - 1) / R);
      out.cells = __shfl_sync(kAll, out.cells, (s.rows - 1) / R);
      return out;
    }
    __syncwarp();
    out = {static_cast<double>(infinity()), INT_MAX};
    for (int j = s.first + lane; j <= s.last; j += 32) {
      const Swept here{a.border[s.border + j], Path ? a.border_cells[s.border + j] : 0};
      if (least_of(here, out)) out = here;
    }
    for (int other = 16; other > 0; other /= 2) {
      const Swept here{__shfl_xor_sync(kAll, out.total, other), __shfl_xor_sync(kAll, out.cells, other)};
      if (least_of(here, out)) out = here;
    }
    return out;
  }
};

// The next strip of up to `height` rows with columns [first, last] of its first and its last row.
__device__ void next_strip(Strip& s, int n, int height) {
  s.opening = s.rows == 0;
  s.row0 += s.rows;
  s.rows = n - s.row0 < height ? n - s.row0 : height;
  s.closing = s.row0 + s.rows == n;
}

__device__ void set_columns(Strip& s, int first, int last) {
  s.has_corner = !s.opening && first > s.first && first - 1 <= s.last;
  s.top_last = s.last;
  s.first = first;
  s.last = last;
}

__device__ void write(const DtwCudaArgs& a, const DtwOptions& o, int64_t q, Swept found) {
  const Pair p = pair_at(a, q);  // again: cheaper than to keep it in registers
  const int n = sequence(a, a.x, p.i, o.D).length, m = sequence(a, a.y, a.x_count + p.j, o.D).length;
  const float distance = static_cast<float>(dtw_distance(o, found.total, found.cells, n, m));
  const int64_t i = place(a, p.i), j = place(a, a.x_count + p.j);
  if (a.pairs == DtwPairs::aligned) {
    a.out[i] = distance;
    return;
  }
  a.out[i * a.y_count + j] = distance;
  if (a.pairs == DtwPairs::triangle) a.out[j * a.y_count + i] = distance;
}

// Rows of up to 4 dimensions in registers; the frames of y come through L1.
template <int D, bool Euclidean, int R, bool Banded>
struct FrameRows {
  static constexpr int kUnroll = D <= 2 ? 4 : 2;
  struct Column {
    Frame<D> y;
    int lowest;  // Banded: row of this lane from which on the band is
  };
  Frame<D> x[R];
  const float* y;
  int lowest, height;  // height: rows of a column that are in the band, less 1

  __device__ FrameRows(const float* rows, const float* columns, const Band& band, const Strip& s, int lane)
      : y(columns) {
    const int row0 = s.row0 + lane * R;
    lowest = -row0 - band.above;
    height = band.below + band.above;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = row0 + r < band.n ? row0 + r : band.n - 1;
      x[r] = load_frame<D>(rows + static_cast<int64_t>(i) * D);
    }
  }

  template <bool Inside>
  __device__ Column fetch(const Strip& s, int j, int) const {
    Column c;
    int at = j;
    if constexpr (!Inside) at = j < s.first ? s.first : j > s.last ? s.last : j;
    c.y = load_frame<D>(y + static_cast<int64_t>(at) * D);
    if constexpr (Banded) c.lowest = lowest + j;
    return c;
  }

  __device__ float add(const Column& c, int r, float least) const {
    float out = least;
    if constexpr (D <= 2 && !Euclidean) {  // straight onto the total: one instruction less per cell
#pragma unroll
      for (int d = 0; d < D; ++d) {
        const float gap = x[r].v[d] - c.y.v[d];
        out = fmaf(gap, gap, out);
      }
    } else {
      float square = 0;
#pragma unroll
      for (int d = 0; d < D; ++d) {
        const float gap = x[r].v[d] - c.y.v[d];
        square = d == 0 ? gap * gap : fmaf(gap, gap, square);
      }
      out += Euclidean ? square_root(square) : square;
    }
    if constexpr (Banded) {
      const bool inside = static_cast<unsigned>(r - c.lowest) <= static_cast<unsigned>(height);
      return inside ? out : infinity();
    }
    return out;
  }
};

template <int D, bool Euclidean, bool Path, int R, bool Banded>
__device__ Swept sweep(const DtwCudaArgs& a, const DtwOptions& o, const float* x, const float* y, const Band& band,
                       int64_t border, int lane) {
  Wave<R, Path> wave;
  Strip s{};
  s.border = border;
  do {
    next_strip(s, band.n, 32 * R);
    const int first = s.row0 - band.below, last = s.row0 + s.rows - 1 + band.above;
    set_columns(s, first > 0 ? first : 0, last < band.m ? last : band.m - 1);
    const FrameRows<D, Euclidean, R, Banded> rows(x, y, band, s, lane);
    wave.start(a, o, s, lane);
    if (Banded || s.edges(o)) {
      wave.template run<true>(a, o, s, rows, 0, wave.steps(s));
    } else if constexpr (!Banded) {
      wave.template run<false>(a, o, s, rows, 0, wave.steps(s));
    }
  } while (!s.closing);
  return wave.result(a, o, s);
}

// Rows per lane, as many as registers hold or as few as a narrow band wants.
template <int D, bool Path>
constexpr int kMost = D <= 2 ? (Path ? 8 : 12) : (Path ? 4 : 8);

// Rows per lane: few instructions for a pair in all, by its own lengths.
template <int D, bool Path>
__device__ int rows_per_lane(const Band& band, bool banded) {
  constexpr int most = kMost<D, Path>, wide = most < 8 ? most : 8;
  float least = infinity();
  int best = 0;
#pragma unroll
  for (int rows = 2; rows <= most; rows += 2) {
    if (banded ? rows != 2 && rows != wide : rows < 4 || rows == 6) continue;
    const int height = 32 * rows, strips = (band.n + height - 1) / height;
    const float reach = (band.n < height ? band.n : height) + static_cast<float>(band.below) + band.above;
    const float columns = reach < band.m ? reach : band.m;
    const float cost = strips * (columns + 31) * (banded ? 9 * rows + 20 : 6 * rows + 8);
    if (cost < least) {
      least = cost;
      best = rows;
    }
  }
  return best;
}

template <auto value>
using Is = std::integral_constant<decltype(value), value>;

// The two sequences of a pair, which gives the rows first.
struct Sides {
  Sequence x, y;
};

__device__ Sides sides(const DtwCudaArgs& a, const DtwOptions& o, int64_t D, Pair pair, int lane) {
  const Sequence x = sequence(a, a.x, pair.i, D), y = sequence(a, a.y, a.x_count + pair.j, D);
  if (a.costs || o.open_begin || o.open_end) return {x, y};
  const bool turn = x.length == y.length ? precedes(y.frames, x.frames, x.length * D, lane) : y.length < x.length;
  return turn ? Sides{y, x} : Sides{x, y};
}

template <int D, bool Euclidean, bool Path>
__global__ void __launch_bounds__(32 * kDtwWarps, D <= 2 && !Path ? kFramesBlocks : 4)
    frames_kernel(const __grid_constant__ DtwCudaArgs a, const __grid_constant__ DtwOptions o) {
  constexpr int most = kMost<D, Path>;
  const int lane = threadIdx.x % 32;
  const int64_t worker = static_cast<int64_t>(blockIdx.x) * kDtwWarps + threadIdx.x / 32;
  for (int64_t p = take(a, lane); p < a.count; p = take(a, lane)) {
    for (int c = 0; c < a.chunk && p + c < a.count; ++c) {
      const Sides of = sides(a, o, D, pair_at(a, p + c), lane);
      const DtwRegion region = dtw_region(o, of.x.length, of.y.length);
      const Band band{of.x.length, of.y.length, static_cast<int>(region.below), static_cast<int>(region.above)};
      const bool banded = band.below < band.n - 1 || band.above < band.m - 1;
      const int64_t border = worker * a.longest;
      Swept found{};
      const auto with = [&](auto rows, auto has_band) {
        constexpr int R = decltype(rows)::value;
        constexpr bool Banded = decltype(has_band)::value;
        found = sweep<D, Euclidean, Path, R, Banded>(a, o, of.x.frames, of.y.frames, band, border, lane);
      };
      const int rows = rows_per_lane<D, Path>(band, banded);
      if (banded) {
        if (rows == 2) with(Is<2>{}, Is<true>{});
        if (rows == 4) if constexpr (most < 8) with(Is<4>{}, Is<true>{});
        if (rows == 8) if constexpr (most >= 8) with(Is<8>{}, Is<true>{});
      } else {
        if (rows == 4) with(Is<4>{}, Is<false>{});
        if (rows == 8) if constexpr (most >= 8) with(Is<8>{}, Is<false>{});
        if (rows == 10) if constexpr (most >= 10) with(Is<10>{}, Is<false>{});
        if (rows == 12) if constexpr (most >= 12) with(Is<12>{}, Is<false>{});
      }
      if (lane == 0) write(a, o, p + c, found);
    }
  }
}

// Given costs, or any D: a block brings tiles of kHeight x kWidth costs into shared memory, its first warp sweeps them.
// Frames are differenced, never expanded into norms and products: no cancellation between far points that are close.
constexpr int kRows = 4, kHeight = 32 * kRows, kWidth = 32, kSlab = 16;
constexpr int kPitch = kHeight + 8, kPitchX = kHeight + 4, kPitchY = kWidth + 4;  // few bank conflicts, 16-byte rows

struct Rows {  // of a column that a path may touch
  int first, last;
};

struct alignas(16) Tile {
  float costs[2 * kWidth][kPitch];  // by column: the two tiles that 32 lanes of a step lie in
  float x[kSlab][kPitchX], y[kSlab][kPitchY];
  Rows allowed[kWidth];
};

struct CostRows {
  static constexpr int kUnroll = 2;
  using Column = Frame<kRows>;
  const Tile& tile;
  int lane;
  template <bool Inside>
  __device__ Column fetch(const Strip&, int, int k) const {
    int column = k - lane;
    if constexpr (!Inside) column = column < 0 ? 0 : column;
    return load_frame<kRows>(&tile.costs[column % (2 * kWidth)][lane * kRows]);
  }
  __device__ float add(const Column& c, int r, float least) const { return least + c.v[r]; }
};

__device__ Rows rows_of(const DtwOptions& o, int n, int m, int column) {
  const DtwRegion r = dtw_region(o, n, m);
  const DtwColumns rows = dtw_columns({r.m, r.n, r.above, r.below, r.slope}, column);
  return {static_cast<int>(rows.first), static_cast<int>(rows.last)};
}

__device__ void store_costs(Tile& t, int column, int row, const Frame<4>& four) {
  *reinterpret_cast<Frame<4>*>(&t.costs[column][row]) = four;
}

// Given costs of columns [j0, j0 + kWidth) into slot columns [slot, ...); rows and columns past the end repeat the last
// one and are never used.
__device__ void bring_costs(Tile& t, const float* costs, int64_t pitch, const Strip& s, int n, int j0, int slot) {
  const int c = threadIdx.x % kWidth, j = j0 + c < s.last ? j0 + c : s.last;
  for (int group = threadIdx.x / kWidth; group < kHeight / 4; group += 32 * kDtwWarps / kWidth) {
    Frame<4> four;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = s.row0 + 4 * group + r, i = row < n ? row : n - 1;
      four.v[r] = row >= t.allowed[c].first && row <= t.allowed[c].last ? costs[i * pitch + j] : infinity();
    }
    store_costs(t, slot + c, 4 * group, four);
  }
}

// The same from frames: 8 rows x 4 columns per thread in registers, kSlab dimensions at a time through shared memory.
__device__ void compute_costs(Tile& t, const Sequence& x, const Sequence& y, const DtwOptions& o,
                              const Strip& s, int j0, int slot) {
  static_assert(kHeight / 8 * (kWidth / 4) == 32 * kDtwWarps, "a thread each");
  const int row = 4 * (threadIdx.x % (kHeight / 8)), column = 4 * (threadIdx.x / (kHeight / 8));
  float square[4][8] = {};
  const int dim = static_cast<int>(o.D), d = threadIdx.x % kSlab;
  for (int d0 = 0; d0 < dim; d0 += kSlab) {
    for (int r = threadIdx.x / kSlab; r < kHeight; r += 32 * kDtwWarps / kSlab) {
      const int64_t i = s.row0 + r < x.length ? s.row0 + r : x.length - 1;
      t.x[d][r] = d0 + d < dim ? x.frames[i * dim + d0 + d] : 0;
    }
    for (int c = threadIdx.x / kSlab; c < kWidth; c += 32 * kDtwWarps / kSlab) {
      const int64_t j = j0 + c < s.last ? j0 + c : s.last;
      t.y[d][c] = d0 + d < dim ? y.frames[j * dim + d0 + d] : 0;
    }
    __syncthreads();
#pragma unroll 2
    for (int e = 0; e < kSlab; ++e) {
      const Frame<4> low = load_frame<4>(&t.x[e][row]), high = load_frame<4>(&t.x[e][row + kHeight / 2]);
      const Frame<4> other = load_frame<4>(&t.y[e][column]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int r = 0; r < 8; ++r) {
          const float gap = (r < 4 ? low.v[r % 4] : high.v[r % 4]) - other.v[c];
          square[c][r] = fmaf(gap, gap, square[c][r]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const Rows rows = t.allowed[column + c];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Frame<4> four;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int i = s.row0 + row + half * kHeight / 2 + r;
        const float cost = o.euclidean ? square_root(square[c][4 * half + r]) : square[c][4 * half + r];
        four.v[r] = i >= rows.first && i <= rows.last ? cost : infinity();
      }
      store_costs(t, slot + column + c, row + half * kHeight / 2, four);
    }
  }
}

template <bool Path>
__global__ void __launch_bounds__(32 * kDtwWarps, 3)
    costs_kernel(const __grid_constant__ DtwCudaArgs a, const __grid_constant__ DtwOptions o) {
  __shared__ Tile tile;
  __shared__ int64_t taken;
  const int lane = threadIdx.x % 32;
  const bool sweeper = threadIdx.x < 32;
  for (;;) {
    if (sweeper) {
      const int64_t p = take(a, lane);
      if (lane == 0) taken = p;
    }
    __syncthreads();
    const int64_t p = taken;
    __syncthreads();
    if (p >= a.count) return;
    const Sides of = sides(a, o, o.D, pair_at(a, p), lane);
    const Sequence x = of.x, y = of.y;
    const float* costs = a.costs ? a.costs + place(a, p) * a.cost_size : nullptr;
    Wave<kRows, Path> wave;
    Strip s{};
    s.border = blockIdx.x * a.longest;
    bool possible = true;
    do {
      next_strip(s, x.length, kHeight);
      const DtwRegion region = dtw_region(o, x.length, y.length);
      const DtwColumns top = dtw_columns(region, s.row0), bottom = dtw_columns(region, s.row0 + s.rows - 1);
      set_columns(s, static_cast<int>(top.first), static_cast<int>(bottom.last));
      possible = s.first <= s.last && (!s.closing || o.open_end || s.last == y.length - 1);
      if (!possible) break;  // no column for a row, or not the last one for the last
      if (sweeper) wave.start(a, o, s, lane);
      const int steps = wave.steps(s);
      for (int k = 0; k < steps; k += kWidth) {
        if (sweeper) tile.allowed[lane] = rows_of(o, x.length, y.length, min(s.first + k + lane, s.last));
        __syncthreads();
        const int slot = k % (2 * kWidth);
        if (costs) {
          bring_costs(tile, costs, a.cost_columns, s, x.length, s.first + k, slot);
        } else {
          compute_costs(tile, x, y, o, s, s.first + k, slot);
        }
        __syncthreads();
        if (sweeper) wave.template run<true>(a, o, s, CostRows{tile, lane}, k, k + kWidth < steps ? k + kWidth : steps);
        __syncthreads();
      }
    } while (!s.closing);
    if (sweeper) {
      const Swept found = possible ? wave.result(a, o, s) : Swept{static_cast<double>(infinity()), 1};
      if (lane == 0) write(a, o, p, found);
    }
  }
}

using Kernel = void (*)(const DtwCudaArgs, const DtwOptions);

template <int D>
Kernel frames_kernel_for(const DtwOptions& o) {
  const bool path = o.normalize == DtwNormalize::path;
  if (o.euclidean) return path ? frames_kernel<D, true, true> : frames_kernel<D, true, false>;
  return path ? frames_kernel<D, false, true> : frames_kernel<D, false, false>;
}

}  // namespace

void dtw_cuda(const DtwCudaArgs& args, const DtwOptions& options, void* stream) {
  if (args.count == 0) return;
  Kernel kernel = options.normalize == DtwNormalize::path ? costs_kernel<true> : costs_kernel<false>;
  const bool frames = !args.costs && options.slope == 0;
  if (frames && options.D == 1) kernel = frames_kernel_for<1>(options);
  if (frames && options.D == 2) kernel = frames_kernel_for<2>(options);
  if (frames && options.D == 3) kernel = frames_kernel_for<3>(options);
  if (frames && options.D == 4) kernel = frames_kernel_for<4>(options);
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(args.blocks));
  launch.blockDim = dim3(32 * kDtwWarps);
  launch.stream = static_cast<cudaStream_t>(stream);
  VSIM_CHECK_CUDA(cudaLaunchKernelEx(&launch, kernel, args, options));
}

}  // namespace vsim

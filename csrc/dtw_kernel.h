// dtw for one instruction set; included once by each simd_*.cpp, which sets VSIM_ISA and VSIM_LANES.
// Two layouts of one recurrence. `many`: one pair per lane, the query broadcast, kRows rows per sweep held in registers.
// `single`: consecutive blocks of kRows rows per lane, each lane a column behind the one before; totals pass from lane to
// lane by a shift. Both visit a tile with its upper border in `bound` (overwritten by its lower one) and its left border in
// `left` (overwritten by its right one).
#include "dtw_cpu.h"
#include "vector.h"

namespace vsim::VSIM_ISA {
namespace dtw {
namespace {  // or the linker may merge what a template becomes under one instruction set into another

constexpr int kRows = 4;
constexpr int kGroups = 2;                  // vectors of lanes in `single`
constexpr int64_t kWide = kGroups * L;      // lanes of `single`
constexpr int64_t kStrip = kWide * kRows;   // rows of `single` at a time
constexpr int64_t kNever = int64_t{1} << 30;
static_assert(kDtwTile % kStrip == 0, "strips must not straddle tiles");

constexpr float kInf = __builtin_inff();

VSIM_INLINE Vec splat(float x) { return x - Vec{}; }
VSIM_INLINE Int splat_int(int64_t x) { return (int32_t)x - Int{}; }
// Totals are never negative, and such floats order like their bits: the integer minimum is cheaper on some cores.
VSIM_INLINE Vec least(Vec a, Vec b) { return (Vec)((Int)a < (Int)b ? (Int)a : (Int)b); }
// Kept apart from the sum that it enters, or the compiler would choose which product of two to fuse.
VSIM_INLINE Vec square(Vec e) {
  Vec product = e * e;
#if defined(__x86_64__)
  asm("" : "+v"(product));
#endif
  return product;
}
VSIM_INLINE Vec inside(Vec v, Int column, Int first, Int span) { return (Uint)(column - first) <= (Uint)span ? v : splat(kInf); }
VSIM_INLINE Vec root(Vec v) {
  Vec out;
  for (int64_t k = 0; k < L; ++k) out[k] = __builtin_sqrtf(v[k]);
  return out;
}
VSIM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VSIM_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Adds to a total the cost of a cell; where Steps, the cells so far: the fewest of equally cheap predecessors.
template <bool Steps>
VSIM_INLINE void relax(Vec diagonal, Vec above, Vec before, Vec cost, Vec diagonal_steps, Vec above_steps, Vec before_steps,
                      Vec& total, Vec& steps) {
  if constexpr (Steps) {
    Vec best = diagonal, count = diagonal_steps;
    count = above < best ? above_steps : above == best ? least(above_steps, count) : count;
    best = least(above, best);
    count = before < best ? before_steps : before == best ? least(before_steps, count) : count;
    best = least(before, best);
    total = best + cost;
    steps = count + 1.0f;
  } else {
    total = least(least(diagonal, before), above) + cost;  // `above` comes last: it is the latest to be known
  }
}

// ---- many pairs, one per lane --------------------------------------------------------------------------------------

// Columns of each row that any lane, and that every lane may touch. `any` never goes back from row to row, so that what
// lies outside is never read again, though a lane may have rows without columns between others.
struct RowRange {
  int32_t any_first, any_last, all_first, all_last;
};

struct Space {  // pointers into scratch
  Vec *bound, *left, *bound_steps, *left_steps;  // of a tile, relative to its base
  double *top, *side;                            // [longest][L], [kDtwTile][L]: absolute, used where there are several tiles
  float *top_steps, *side_steps;
  Int *first, *span;  // [n] per row and lane
  RowRange* range;    // [n]
};

template <int R>
struct Block {
  Vec corner, left[R], corner_steps, left_steps[R];
};

template <int R, int D, bool Steps, bool Masked>
VSIM_INLINE void sweep(Block<R>& s, const float* x, int64_t dims, const float* y, int64_t begin, int64_t end, Vec* bound,
                      Vec* bound_steps, const Int* first, const Int* span, int64_t column, bool euclidean) {
  Vec row[R][D > 0 ? D : 1];
  if constexpr (D > 0)
    for (int r = 0; r < R; ++r)
      for (int d = 0; d < D; ++d) row[r][d] = splat(x[r * D + d]);
  for (int64_t c = begin; c < end; ++c) {
    Vec cost[R] = {};
    if constexpr (D > 0) {
      for (int d = 0; d < D; ++d) {
        const Vec target = load(y + (c * D + d) * L);
        for (int r = 0; r < R; ++r) {
          const Vec e = target - row[r][d];
          cost[r] = d == 0 ? square(e) : cost[r] + e * e;
        }
      }
    } else {
      for (int64_t d = 0; d < dims; ++d) {
        const Vec target = load(y + (c * dims + d) * L);
        for (int r = 0; r < R; ++r) {
          const Vec e = target - x[r * dims + d];
          cost[r] += e * e;
        }
      }
    }
    if (euclidean)
      for (int r = 0; r < R; ++r) cost[r] = root(cost[r]);
    const Vec up = bound[c];
    Vec above = up, diagonal = s.corner, above_steps{}, diagonal_steps{};
    if constexpr (Steps) above_steps = bound_steps[c], diagonal_steps = s.corner_steps;
    for (int r = 0; r < R; ++r) {
      Vec total, steps{};
      relax<Steps>(diagonal, above, s.left[r], cost[r], diagonal_steps, above_steps, s.left_steps[r], total, steps);
      if constexpr (Masked) total = inside(total, splat_int(column + c), first[r], span[r]);
      diagonal = s.left[r];
      s.left[r] = above = total;
      if constexpr (Steps) {
        diagonal_steps = s.left_steps[r];
        s.left_steps[r] = above_steps = steps;
      }
    }
    s.corner = up;
    bound[c] = above;
    if constexpr (Steps) s.corner_steps = bound_steps[c], bound_steps[c] = above_steps;
  }
}

struct Tile {
  const float *x, *y;  // at its first row and column
  int64_t row, column, rows, columns, dims;
  bool constrained, euclidean;
};

// Rows r..r + R of a tile. corner: total above and left of row r, replaced by the one for the row after the block.
template <int R, int D, bool Steps>
VSIM_INLINE void block(const Tile& t, int64_t r, const Space& z, Vec& corner, Vec& corner_steps) {
  const int64_t dims = D > 0 ? D : t.dims, i = t.row + r;
  int64_t begin = 0, end = t.columns, all_begin = 0, all_end = t.columns;
  if (t.constrained) {
    begin = kNever, end = 0, all_begin = 0, all_end = kNever;
    for (int k = 0; k < R; ++k) {
      begin = smaller(begin, z.range[i + k].any_first - t.column);
      end = larger(end, z.range[i + k].any_last + 1 - t.column);
      all_begin = larger(all_begin, z.range[i + k].all_first - t.column);
      all_end = smaller(all_end, z.range[i + k].all_last + 1 - t.column);
    }
    begin = larger(0, smaller(begin, t.columns));
    end = larger(begin, smaller(end, t.columns));
    all_begin = larger(begin, smaller(all_begin, end));
    all_end = larger(all_begin, smaller(all_end, end));
  }
  Block<R> s;
  const Vec next = z.left[r + R - 1], next_steps = Steps ? z.left_steps[r + R - 1] : Vec{};
  s.corner = begin == 0 ? corner : z.bound[begin - 1];
  for (int k = 0; k < R; ++k) s.left[k] = begin == 0 ? z.left[r + k] : splat(kInf);
  if constexpr (Steps) {
    s.corner_steps = begin == 0 ? corner_steps : z.bound_steps[begin - 1];
    for (int k = 0; k < R; ++k) s.left_steps[k] = begin == 0 ? z.left_steps[r + k] : Vec{};
  }
  const float* x = t.x + r * dims;
  const Int *first = z.first + i, *span = z.span + i;
  if (begin < all_begin)
    sweep<R, D, Steps, true>(s, x, dims, t.y, begin, all_begin, z.bound, z.bound_steps, first, span, t.column, t.euclidean);
  sweep<R, D, Steps, false>(s, x, dims, t.y, all_begin, all_end, z.bound, z.bound_steps, first, span, t.column, t.euclidean);
  if (all_end < end)
    sweep<R, D, Steps, true>(s, x, dims, t.y, all_end, end, z.bound, z.bound_steps, first, span, t.column, t.euclidean);
  for (int k = 0; k < R; ++k) z.left[r + k] = end == t.columns ? s.left[k] : splat(kInf);
  if constexpr (Steps)
    for (int k = 0; k < R; ++k) z.left_steps[r + k] = s.left_steps[k];
  if (begin > 0) z.bound[begin - 1] = splat(kInf);  // no later row may come from there
  corner = next;
  corner_steps = next_steps;
}

// Totals of a tile. False: no lane can stay at or below `limit`.
template <int D, bool Steps>
VSIM_INLINE bool tile(const Tile& t, const Space& z, Vec corner, Vec corner_steps, float limit) {
  int64_t r = 0;
  for (; r + kRows <= t.rows; r += kRows) {
    block<kRows, D, Steps>(t, r, z, corner, corner_steps);
    if (limit < kInf) {
      const int64_t i = t.row + r + kRows - 1, begin = t.constrained ? z.range[i].any_first : 0;
      const int64_t end = t.constrained ? z.range[i].any_last + 1 : t.columns;
      Vec best = splat(kInf);
      for (int64_t c = begin; c < end; ++c) best = least(z.bound[c], best);
      bool hope = false;
      for (int64_t k = 0; k < L; ++k) hope |= best[k] <= limit;
      if (!hope) return false;
    }
  }
  for (; r < t.rows; ++r) block<1, D, Steps>(t, r, z, corner, corner_steps);
  return true;
}

void find_ranges(const DtwPack& p, const DtwOptions& o, int64_t n, const Space& z) {
  DtwRegion region[L];
  bool uniform = true;
  for (int64_t k = 0; k < L; ++k) {
    region[k] = dtw_region(o, n, p.lengths[k]);
    uniform = uniform && p.lengths[k] == p.lengths[0];
  }
  for (int64_t i = 0; i < n; ++i) {
    RowRange range{(int32_t)kNever, i > 0 ? z.range[i - 1].any_last : -1, 0, (int32_t)kNever};
    Int first{}, span{};
    for (int64_t k = 0; k < (uniform ? 1 : L); ++k) {
      DtwColumns c = dtw_columns(region[k], i);
      if (c.last < c.first) c = {kNever, kNever - 1};
      range.any_first = (int32_t)smaller(range.any_first, c.first);
      range.any_last = (int32_t)larger(range.any_last, c.last < c.first ? -1 : c.last);
      range.all_first = (int32_t)larger(range.all_first, c.first);
      range.all_last = (int32_t)smaller(range.all_last, c.last < c.first ? -1 : c.last);
      first[k] = (int32_t)c.first;
      span[k] = (int32_t)larger(0, c.last - c.first);
    }
    z.range[i] = range;
    z.first[i] = uniform ? splat_int(first[0]) : first;
    z.span[i] = uniform ? splat_int(span[0]) : span;
  }
  for (int64_t i = n - 1; i > 0; --i)
    z.range[i - 1].any_first = (int32_t)smaller(z.range[i - 1].any_first, z.range[i].any_first);
}

struct Cursor {  // hands out aligned pieces of scratch; with null it only counts
  char* base;
  size_t used;
};
template <class T>
VSIM_INLINE T* take(Cursor& c, int64_t count) {
  T* piece = reinterpret_cast<T*>(c.base + c.used);
  c.used += ((size_t)(count > 0 ? count : 0) * sizeof(T) + 63) / 64 * 64;
  return piece;
}

Space lay_out(int64_t n, int64_t longest, Cursor& c) {
  const int64_t rows = smaller(n, kDtwTile), columns = smaller(longest, kDtwTile);
  const bool several = n > kDtwTile || longest > kDtwTile;
  Space z;
  z.bound = take<Vec>(c, columns), z.bound_steps = take<Vec>(c, columns);
  z.left = take<Vec>(c, rows), z.left_steps = take<Vec>(c, rows);
  z.top = take<double>(c, several ? longest * L : 0), z.side = take<double>(c, several ? rows * L : 0);
  z.top_steps = take<float>(c, several ? longest * L : 0), z.side_steps = take<float>(c, several ? rows * L : 0);
  z.first = take<Int>(c, n), z.span = take<Int>(c, n), z.range = take<RowRange>(c, n);
  return z;
}

size_t many_scratch(int64_t n, int64_t longest) {
  Cursor c{nullptr, 0};
  lay_out(n, longest, c);
  return c.used;
}

// Upper border of the whole matrix: zero where a path may begin.
VSIM_INLINE float border(const DtwOptions& o, const DtwPack& p, int64_t n, int64_t column, int64_t lane) {
  return o.open_begin && column <= dtw_columns(dtw_region(o, n, p.lengths[lane]), 0).last ? 0.0f : kInf;
}

template <class T, class S>
VSIM_INLINE void collect(const DtwPack& p, const DtwOptions& o, int64_t n, const T* bound, const S* bound_steps,
                        double* totals, double* steps) {
  for (int64_t k = 0; k < L; ++k) {
    const int64_t m = p.lengths[k];
    const DtwColumns last = dtw_columns(dtw_region(o, n, m), n - 1);
    double best = kInf, count = 1;
    for (int64_t c = o.open_end ? last.first : larger(last.first, m - 1); c <= last.last; ++c) {
      const double total = bound[c * L + k], cells = steps ? bound_steps[c * L + k] : 0;
      if (total < best || (total == best && cells < count)) best = total, count = cells;
    }
    totals[k] = best;
    if (steps) steps[k] = count;
  }
}

template <int D, bool Steps>
void many_of(const float* x, int64_t n, const DtwPack& p, const DtwOptions& o, float limit, bool fresh, void* scratch,
             double* totals, double* steps) {
  Cursor cursor{static_cast<char*>(scratch), 0};
  const Space z = lay_out(n, p.longest, cursor);
  bool constrained = false;
  for (int64_t k = 0; k < L; ++k) constrained |= dtw_constrained(dtw_region(o, n, p.lengths[k]));
  if (constrained && fresh) find_ranges(p, o, n, z);
  const int64_t dims = D > 0 ? D : o.D;
  const float* y = p.values;

  if (n <= kDtwTile && p.longest <= kDtwTile) {
    for (int64_t r = 0; r < n; ++r) z.left[r] = splat(kInf);
    for (int64_t c = 0; c < p.longest; ++c) z.bound[c] = splat(kInf);
    if (o.open_begin)
      for (int64_t c = 0; c < p.longest; ++c)
        for (int64_t k = 0; k < L; ++k) z.bound[c][k] = border(o, p, n, c, k);
    if constexpr (Steps) {
      for (int64_t r = 0; r < n; ++r) z.left_steps[r] = Vec{};
      for (int64_t c = 0; c < p.longest; ++c) z.bound_steps[c] = Vec{};
    }
    const Tile t{x, y, 0, 0, n, p.longest, dims, constrained, o.euclidean};
    if (tile<D, Steps>(t, z, Vec{}, Vec{}, limit)) {
      collect(p, o, n, (const float*)z.bound, (const float*)z.bound_steps, totals, Steps ? steps : nullptr);
    } else {
      for (int64_t k = 0; k < L; ++k) totals[k] = kInf;
    }
    return;
  }

  for (int64_t c = 0; c < p.longest; ++c)
    for (int64_t k = 0; k < L; ++k) z.top[c * L + k] = border(o, p, n, c, k), z.top_steps[c * L + k] = 0;
  for (int64_t row = 0; row < n; row += kDtwTile) {
    const int64_t rows = smaller(kDtwTile, n - row);
    for (int64_t e = 0; e < rows * L; ++e) z.side[e] = kInf, z.side_steps[e] = 0;
    double corner[L], corner_steps[L];
    for (int64_t k = 0; k < L; ++k) corner[k] = row == 0 ? 0 : kInf, corner_steps[k] = 0;
    for (int64_t column = 0; column < p.longest; column += kDtwTile) {
      const int64_t columns = smaller(kDtwTile, p.longest - column);
      double* top = z.top + column * L;
      float* top_steps = z.top_steps + column * L;
      double next[L], next_steps[L], base[L];
      if (constrained && z.range[row + rows - 1].any_last < column) break;  // and so do all that follow in this row
      for (int64_t k = 0; k < L; ++k) {
        next[k] = top[(columns - 1) * L + k], next_steps[k] = top_steps[(columns - 1) * L + k];
        base[k] = corner[k];  // of the pair's own borders, whatever else is in the pack
        const int64_t own = smaller(columns, p.lengths[k] - column);
        for (int64_t c = 0; c < own; ++c) base[k] = top[c * L + k] < base[k] ? top[c * L + k] : base[k];
        for (int64_t r = 0; r < rows; ++r) base[k] = z.side[r * L + k] < base[k] ? z.side[r * L + k] : base[k];
        if (!(base[k] < kInf)) base[k] = 0;
      }
      Vec at_corner, at_corner_steps;
      for (int64_t k = 0; k < L; ++k) at_corner[k] = (float)(corner[k] - base[k]), at_corner_steps[k] = (float)corner_steps[k];
      float *bound = (float*)z.bound, *left = (float*)z.left;
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t k = 0; k < L; ++k) bound[c * L + k] = (float)(top[c * L + k] - base[k]);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < L; ++k) left[r * L + k] = (float)(z.side[r * L + k] - base[k]);
      if constexpr (Steps) {
        for (int64_t c = 0; c < columns; ++c) z.bound_steps[c] = load(top_steps + c * L);
        for (int64_t r = 0; r < rows; ++r) z.left_steps[r] = load(z.side_steps + r * L);
      }
      const Tile t{x + row * dims, y + column * dims * L, row, column, rows, columns, dims, constrained, o.euclidean};
      tile<D, Steps>(t, z, at_corner, at_corner_steps, kInf);
      const int64_t begin = constrained ? z.range[row + rows - 1].any_first - column : 0;  // what lies before is stale
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t k = 0; k < L; ++k) top[c * L + k] = c < begin ? kInf : bound[c * L + k] + base[k];
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < L; ++k) z.side[r * L + k] = left[r * L + k] + base[k];
      if constexpr (Steps) {
        for (int64_t c = 0; c < columns; ++c) store(top_steps + c * L, z.bound_steps[c]);
        for (int64_t r = 0; r < rows; ++r) store(z.side_steps + r * L, z.left_steps[r]);
      }
      for (int64_t k = 0; k < L; ++k) corner[k] = next[k], corner_steps[k] = next_steps[k];
    }
    if (limit < kInf) {
      bool hope = false;
      for (int64_t e = 0; e < p.longest * L; ++e) hope |= z.top[e] <= limit;
      if (!hope) {
        for (int64_t k = 0; k < L; ++k) totals[k] = kInf;
        return;
      }
    }
  }
  collect(p, o, n, z.top, z.top_steps, totals, Steps ? steps : nullptr);
}

template <bool Steps>
void many_for(const float* x, int64_t n, const DtwPack& p, const DtwOptions& o, float limit, bool fresh, void* scratch,
              double* totals, double* steps) {
  switch (o.D) {
    case 1: return many_of<1, Steps>(x, n, p, o, limit, fresh, scratch, totals, steps);
    case 2: return many_of<2, Steps>(x, n, p, o, limit, fresh, scratch, totals, steps);
    case 3: return many_of<3, Steps>(x, n, p, o, limit, fresh, scratch, totals, steps);
    default: return many_of<0, Steps>(x, n, p, o, limit, fresh, scratch, totals, steps);
  }
}

void many(const float* x, int64_t n, const DtwPack& p, const DtwOptions& o, float limit, bool fresh, void* scratch,
          double* totals, double* steps) {
  if (steps)
    many_for<true>(x, n, p, o, limit, fresh, scratch, totals, steps);
  else
    many_for<false>(x, n, p, o, limit, fresh, scratch, totals, steps);
}

void pack(const DtwSeries& y, const int64_t* index, int used, int64_t D, float* values, DtwPack* p) {
  p->values = values;
  p->longest = 0;
  for (int64_t k = 0; k < L; ++k) {
    p->lengths[k] = y.lengths[index[k < used ? k : used - 1]];
    p->longest = larger(p->longest, p->lengths[k]);
  }
  for (int64_t k = 0; k < L; ++k) {
    const int64_t m = p->lengths[k];
    const float* from = y.values + y.starts[index[k < used ? k : used - 1]] * D;
    for (int64_t e = 0; e < m * D; ++e) values[e * L + k] = from[e];
    for (int64_t e = m * D; e < p->longest * D; ++e) values[e * L + k] = 0;
  }
}

// ---- wide costs: lanes over dimensions -----------------------------------------------------------------------------

constexpr int kSide = VSIM_LANES == 16 ? 4 : 3;  // frames of x and of y at a time: as many sums as registers hold

template <int A, int B>
VSIM_INLINE void wide_block(const float* x, const float* y, int64_t D, float (&out)[A][B]) {
  Vec sum[A][B] = {};
  int64_t d = 0;
  for (; d + L <= D; d += L)
    for (int b = 0; b < B; ++b) {
      const Vec target = load(y + b * D + d);
      for (int a = 0; a < A; ++a) {
        const Vec e = load(x + a * D + d) - target;
        sum[a][b] += e * e;
      }
    }
  if (d < D)
    for (int a = 0; a < A; ++a)
      for (int b = 0; b < B; ++b) {
        Vec e{};
        for (int64_t k = 0; d + k < D; ++k) e[k] = x[a * D + d + k] - y[b * D + d + k];
        sum[a][b] += e * e;
      }
  for (int a = 0; a < A; ++a)
    for (int b = 0; b < B; ++b) out[a][b] = total<L>(sum[a][b]);
}

template <int A, int B, class Put>
VSIM_INLINE void wide_put(const float* x, const float* y, int64_t D, int64_t i, int64_t j, const Put& put) {
  float out[A][B];
  wide_block<A, B>(x + i * D, y + j * D, D, out);
  for (int a = 0; a < A; ++a)
    for (int b = 0; b < B; ++b) put(i + a, j + b, out[a][b]);
}

// put(i, j, squared distance) for all rows of x and columns first..last of y.
template <class Put>
VSIM_INLINE void wide_costs(const float* x, int64_t rows, const float* y, int64_t first, int64_t last, int64_t D, const Put& put) {
  constexpr int64_t kNear = 64;  // columns that stay in cache while the rows pass
  for (int64_t near = first; near < last; near += kNear) {
    const int64_t end = smaller(near + kNear, last);
    int64_t i = 0;
    for (; i + kSide <= rows; i += kSide) {
      int64_t j = near;
      for (; j + kSide <= end; j += kSide) wide_put<kSide, kSide>(x, y, D, i, j, put);
      for (; j < end; ++j) wide_put<kSide, 1>(x, y, D, i, j, put);
    }
    for (; i < rows; ++i) {
      int64_t j = near;
      for (; j + kSide <= end; j += kSide) wide_put<1, kSide>(x, y, D, i, j, put);
      for (; j < end; ++j) wide_put<1, 1>(x, y, D, i, j, put);
    }
  }
}

void row_costs(const float* x, const float* y, int64_t first, int64_t last, const DtwOptions& o, float* out) {
  if (o.D >= kDtwWide)
    wide_costs(x, 1, y, first, last + 1, o.D, [&](int64_t, int64_t j, float c) __attribute__((always_inline)) { out[j - first] = c; });
  else
    for (int64_t j = first; j <= last; ++j) {
      float cost = 0;
      for (int64_t d = 0; d < o.D; ++d) {
        const float e = y[j * o.D + d] - x[d];
        cost += e * e;
      }
      out[j - first] = cost;
    }
  if (o.euclidean)
    for (int64_t j = first; j <= last; ++j) out[j - first] = __builtin_sqrtf(out[j - first]);
}

// ---- one pair, rows in lanes ---------------------------------------------------------------------------------------

struct Strip {  // pointers into scratch
  float *bound, *left;      // of a tile, relative to its base; left [strips of the tile][kRows][kWide]
  double *top, *side;       // absolute, where there are several tiles; side as left
  float* reversed;          // [D][m + 2 kWide], y backwards between zeros: what the lanes read at a step lies side by side
  float* rows;              // [D][kRows][kWide] of the strip
  float* costs;             // [steps][kRows][kWide] of the strip, where they are not computed in passing
  float* last;              // [kRows][kWide]
};

Strip lay_out_single(int64_t n, int64_t m, int64_t D, Cursor& c) {
  const int64_t columns = smaller(m, kDtwTile), rows = (smaller(n, kDtwTile) + kStrip - 1) / kStrip * kStrip;
  const bool several = n > kDtwTile || m > kDtwTile, given = D == 0 || D >= kDtwWide;
  Strip z;
  z.bound = take<float>(c, columns), z.left = take<float>(c, rows);
  z.top = take<double>(c, several ? m : 0), z.side = take<double>(c, several ? rows : 0);
  z.reversed = take<float>(c, given ? 0 : D * (m + 2 * kWide));
  z.rows = take<float>(c, given ? 0 : D * kStrip);
  z.costs = take<float>(c, given ? (columns + kWide) * kStrip : 0);
  z.last = take<float>(c, kStrip);
  return z;
}

size_t single_scratch(int64_t n, int64_t m, int64_t D) {
  Cursor c{nullptr, 0};
  lay_out_single(n, m, D, c);
  return c.used;
}

VSIM_INLINE Int lane_numbers() {
  Int lane{};
  for (int64_t k = 0; k < L; ++k) lane[k] = (int32_t)k;
  return lane;
}

VSIM_INLINE Vec shift_in(Vec before, Vec v) {  // the last lane of `before`, then all but the last of v
  return __builtin_shuffle(before, v, lane_numbers() + (int32_t)(L - 1));
}

struct Wave {
  Vec left[kGroups][kRows], corner[kGroups];
};

// One step: lane l works on column s - l of the part of the tile. D: dimensions, 0: any, -1: costs are given.
template <int D, bool Masked>
VSIM_INLINE void step(Wave& w, int64_t s, int64_t columns, float above_first, const Strip& z, const float* reversed,
                     int64_t stride, int64_t dims, const Int (*first)[kRows], const Int (*span)[kRows], bool euclidean) {
  Vec above[kGroups];
  above[0] = shift_in(splat(above_first), w.left[0][kRows - 1]);
  for (int g = 1; g < kGroups; ++g) above[g] = shift_in(w.left[g - 1][kRows - 1], w.left[g][kRows - 1]);
#pragma GCC unroll 2
  for (int g = 0; g < kGroups; ++g) {
    Vec cost[kRows];
    if constexpr (D < 0) {
      for (int r = 0; r < kRows; ++r) cost[r] = load(z.costs + (s * kRows + r) * kWide + g * L);
    } else {
      for (int64_t d = 0; d < (D > 0 ? D : dims); ++d) {
        const Vec target = load(reversed + d * stride - s + g * L);
        for (int r = 0; r < kRows; ++r) {
          const Vec e = target - load(z.rows + (d * kRows + r) * kWide + g * L);
          cost[r] = d == 0 ? square(e) : cost[r] + e * e;
        }
      }
    }
    if (euclidean)
      for (int r = 0; r < kRows; ++r) cost[r] = root(cost[r]);
    const Int column = splat_int(s - g * L) - lane_numbers();
    const auto in_part = (Uint)column < (Uint)splat_int(columns);
    Vec diagonal = w.corner[g], up = above[g];
    for (int r = 0; r < kRows; ++r) {
      Vec total, none{};
      relax<false>(diagonal, up, w.left[g][r], cost[r], none, none, none, total, none);
      if constexpr (Masked) {
        if (first) total = inside(total, column, first[g][r], span[g][r]);
        total = in_part ? total : w.left[g][r];  // a lane ahead of its first column keeps its border, one behind its last
      }
      diagonal = w.left[g][r];
      w.left[g][r] = up = total;
    }
    w.corner[g] = above[g];
  }
}

// Steps begin..end of a strip. The lower border is that of row `last`.
template <int D, bool Masked>
VSIM_INLINE void steps(Wave& wave, int64_t begin, int64_t end, int64_t columns, int64_t last, float* bound, const Strip& z,
                      const float* reversed, int64_t stride, int64_t dims, const Int (*first)[kRows], const Int (*span)[kRows],
                      bool euclidean) {
  const int64_t lane = last / kRows, row = last % kRows;
  Wave w = wave;
  for (int64_t s = begin; s < end; ++s) {
    step<D, Masked>(w, s, columns, s < columns ? bound[s] : kInf, z, reversed, stride, dims, first, span, euclidean);
    if (last == kStrip - 1) {
      if (s >= kWide - 1) bound[s - (kWide - 1)] = w.left[kGroups - 1][kRows - 1][L - 1];
    } else if (s >= lane && s - lane < columns) {
      for (int g = 0; g < kGroups; ++g)
        for (int r = 0; r < kRows; ++r) store(z.last + r * kWide + g * L, w.left[g][r]);
      bound[s - lane] = z.last[row * kWide + lane];
    }
  }
  wave = w;
}

template <int D>
double single_of(const float* x, int64_t n, const float* y, int64_t m, const float* given, int64_t row_stride,
                 const DtwOptions& o, void* scratch) {
  const int64_t dims = D > 0 ? D : o.D, stride = m + 2 * kWide;
  Cursor cursor{static_cast<char*>(scratch), 0};
  const Strip z = lay_out_single(n, m, given ? 0 : dims, cursor);
  const DtwRegion region = dtw_region(o, n, m);
  const bool constrained = dtw_constrained(region), several = n > kDtwTile || m > kDtwTile;
  if constexpr (D >= 0)
    for (int64_t d = 0; d < dims; ++d) {
      float* backwards = z.reversed + d * stride;
      for (int64_t k = 0; k < kWide; ++k) backwards[k] = backwards[kWide + m + k] = 0;
      for (int64_t j = 0; j < m; ++j) backwards[kWide + m - 1 - j] = y[j * dims + d];
    }
  const int64_t open = o.open_begin ? dtw_columns(region, 0).last : -1;
  if (several)
    for (int64_t j = 0; j < m; ++j) z.top[j] = j <= open ? 0 : kInf;
  else
    for (int64_t j = 0; j < m; ++j) z.bound[j] = j <= open ? 0 : kInf;

  for (int64_t row = 0; row < n; row += kDtwTile) {
    const int64_t rows = smaller(kDtwTile, n - row), padded = (rows + kStrip - 1) / kStrip * kStrip;
    const int64_t row_last = constrained ? dtw_columns(region, row + rows - 1).last : m - 1;
    double corner = row == 0 ? 0 : kInf;
    for (int64_t e = 0; e < padded; ++e) z.left[e] = kInf;
    if (several)
      for (int64_t e = 0; e < padded; ++e) z.side[e] = kInf;
    for (int64_t column = 0; column < m && column <= row_last; column += kDtwTile) {
      const int64_t columns = smaller(kDtwTile, m - column);
      double base = 0, next = kInf;
      if (several) {
        double* top = z.top + column;
        next = top[columns - 1];
        base = corner;
        for (int64_t c = 0; c < columns; ++c) base = top[c] < base ? top[c] : base;
        for (int64_t e = 0; e < padded; ++e) base = z.side[e] < base ? z.side[e] : base;
        if (!(base < kInf)) base = 0;
        for (int64_t c = 0; c < columns; ++c) z.bound[c] = (float)(top[c] - base);
        for (int64_t e = 0; e < padded; ++e) z.left[e] = (float)(z.side[e] - base);
      }
      float at_corner = (float)(corner - base);
      int64_t stale = 0;
      for (int64_t r = 0; r < rows; r += kStrip) {
        const int64_t count = smaller(kStrip, rows - r);
        int64_t begin = 0, end = columns;
        Int first[kGroups][kRows], span[kGroups][kRows];
        if (constrained) {
          begin = larger(0, smaller(columns, dtw_columns(region, row + r).first - column));
          end = larger(begin, smaller(columns, dtw_columns(region, row + r + count - 1).last + 1 - column));
          for (int g = 0; g < kGroups; ++g)
            for (int k = 0; k < kRows; ++k)
              for (int64_t l = 0; l < L; ++l) {
                const int64_t i = (g * L + l) * kRows + k;
                const DtwColumns c = i < count ? dtw_columns(region, row + r + i) : DtwColumns{kNever, kNever};
                const bool some = c.first <= c.last;
                first[g][k][l] = (int32_t)(some ? c.first - column - begin : kNever);
                span[g][k][l] = (int32_t)(some ? c.last - c.first : 0);
              }
        }
        const float* xs = x + (row + r) * dims;
        if constexpr (D >= 0)
          for (int64_t d = 0; d < dims; ++d)
            for (int k = 0; k < kRows; ++k)
              for (int64_t l = 0; l < kWide; ++l) {
                const int64_t i = l * kRows + k;
                z.rows[(d * kRows + k) * kWide + l] = i < count ? xs[i * dims + d] : 0;
              }
        const int64_t width = end - begin, at = column + begin;  // columns of the part, and its first
        if constexpr (D < 0) {
          const auto put = [&](int64_t i, int64_t j, float c) __attribute__((always_inline)) {
            const int64_t l = i / kRows, k = i % kRows;
            z.costs[((j - at + l) * kRows + k) * kWide + l] = c;
          };
          if (given) {
            for (int64_t i = 0; i < count; ++i)
              for (int64_t j = at; j < at + width; ++j) put(i, j, given[(row + r + i) * row_stride + j]);
          } else {
            wide_costs(xs, count, y, at, at + width, dims, put);
          }
        }
        float* left = z.left + r;
        const float next_corner = left[kStrip - 1];
        Wave w;
        for (int g = 0; g < kGroups; ++g) {
          for (int k = 0; k < kRows; ++k) w.left[g][k] = begin == 0 ? load(left + k * kWide + g * L) : splat(kInf);
          w.corner[g] = splat(begin == 0 ? at_corner : z.bound[begin - 1]);
        }
        const float* reversed = D >= 0 ? z.reversed + kWide + m - 1 - at : nullptr;
        const auto *firsts = constrained ? first : nullptr, *spans = constrained ? span : nullptr;
        float* bound = z.bound + begin;
        const int64_t all = width > 0 ? width + kWide - 1 : 0;
        const int64_t up = constrained ? all : smaller(kWide - 1, all), down = larger(up, constrained ? all : smaller(width, all));
        steps<D, true>(w, 0, up, width, count - 1, bound, z, reversed, stride, dims, firsts, spans, o.euclidean);
        steps<D, false>(w, up, down, width, count - 1, bound, z, reversed, stride, dims, firsts, spans, o.euclidean);
        steps<D, true>(w, down, all, width, count - 1, bound, z, reversed, stride, dims, firsts, spans, o.euclidean);
        for (int g = 0; g < kGroups; ++g)
          for (int k = 0; k < kRows; ++k) store(left + k * kWide + g * L, end == columns ? w.left[g][k] : splat(kInf));
        for (int64_t i = count; i < kStrip; ++i) left[i % kRows * kWide + i / kRows] = kInf;  // rows that fill up the strip
        if (begin > 0) z.bound[begin - 1] = kInf;  // no later row may come from there
        at_corner = next_corner;
        stale = constrained ? larger(0, smaller(columns, dtw_columns(region, row + rows - 1).first - column)) : 0;
      }
      if (several) {
        for (int64_t c = 0; c < columns; ++c) z.top[column + c] = c < stale ? kInf : z.bound[c] + base;
        for (int64_t e = 0; e < padded; ++e) z.side[e] = z.left[e] + base;
        corner = next;
      }
    }
  }
  const DtwColumns last = dtw_columns(region, n - 1);
  double best = kInf;
  for (int64_t j = o.open_end ? last.first : larger(last.first, m - 1); j <= last.last; ++j) {
    const double total = several ? z.top[j] : z.bound[j];
    best = total < best ? total : best;
  }
  return best;
}

double single(const float* x, int64_t n, const float* y, int64_t m, const float* costs, int64_t row_stride,
              const DtwOptions& o, void* scratch) {
  if (costs || o.D >= kDtwWide) return single_of<-1>(x, n, y, m, costs, row_stride, o, scratch);
  switch (o.D) {
    case 1: return single_of<1>(x, n, y, m, costs, row_stride, o, scratch);
    case 2: return single_of<2>(x, n, y, m, costs, row_stride, o, scratch);
    case 3: return single_of<3>(x, n, y, m, costs, row_stride, o, scratch);
    default: return single_of<0>(x, n, y, m, costs, row_stride, o, scratch);
  }
}

float outside(const float* x, const float* lower, const float* upper, int64_t n, const DtwOptions& o) {
  const auto beyond = [&](int64_t e) __attribute__((always_inline)) {
    const float below = lower[e] - x[e], above = x[e] - upper[e], out = below > above ? below : above;
    return out > 0 ? out : 0.0f;
  };
  if (o.euclidean) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      float square = 0;
      for (int64_t d = 0; d < o.D; ++d) square += beyond(i * o.D + d) * beyond(i * o.D + d);
      sum += __builtin_sqrtf(square);
    }
    return sum;
  }
  Vec sum{};
  int64_t e = 0;
  for (; e + L <= n * o.D; e += L) {
    Vec out = load(x + e) - load(upper + e);
    const Vec below = load(lower + e) - load(x + e);
    out = out < below ? below : out;
    out = out < Vec{} ? Vec{} : out;
    sum += out * out;
  }
  float all = total<L>(sum);
  for (; e < n * o.D; ++e) all += beyond(e) * beyond(e);
  return all;
}

}  // namespace
}  // namespace dtw

const DtwKernels& dtw_kernels() {
  static const DtwKernels kernels{(int)L, dtw::pack, dtw::many_scratch, dtw::many, dtw::single_scratch, dtw::single,
                                  dtw::row_costs, dtw::outside};
  return kernels;
}

}  // namespace vsim::VSIM_ISA

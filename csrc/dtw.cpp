#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "dtw_cpu.h"
#include "parallel.h"
#include "simd.h"

namespace vsim {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const DtwKernels& kernels_of(Simd simd) {
  switch (simd) {
#if defined(VSIM_X86)
    case Simd::avx512: return avx512::dtw_kernels();
    case Simd::avx2: return avx2::dtw_kernels();
#endif
    default: return portable::dtw_kernels();
  }
}

// Memory of one thread, grown as needed.
class Scratch {
 public:
  void* need(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

struct Worker {
  Scratch values, space;
};

int64_t longest_of(const DtwSeries& s) { return s.count ? *std::max_element(s.lengths, s.lengths + s.count) : 0; }

// Memory for the largest item is taken before the threads start, where running out of it can still be reported.
std::vector<Worker> workers(int64_t threads, size_t values, size_t space) {
  std::vector<Worker> all(threads);
  for (Worker& worker : all) worker.values.need(values), worker.space.need(space);
  return all;
}

const float* at(const DtwSeries& s, int64_t k, const DtwOptions& o) { return s.values + s.starts[k] * o.D; }

// Sequences by length, so that those side by side in a pack end together.
std::vector<int64_t> by_length(const DtwSeries& s) {
  std::vector<int64_t> order(s.count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s.lengths[a] < s.lengths[b]; });
  return order;
}

double cells_of(const DtwSeries& x, const DtwSeries& y) {
  const auto sum = [](const DtwSeries& s) { return std::accumulate(s.lengths, s.lengths + s.count, 0.0); };
  return sum(x) * sum(y);
}

int64_t threads_for(int64_t wanted, int64_t items, double cells, int64_t D) {
  const double work = std::min(cells * static_cast<double>(D + 3), 1e18);
  return thread_count(wanted, items, static_cast<int64_t>(work), int64_t{1} << 21);  // ~0.1 ms each
}

}  // namespace

void dtw_pairwise_cpu(const DtwSeries& x, const DtwSeries* against, const DtwOptions& o, float* out, Simd simd,
                      int64_t threads) {
  const DtwKernels& kernels = kernels_of(simd);
  const bool open = o.open_begin || o.open_end, triangle = !against && !open, steps = o.normalize == DtwNormalize::path;
  // Lanes hold targets: where there are few, they are the queries instead, for the distance is the same bits.
  const bool swapped = against && !open && against->count < kernels.lanes && x.count > against->count;
  const DtwSeries &rows = swapped ? *against : x, &targets = swapped ? x : against ? *against : x;
  const int64_t columns = against ? against->count : x.count;
  const auto put = [&](int64_t i, int64_t j, float distance) {
    out[swapped ? j * columns + i : i * columns + j] = distance;
    if (triangle) out[j * columns + i] = distance;
  };
  if (!against)
    for (int64_t i = 0; i < x.count; ++i) out[i * columns + i] = 0;

  const std::vector<int64_t> row_order = by_length(rows), order = by_length(targets);
  const int64_t packs = (targets.count + kernels.lanes - 1) / kernels.lanes;
  const double cells = cells_of(rows, targets) / (triangle ? 2 : 1);
  // Items: a pack against a run of rows, short enough to keep all threads busy to the end, long enough that building the
  // pack does not count.
  const bool wide = o.D >= kDtwWide, single = wide && !steps;
  const int64_t most = threads_for(threads, rows.count * targets.count, cells, o.D);
  const int64_t run = std::clamp<int64_t>(rows.count * packs / (32 * most), single ? 1 : 4, 256);
  const int64_t runs = (rows.count + run - 1) / run;
  const int64_t longest_row = longest_of(rows), longest = longest_of(targets);
  const int64_t workers_needed = std::min(most, std::max<int64_t>(1, packs * runs));
  auto all = workers(workers_needed, single ? 0 : longest * o.D * kernels.lanes * sizeof(float),
                     std::max(single ? 0 : kernels.many_scratch(longest_row, longest),
                              kernels.single_scratch(longest_row, longest, o.D)));
  parallel_for(packs * runs, workers_needed, [&](int64_t item, int64_t thread) {
    const int64_t p = packs - 1 - item / runs, first = p * kernels.lanes;  // the long ones first
    const int used = static_cast<int>(std::min<int64_t>(kernels.lanes, targets.count - first));
    const int64_t begin = item % runs * run, end = std::min(rows.count, begin + run);
    Worker& worker = all[thread];
    DtwPack pack;
    bool packed = false;
    int64_t last_length = -1;
    for (int64_t q = begin; q < end; ++q) {
      const int64_t i = row_order[q], n = rows.lengths[i];
      int lane = triangle ? static_cast<int>(std::max<int64_t>(0, q + 1 - first)) : 0;  // the first wanted
      if (lane >= used) break;
      const float* row = at(rows, i, o);
      if (single || (!steps && used - lane < kernels.lanes / 4)) {
        for (; lane < used; ++lane) {
          const int64_t j = order[first + lane], m = targets.lengths[j];
          if (i == j && !against) continue;
          const double total = kernels.single(row, n, at(targets, j, o), m, nullptr, 0, o, worker.space.need(0));
          put(i, j, static_cast<float>(dtw_distance(o, total, 1, n, m)));
        }
        continue;
      }
      if (!packed) kernels.pack(targets, &order[first], used, o.D, static_cast<float*>(worker.values.need(0)), &pack);
      double totals[kDtwMaxLanes], counts[kDtwMaxLanes];
      kernels.many(row, n, pack, o, static_cast<float>(kInfinity), !packed || n != last_length, worker.space.need(0), totals,
                   steps ? counts : nullptr);
      packed = true, last_length = n;
      for (; lane < used; ++lane) {
        const int64_t j = order[first + lane];
        if (i == j && !against) continue;
        put(i, j, static_cast<float>(dtw_distance(o, totals[lane], steps ? counts[lane] : 1, n, targets.lengths[j])));
      }
    }
  });
}

void dtw_aligned_cpu(const DtwSeries& x, const DtwSeries& y, const DtwOptions& o, float* out, Simd simd, int64_t threads) {
  const DtwKernels& kernels = kernels_of(simd);
  const bool steps = o.normalize == DtwNormalize::path;
  double cells = 0;
  for (int64_t b = 0; b < x.count; ++b) cells += static_cast<double>(x.lengths[b]) * y.lengths[b];
  threads = threads_for(threads, x.count, cells, o.D);
  const int64_t n = longest_of(x), m = longest_of(y);
  auto all = workers(threads, steps ? m * o.D * kernels.lanes * sizeof(float) : 0,
                     steps ? kernels.many_scratch(n, m) : kernels.single_scratch(n, m, o.D));
  parallel_for(x.count, threads, [&](int64_t b, int64_t thread) {
    Worker& worker = all[thread];
    const int64_t rows = x.lengths[b], columns = y.lengths[b];
    double total[kDtwMaxLanes], count[kDtwMaxLanes] = {1};
    if (steps) {
      DtwPack pack;
      kernels.pack(y, &b, 1, o.D, static_cast<float*>(worker.values.need(0)), &pack);
      kernels.many(at(x, b, o), rows, pack, o, static_cast<float>(kInfinity), true, worker.space.need(0), total, count);
    } else {
      total[0] = kernels.single(at(x, b, o), rows, at(y, b, o), columns, nullptr, 0, o, worker.space.need(0));
    }
    out[b] = static_cast<float>(dtw_distance(o, total[0], count[0], rows, columns));
  });
}

void dtw_costs_cpu(const float* costs, int64_t B, int64_t stride_rows, int64_t stride_columns, const int64_t* rows,
                   const int64_t* columns, const DtwOptions& o, float* out, Simd simd, int64_t threads) {
  const DtwKernels& kernels = kernels_of(simd);
  threads = threads_for(threads, B, static_cast<double>(B) * stride_rows * stride_columns, 1);
  auto all = workers(threads, 0, kernels.single_scratch(stride_rows, stride_columns, 0));
  parallel_for(B, threads, [&](int64_t b, int64_t thread) {
    const float* given = costs + b * stride_rows * stride_columns;
    const double total =
        kernels.single(nullptr, rows[b], nullptr, columns[b], given, stride_columns, o, all[thread].space.need(0));
    out[b] = static_cast<float>(dtw_distance(o, total, 1, rows[b], columns[b]));
  });
}

int64_t dtw_path_cpu(const float* x, int64_t n, const float* y, int64_t m, const float* costs, const DtwOptions& o,
                     int64_t* cells, double* distance, Simd simd) {
  enum Step : uint8_t { diagonal, above, before, start };  // where a cell came from
  const DtwKernels& kernels = kernels_of(simd);
  const DtwRegion region = dtw_region(o, n, m);
  const int64_t row_bytes = (m + 3) / 4;
  std::vector<uint8_t> came(n * row_bytes, 0);
  std::vector<double> total(m + 1, kInfinity);  // total[j + 1]: of the row above, then of this one
  std::vector<int64_t> length(m + 1, 0);
  std::vector<float> row(m);
  if (o.open_begin) std::fill(total.begin(), total.end(), 0.0);
  total[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const DtwColumns c = dtw_columns(region, i);
    const float* cost = costs ? costs + i * m + c.first : row.data();
    if (!costs && c.first <= c.last) kernels.row_costs(x + i * o.D, y, c.first, c.last, o, row.data());
    double corner = total[c.first];  // [i - 1][j - 1]
    int64_t corner_length = length[c.first];
    double left = kInfinity;
    int64_t left_length = 0;
    if (i > 0 || c.first > 0) total[c.first] = kInfinity;
    for (int64_t j = c.first; j <= c.last; ++j) {
      const double up = total[j + 1];
      const int64_t up_length = length[j + 1];
      double best = corner;
      int64_t best_length = corner_length;
      Step step = diagonal;
      if (up < best || (up == best && up_length < best_length)) best = up, best_length = up_length, step = above;
      if (left < best || (left == best && left_length < best_length)) best = left, best_length = left_length, step = before;
      if (i == 0 && (j == 0 || o.open_begin) && step != before) step = start;
      corner = up, corner_length = up_length;
      left = best + cost[j - c.first], left_length = best_length + 1;
      total[j + 1] = left, length[j + 1] = left_length;
      came[i * row_bytes + j / 4] |= static_cast<uint8_t>(step << (j % 4 * 2));
    }
    if (i == 0 && o.open_begin) std::fill(total.begin() + c.last + 2, total.end(), kInfinity);
    if (i == 0) total[0] = kInfinity;
  }
  const DtwColumns last = dtw_columns(region, n - 1);
  int64_t i = n - 1, j = m - 1;
  double best = kInfinity;
  for (int64_t c = o.open_end ? last.first : std::max(last.first, m - 1); c <= last.last; ++c)
    if (total[c + 1] < best || (total[c + 1] == best && length[c + 1] < length[j + 1])) best = total[c + 1], j = c;
  *distance = best < kInfinity ? dtw_distance(o, best, static_cast<double>(length[j + 1]), n, m) : kInfinity;
  if (!(best < kInfinity)) return 0;
  int64_t count = 0;
  for (;; ++count) {
    cells[2 * count] = i, cells[2 * count + 1] = j;
    const Step step = static_cast<Step>(came[i * row_bytes + j / 4] >> (j % 4 * 2) & 3);
    if (step == start) return count + 1;
    i -= step != before, j -= step != above;
  }
}

namespace {

// Least and greatest value, per dimension, of the frames of y that each of n frames may be matched to.
void envelope(const float* y, int64_t m, int64_t n, const DtwOptions& o, float* lower, float* upper) {
  const DtwRegion region = dtw_region(o, n, m);
  std::vector<int64_t> low(m), high(m);  // queues of columns whose values may still be the extreme one
  for (int64_t d = 0; d < o.D; ++d) {
    int64_t low_begin = 0, low_end = 0, high_begin = 0, high_end = 0, next = 0;
    const auto value = [&](int64_t j) { return y[j * o.D + d]; };
    for (int64_t i = 0; i < n; ++i) {
      const DtwColumns c = dtw_columns(region, i);
      for (; next <= c.last; ++next) {
        while (low_end > low_begin && value(low[low_end - 1]) >= value(next)) --low_end;
        while (high_end > high_begin && value(high[high_end - 1]) <= value(next)) --high_end;
        low[low_end++] = high[high_end++] = next;
      }
      while (low_begin < low_end && low[low_begin] < c.first) ++low_begin;
      while (high_begin < high_end && high[high_begin] < c.first) ++high_begin;
      const bool some = c.first <= c.last;  // a row that no path may touch bounds nothing
      lower[i * o.D + d] = some ? value(low[low_begin]) : -std::numeric_limits<float>::infinity();
      upper[i * o.D + d] = some ? value(high[high_begin]) : std::numeric_limits<float>::infinity();
    }
  }
}

struct Candidate {
  float bound;
  int64_t index;
};
struct Neighbor {
  float distance;
  double total;
  int64_t index;
  bool operator<(const Neighbor& other) const {
    return distance != other.distance ? distance < other.distance : index < other.index;
  }
};

}  // namespace

void dtw_knn_cpu(const DtwSeries& x, const DtwSeries& y, int64_t k, const DtwOptions& o, float* distances, int64_t* indices,
                 Simd simd, int64_t threads) {
  const DtwKernels& kernels = kernels_of(simd);
  threads = threads_for(threads, x.count, cells_of(x, y), o.D);
  const int64_t n = longest_of(x), m = longest_of(y);
  const bool wide = o.D >= kDtwWide;
  auto all = workers(threads, wide ? 0 : m * o.D * kernels.lanes * sizeof(float),
                     std::max(wide ? 0 : kernels.many_scratch(n, m), kernels.single_scratch(n, m, o.D)));
  struct Room {
    std::vector<Candidate> order;
    std::vector<float> lower, upper;
    std::vector<Neighbor> best;
  };
  std::vector<Room> rooms(threads);
  for (Room& room : rooms) {
    room.order.reserve(y.count), room.best.reserve(k + 1);
    room.lower.resize(m * o.D), room.upper.resize(m * o.D);
  }
  const std::vector<int64_t> order = by_length(y);
  parallel_for(x.count, threads, [&](int64_t q, int64_t thread) {
    Room& room = rooms[thread];
    Worker& worker = all[thread];
    const int64_t rows = x.lengths[q];
    const float* query = at(x, q, o);
    room.order.clear(), room.best.clear();
    int64_t enveloped = -1;  // length of the candidates that the envelope is for
    for (const int64_t j : order) {
      const int64_t columns = y.lengths[j];
      const float* candidate = at(y, j, o);
      if (columns != enveloped) envelope(query, rows, columns, o, room.lower.data(), room.upper.data());
      enveloped = columns;
      float ends[2];  // LB_Kim: every path holds the first and the last cell
      kernels.row_costs(query, candidate, 0, 0, o, ends);
      kernels.row_costs(query + (rows - 1) * o.D, candidate, columns - 1, columns - 1, o, ends + 1);
      const float kim = rows == 1 && columns == 1 ? ends[0] : ends[0] + ends[1];
      const float keogh = kernels.outside(candidate, room.lower.data(), room.upper.data(), columns, o);
      room.order.push_back({std::max(kim, keogh) * (1 - 1e-5f), j});  // so that rounding never lifts it above the distance
    }
    std::sort(room.order.begin(), room.order.end(), [](const Candidate& a, const Candidate& b) {
      return a.bound != b.bound ? a.bound < b.bound : a.index < b.index;
    });
    float limit = static_cast<float>(kInfinity);  // no total above it can be among the k nearest
    const auto offer = [&](int64_t j, double total) {
      if (!(total <= limit)) return;
      const Neighbor found{static_cast<float>(dtw_distance(o, total, 1, rows, y.lengths[j])), total, j};
      room.best.insert(std::upper_bound(room.best.begin(), room.best.end(), found), found);
      if (static_cast<int64_t>(room.best.size()) > k) room.best.pop_back();
      if (static_cast<int64_t>(room.best.size()) == k) limit = static_cast<float>(room.best.back().total * (1 + 1e-5));
    };
    const int64_t step = wide ? 1 : kernels.lanes;
    for (int64_t first = 0; first < y.count && room.order[first].bound <= limit; first += step) {
      const int used = static_cast<int>(std::min(step, y.count - first));
      if (used < kernels.lanes / 4 || wide) {
        for (int c = 0; c < used; ++c) {
          const int64_t j = room.order[first + c].index;
          offer(j, kernels.single(query, rows, at(y, j, o), y.lengths[j], nullptr, 0, o, worker.space.need(0)));
        }
        continue;
      }
      int64_t index[kDtwMaxLanes];
      double totals[kDtwMaxLanes];
      for (int c = 0; c < used; ++c) index[c] = room.order[first + c].index;
      DtwPack pack;
      kernels.pack(y, index, used, o.D, static_cast<float*>(worker.values.need(0)), &pack);
      kernels.many(query, rows, pack, o, limit, true, worker.space.need(0), totals, nullptr);
      for (int c = 0; c < used; ++c) offer(index[c], totals[c]);
    }
    for (int64_t r = 0; r < k; ++r) {
      const bool found = r < static_cast<int64_t>(room.best.size());
      distances[q * k + r] = found ? room.best[r].distance : static_cast<float>(kInfinity);
      indices[q * k + r] = found ? room.best[r].index : -1;
    }
  });
}

}  // namespace vsim

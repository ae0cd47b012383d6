#include "top_k.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <new>

#include "parallel.h"
#include "simd.h"

namespace vsim {
namespace {

constexpr int64_t kGrain = int64_t{1} << 24;  // products per thread worth starting it: ~0.2 ms
constexpr int64_t kPanelBytes = 384 << 10;    // of the queries of an item, to stay in L2
constexpr int64_t kLeastVectors = 2048;       // of an item, so that making the panels takes little of its time

auto kernel_for(Simd simd) {
  switch (simd) {
#if defined(VSIM_X86)
    case Simd::avx512: return usable_vnni() ? avx512vnni::scan : avx2::scan;
    case Simd::avx2: return avx2::scan;
#endif
    default: return portable::scan;
  }
}

int64_t queries_at_once(int64_t D) { return std::max<int64_t>(64, kPanelBytes / (2 * D) / 64 * 64); }

// The first of the vectors reported as bad.
class FirstBad {
 public:
  void add(int64_t vector) {
    if (vector < 0) return;
    int64_t seen = first_.load();
    while (vector < seen && !first_.compare_exchange_weak(seen, vector)) {
    }
  }
  int64_t get() const {
    const int64_t first = first_.load();
    return first == std::numeric_limits<int64_t>::max() ? -1 : first;
  }

 private:
  std::atomic<int64_t> first_{std::numeric_limits<int64_t>::max()};
};

struct Entry {
  float score;
  int64_t index;
};

bool before(const Entry& a, const Entry& b) { return a.score != b.score ? a.score > b.score : a.index < b.index; }

// The k best of each query so far, as heaps with the worst on top.
class BestLists {
 public:
  BestLists(int64_t queries, int64_t k) : k_(k), entries_(queries * k), sizes_(queries) {}

  float add(int64_t query, int64_t index, float score) {
    const std::lock_guard<std::mutex> lock(mutexes_[query % kMutexes]);
    Entry* const heap = entries_.data() + query * k_;
    int64_t& size = sizes_[query];
    const Entry entry{score, index};
    if (size < k_) {
      heap[size++] = entry;
      std::push_heap(heap, heap + size, before);
    } else if (before(entry, heap[0])) {
      std::pop_heap(heap, heap + size, before);
      heap[size - 1] = entry;
      std::push_heap(heap, heap + size, before);
    }
    return size < k_ ? kAny : heap[0].score;
  }

  float threshold(int64_t query) {
    const std::lock_guard<std::mutex> lock(mutexes_[query % kMutexes]);
    return sizes_[query] < k_ ? kAny : entries_[query * k_].score;
  }

  void write(int64_t query, float* scores, int64_t* index) {
    Entry* const heap = entries_.data() + query * k_;
    std::sort_heap(heap, heap + sizes_[query], before);
    for (int64_t n = 0; n < sizes_[query]; ++n) {
      scores[query * k_ + n] = heap[n].score;
      index[query * k_ + n] = heap[n].index;
    }
  }

 private:
  static constexpr int64_t kMutexes = 64;
  static constexpr float kAny = -std::numeric_limits<float>::infinity();
  int64_t k_;
  std::vector<Entry> entries_;
  std::vector<int64_t> sizes_;
  std::mutex mutexes_[kMutexes];
};

}  // namespace

size_t scan_scratch(int64_t queries, int64_t D) {
  const int64_t lanes = (queries + 15) / 16 * 16, wide = (D + 63) / 64 * 64;
  return lanes * (wide * (4 + 2) + 6 * 4) + wide * (4 + 4 + 6 * 2) + 16 * 64;  // for every instruction set
}

int64_t top_k_cpu(const TopK& args, Simd simd, int64_t threads) {
  const int64_t Q = args.queries.count, N = args.vectors.count;
  if (Q == 0 || N == 0 || args.k == 0) return -1;
  BestLists lists(Q, args.k);
  const Scan scan{args.queries, args.vectors, args.half, args.D, args.mean,
                  [](void* context, int64_t query, int64_t vector, float score) {
                    return static_cast<BestLists*>(context)->add(query, vector, score);
                  },
                  &lists};
  const auto kernel = kernel_for(simd);
  const int64_t block = std::min(queries_at_once(args.D), Q), blocks = (Q + block - 1) / block;
  const int64_t most_parts = std::max<int64_t>(1, N / kLeastVectors);
  threads = thread_count(threads, blocks * most_parts, Q * N * args.D, kGrain);
  const int64_t parts = threads == 1 ? 1 : std::min(most_parts, (4 * threads + blocks - 1) / blocks);
  const Scratch scratch(scan_scratch(block, args.D) + block * sizeof(float), threads);
  FirstBad bad;
  parallel_for(blocks * parts, threads, [&](int64_t item, int64_t thread) {
    const int64_t first = item / parts * block, end = std::min(first + block, Q), part = item % parts;
    float* thresholds = static_cast<float*>(scratch.of(thread));
    void* rest = thresholds + (block + 15) / 16 * 16;
    for (int64_t q = first; q < end; ++q) thresholds[q - first] = lists.threshold(q);
    bad.add(kernel(scan, first, end, part * N / parts, (part + 1) * N / parts, thresholds, rest));
  });
  for (int64_t q = 0; q < Q; ++q) lists.write(q, args.scores, args.index);
  return bad.get();
}

namespace {

// What one thread has found; all threads together hold at most `most`.
struct Found {
  std::vector<Pair> pairs;
  std::atomic<int64_t>* total;
  int64_t most;
  float threshold;
  bool out_of_memory = false;

  float add(int64_t query, int64_t vector, float score) {
    if (vector <= query) return threshold;  // seen from the other side, or a vector with itself
    if (total->fetch_add(1, std::memory_order_relaxed) >= most) return std::numeric_limits<float>::infinity();
    try {
      pairs.push_back({query, vector, score});
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
      return std::numeric_limits<float>::infinity();
    }
    return threshold;
  }
};

}  // namespace

int64_t pairs_above_cpu(const VectorSet& vectors, bool half, int64_t D, const float* mean, float threshold, int64_t most,
                        std::vector<Pair>& pairs, Simd simd, int64_t threads) {
  const int64_t N = vectors.count;
  if (N == 0) return -1;
  const auto kernel = kernel_for(simd);
  threads = thread_count(threads, N, N * N / 2 * D, kGrain);
  // Blocks of the triangle: few enough queries at a time that the threads finish together.
  const int64_t block = std::min(queries_at_once(D), std::max<int64_t>(64, N / (8 * threads) / 64 * 64));
  std::atomic<int64_t> total{0};
  std::vector<Found> found(threads, Found{{}, &total, most, threshold});
  const Scratch scratch(scan_scratch(block, D) + block * sizeof(float), threads);
  FirstBad bad;
  parallel_for((N + block - 1) / block, threads, [&](int64_t item, int64_t thread) {
    const Scan scan{vectors, vectors, half, D, mean,
                    [](void* context, int64_t query, int64_t vector, float score) {
                      return static_cast<Found*>(context)->add(query, vector, score);
                    },
                    &found[thread]};
    const int64_t first = item * block, end = std::min(first + block, N);
    float* thresholds = static_cast<float*>(scratch.of(thread));
    std::fill_n(thresholds, end - first, threshold);
    bad.add(kernel(scan, first, end, first, N, thresholds, thresholds + (block + 15) / 16 * 16));
  });
  if (bad.get() >= 0) return bad.get();
  if (total.load() > most) return -2;
  for (auto& part : found) {
    if (part.out_of_memory) throw std::bad_alloc();
    pairs.insert(pairs.end(), part.pairs.begin(), part.pairs.end());
    part.pairs = {};
  }
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.i != b.i ? a.i < b.i : a.j < b.j; });
  return -1;
}

}  // namespace vsim

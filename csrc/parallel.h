// Independent items over plain threads. Each item is computed by one thread, so results do not depend on their number.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace vsim {

// Threads worth starting: `wanted` (0: all hardware threads), at most one per item and per `grain` units of work.
inline int64_t thread_count(int64_t wanted, int64_t items, int64_t work, int64_t grain) {
  if (wanted <= 0) wanted = std::thread::hardware_concurrency();
  const int64_t useful = items < work / grain ? items : work / grain;
  return useful < 1 || wanted < 1 ? 1 : (wanted < useful ? wanted : useful);
}

// Memory for each thread, aligned to 64 bytes and apart from the others' by a cache line.
class Scratch {
 public:
  Scratch(size_t bytes, int64_t threads) : bytes_((bytes + 127) / 64 * 64), memory_(new char[threads * bytes_ + 64]) {}
  void* of(int64_t thread) const {
    char* start = memory_.get();
    return start + (64 - reinterpret_cast<uintptr_t>(start) % 64) + thread * bytes_;
  }

 private:
  size_t bytes_;
  std::unique_ptr<char[]> memory_;
};

// body(item, thread) for every item in [0, items); body must not throw.
template <class Body>
void parallel_for(int64_t items, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t thread) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, thread);
  };
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  } catch (const std::system_error&) {
    // The system grants no more threads: those that started share the items.
  }
  work(0);
  for (auto& other : others) other.join();
}

}  // namespace vsim

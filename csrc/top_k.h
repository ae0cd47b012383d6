// The k largest inner products of each query with N vectors, and all pairs of vectors above a threshold; exact.
//   Int8 codes of query and vector, with what rounding left out of each, bound their product from above:
//     <q, v> = <q, m> + <q, r> with r = v - m, and <q, r> <= <q', r'> + |q - q'| |r| + |q'| |r - r'|  (Cauchy-Schwarz)
//   for the codes' values q', r' and any fixed m. Only where the bound reaches the threshold of the query (its k-th best
//   so far) is the product computed, in float32 from the numbers as given, while the vector is still in cache.
//   Bounds are widened by more than what float32 rounds off, in them and in the products.
// No function here is inline: code compiled for one instruction set must not be merged with another's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace vsim {

enum class Simd : int;

struct VectorSet {
  const void* rows;  // [count, D] of float16 bits or float32
  int64_t count;
};

struct Scan {
  VectorSet queries, vectors;  // of one type; lengths of queries below kLongest
  bool half;                   // that type is float16
  int64_t D;
  const float* mean;  // [D] m: the nearer to the mean of the vectors, the tighter the bounds
  // A product of at least the query's threshold was found; returns its threshold from now on. Must not throw.
  float (*found)(void* context, int64_t query, int64_t vector, float score);
  void* context;
};

constexpr float kLongest = 1e18f;           // of a vector, so that no product overflows
constexpr int64_t kMostDimensions = 65536;  // 2^16 * 255 * 127 < 2^31

struct TopK {
  VectorSet queries, vectors;
  bool half;
  int64_t D, k;
  const float* mean;
  float* scores;   // [Q, k] descending; of equal ones the smaller index first
  int64_t* index;  // [Q, k]
};

struct Pair {
  int64_t i, j;  // i < j
  float score;
};

// Pointers to host memory; threads <= 0 takes all hardware threads. k <= vectors.count.
// Both return the first vector that is longer than kLongest or not finite, or -1.
int64_t top_k_cpu(const TopK& args, Simd simd, int64_t threads);

// By i, then j. -2 and none when there are more than `most`.
int64_t pairs_above_cpu(const VectorSet& vectors, bool half, int64_t D, const float* mean, float threshold, int64_t most,
                        std::vector<Pair>& pairs, Simd simd, int64_t threads);

// Queries first..end against vectors from..to by one thread, compiled once per instruction set.
// thresholds [end - first] are updated; scratch: scan_scratch(end - first, D) bytes, aligned to 64.
size_t scan_scratch(int64_t queries, int64_t D);
namespace portable { int64_t scan(const Scan&, int64_t first, int64_t end, int64_t from, int64_t to, float* thresholds, void* scratch); }
namespace avx2 { int64_t scan(const Scan&, int64_t first, int64_t end, int64_t from, int64_t to, float* thresholds, void* scratch); }
namespace avx512vnni { int64_t scan(const Scan&, int64_t first, int64_t end, int64_t from, int64_t to, float* thresholds, void* scratch); }

}  // namespace vsim

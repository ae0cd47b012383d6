// Best cosines between the tokens of frames, on int8 codes with one scale per token.
//   cosine(i, j) = (float(<a[i], b[j]>) * b_scales[j]) * a_scales[i], clamped to [-1, 1]; the dot product is exact
// The maxima commute with the products, which grow with each factor: every instruction set gives the same bits.
// No function here is inline: code compiled for one instruction set must not be merged with another's.
#pragma once
#include <cstddef>
#include <cstdint>

namespace vsim {

enum class Simd : int;

struct BestCosinesArgs {
  const int8_t* a;        // [N, Ka, D]
  const float* a_scales;  // [N, Ka], not negative
  const int8_t* b;        // [M, Kb, D]
  const float* b_scales;  // [M, Kb], not negative
  int64_t N, M, Ka, Kb, D;
  float* a_in_b;  // [N, M, Ka]
  float* b_in_a;  // [N, M, Kb]
};

constexpr int64_t kCodeMultiple = 64;    // of D
constexpr int64_t kMostCodes = 1 << 16;  // of D: 2^16 * 128 * 128 < 2^31

// Pointers to host memory; threads <= 0 takes all hardware threads.
void best_cosines_cpu(const BestCosinesArgs& args, Simd simd, int64_t threads);

// Frames n..end of a against frame m of b by one thread, compiled once per instruction set.
// scratch: best_cosines_scratch(args) bytes, aligned to 64.
size_t best_cosines_scratch(const BestCosinesArgs& args);
namespace portable { void best_cosines_frames(const BestCosinesArgs&, int64_t m, int64_t n, int64_t end, void* scratch); }
namespace avx2 { void best_cosines_frames(const BestCosinesArgs&, int64_t m, int64_t n, int64_t end, void* scratch); }
namespace avx512vnni { void best_cosines_frames(const BestCosinesArgs&, int64_t m, int64_t n, int64_t end, void* scratch); }

}  // namespace vsim

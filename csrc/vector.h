// Vectors of VSIM_LANES floats for the kernels of one instruction set.
#pragma once
#include <cstdint>

namespace vsim::VSIM_ISA {
namespace {

#define VSIM_INLINE static inline __attribute__((always_inline))

constexpr int64_t L = VSIM_LANES;
template <int N>
struct Lanes {
  typedef float Type __attribute__((vector_size(4 * N), may_alias));
};
typedef Lanes<L>::Type Vec;
typedef int32_t Int __attribute__((vector_size(4 * VSIM_LANES)));
typedef uint32_t Uint __attribute__((vector_size(4 * VSIM_LANES)));
typedef float Unaligned __attribute__((vector_size(4 * VSIM_LANES), aligned(4), may_alias));  // a Vec in memory

VSIM_INLINE Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
VSIM_INLINE void store(float* p, const Vec& v) { *reinterpret_cast<Unaligned*>(p) = v; }

template <int N>
VSIM_INLINE float total(const typename Lanes<N>::Type& v) {  // pairwise, so the error does not grow with the lanes
  if constexpr (N == 1) {
    return v[0];
  } else {
    typename Lanes<N / 2>::Type low, high;
    __builtin_memcpy(&low, &v, sizeof low);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return total<N / 2>(low + high);
  }
}

}  // namespace
}  // namespace vsim::VSIM_ISA

// Exact dot products of int8 codes, VSIM_LANES of them at a time, with what the instruction set has for them.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "vector.h"

namespace vsim::VSIM_ISA {
namespace {

VSIM_INLINE Int splat_int(int32_t x) { return x - Int{}; }
VSIM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VSIM_INLINE int32_t load_word(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

VSIM_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// word_at(): the next codes in 32 bits. add(): to each lane, the dot product of a word of b with a word of a.
#if defined(__AVX512VNNI__)
constexpr int64_t kUnit = 4;  // codes in a word
typedef int8_t Code;
constexpr int32_t kFlip = (int32_t)0x80808080;  // b + 128, unsigned, as the instruction wants: undone by `offset`
VSIM_INLINE int32_t word_at(const int8_t* codes) { return load_word(codes); }
VSIM_INLINE Int add(Int sum, Int b, Int a) { return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, (__m512i)a); }
#else
constexpr int64_t kUnit = 2;
typedef int16_t Code;
constexpr int32_t kFlip = 0;
VSIM_INLINE int32_t word_at(const int8_t* codes) {
  const Code wide[2] = {codes[0], codes[1]};
  return load_word(wide);
}
#if defined(__AVX2__)
VSIM_INLINE Int add(Int sum, Int b, Int a) { return sum + (Int)_mm256_madd_epi16((__m256i)b, (__m256i)a); }
#elif defined(__SSE2__)
VSIM_INLINE Int add(Int sum, Int b, Int a) { return sum + (Int)_mm_madd_epi16((__m128i)b, (__m128i)a); }
#else
VSIM_INLINE Int low(Int x) { return (Int)((Uint)x << 16) >> 16; }
VSIM_INLINE Int add(Int sum, Int b, Int a) { return sum + low(b) * low(a) + (b >> 16) * (a >> 16); }
#endif
#endif

}  // namespace
}  // namespace vsim::VSIM_ISA

// best_cosines for one instruction set; included once by a simd_*.cpp, which sets VSIM_ISA and VSIM_LANES.
// A matrix product whose entries never leave the registers: kRows tokens of a, broadcast, meet kWide tokens of b, one
// per lane. b is repacked once per frame into panels that stay in L1 while all of a goes by. Where K is not a whole
// number of tiles the last token fills the rest: seen twice, it changes no maximum.
#include "best_cosines.h"
#include "int8_dot.h"

namespace vsim::VSIM_ISA {
namespace best_cosines {
namespace {

constexpr int kRows = 6;
constexpr int kGroups = L == 16 ? 4 : 2;   // vectors of b's tokens; with kRows, all that the registers hold
constexpr int64_t kWide = kGroups * L;     // tokens of b in a panel

struct Space {  // pointers into scratch
  int32_t* panels;   // [panels][D / kUnit][kWide] words of b
  float* scales;     // [panels * kWide]
  Code* wide;        // [Ka][D], a frame of a; where codes need no widening the frame itself serves
  int32_t* offsets;  // [Ka] undo kFlip
  Vec* best;         // [Ka] the largest so far, by lane, of dot * b_scale
};

void pack(const BestCosinesArgs& g, int64_t m, const Space& z) {
  const int64_t words = g.D / kUnit;
  for (int64_t first = 0; first < g.Kb; first += kWide)
    for (int64_t t = 0; t < kWide; ++t) {
      const int64_t token = m * g.Kb + smaller(first + t, g.Kb - 1);
      const int8_t* codes = g.b + token * g.D;
      int32_t* to = z.panels + first * words + t;
      for (int64_t k = 0; k < words; ++k) to[k * kWide] = word_at(codes + k * kUnit) ^ kFlip;
      z.scales[first + t] = g.b_scales[token];
    }
}

// Readies frame n of a; returns its codes.
const Code* ready(const BestCosinesArgs& g, int64_t n, const Space& z) {
  const int8_t* codes = g.a + n * g.Ka * g.D;
  for (int64_t i = 0; i < g.Ka; ++i) z.best[i] = Vec{} - __builtin_inff();
#if defined(__AVX512VNNI__)
  for (int64_t i = 0; i < g.Ka; ++i) {
    Int sum{};
    for (int64_t d = 0; d < g.D; d += 64)
      sum = add(sum, splat_int(0x01010101), (Int)_mm512_loadu_si512(codes + i * g.D + d));
    z.offsets[i] = 0;
    for (int64_t k = 0; k < L; ++k) z.offsets[i] -= 128 * sum[k];
  }
  return codes;
#else
  for (int64_t i = 0; i < g.Ka; ++i) z.offsets[i] = 0;
  for (int64_t k = 0; k < g.Ka * g.D; ++k) z.wide[k] = codes[k];
  return z.wide;
#endif
}

// Rows i.. of a, one after the other, against a panel.
VSIM_INLINE void tile(const Code* const row[kRows], const int32_t* panel, int64_t words, const int32_t* offset,
                      const float* a_scale, const Vec b_scale[kGroups], Vec* const best[kRows], Vec column[kGroups]) {
  Int dot[kRows][kGroups];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kGroups; ++c) dot[r][c] = splat_int(offset[r]);
  for (int64_t k = 0; k < words; ++k) {
    Int b[kGroups];
    for (int c = 0; c < kGroups; ++c) b[c] = *reinterpret_cast<const Int*>(panel + k * kWide + c * L);
    for (int r = 0; r < kRows; ++r) {
      const Int a = splat_int(load_word(row[r] + k * kUnit));
      for (int c = 0; c < kGroups; ++c) dot[r][c] = add(dot[r][c], b[c], a);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Vec most = *best[r];
    for (int c = 0; c < kGroups; ++c) {
      const Vec scaled = __builtin_convertvector(dot[r][c], Vec) * b_scale[c];
      most = larger(scaled, most);
      column[c] = larger(scaled * a_scale[r], column[c]);
    }
    *best[r] = most;
  }
}

VSIM_INLINE float clamped(float x) { return x > 1.0f ? 1.0f : x < -1.0f ? -1.0f : x; }

void pair(const BestCosinesArgs& g, int64_t n, int64_t m, const Space& z) {
  const int64_t words = g.D / kUnit;
  const Code* codes = ready(g, n, z);
  const float* a_scales = g.a_scales + n * g.Ka;
  float* a_in_b = g.a_in_b + (n * g.M + m) * g.Ka;
  float* b_in_a = g.b_in_a + (n * g.M + m) * g.Kb;
  for (int64_t first = 0; first < g.Kb; first += kWide) {
    Vec b_scale[kGroups], column[kGroups];
    for (int c = 0; c < kGroups; ++c) {
      b_scale[c] = load(z.scales + first + c * L);
      column[c] = Vec{} - __builtin_inff();
    }
    for (int64_t i = 0; i < g.Ka; i += kRows) {
      const Code* row[kRows];
      Vec* best[kRows];
      int32_t offset[kRows];
      float a_scale[kRows];
      for (int r = 0; r < kRows; ++r) {
        const int64_t token = smaller(i + r, g.Ka - 1);
        row[r] = codes + token * g.D;
        best[r] = z.best + token;
        offset[r] = z.offsets[token];
        a_scale[r] = a_scales[token];
      }
      tile(row, z.panels + first * words, words, offset, a_scale, b_scale, best, column);
    }
    for (int64_t t = 0; t < smaller(kWide, g.Kb - first); ++t) b_in_a[first + t] = clamped(column[t / L][t % L]);
  }
  for (int64_t i = 0; i < g.Ka; ++i) {
    float most = z.best[i][0];
    for (int64_t k = 1; k < L; ++k) most = z.best[i][k] > most ? z.best[i][k] : most;
    a_in_b[i] = clamped(most * a_scales[i]);
  }
}

}  // namespace
}  // namespace best_cosines

void best_cosines_frames(const BestCosinesArgs& g, int64_t m, int64_t n, int64_t end, void* scratch) {
  using namespace best_cosines;
  const int64_t tokens = (g.Kb + kWide - 1) / kWide * kWide;
  char* at = static_cast<char*>(scratch);
  const auto take = [&](int64_t bytes) {
    char* piece = at;
    at += (bytes + 63) / 64 * 64;
    return piece;
  };
  Space z;
  z.panels = reinterpret_cast<int32_t*>(take(tokens * g.D * 4 / kUnit));
  z.scales = reinterpret_cast<float*>(take(tokens * 4));
  z.wide = reinterpret_cast<Code*>(take(g.Ka * g.D * 2));
  z.offsets = reinterpret_cast<int32_t*>(take(g.Ka * 4));
  z.best = reinterpret_cast<Vec*>(take(g.Ka * 64));
  pack(g, m, z);
  for (; n < end; ++n) pair(g, n, m, z);
}

}  // namespace vsim::VSIM_ISA

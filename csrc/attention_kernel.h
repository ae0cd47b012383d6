// Attention for CPUs with bfloat16 dot products; included by simd_avx512bf16.cpp, which sets VSIM_ISA and VSIM_LANES.
// Both products are one kernel: kRows rows, broadcast a word (two numbers) at a time, meet a panel of kWide columns, one
// per lane. k and v are repacked once per head into panels that stay in L1 while kBlock queries go by. A block's scores
// against all keys stay in L2, so that the softmax sees whole rows and nothing is rescaled.
#include <immintrin.h>

#include "attention.h"
#include "vector.h"

namespace vsim::VSIM_ISA {
namespace attention {
namespace {

constexpr int kRows = 6;
constexpr int kGroups = 4;  // vectors of columns; with kRows, all that the registers hold
constexpr int64_t kWide = kGroups * L;
constexpr int64_t kBlock = 4 * kRows;  // queries that share a panel while it is in L1
constexpr int64_t kDepth = 64;         // words of a panel of v that stay in L1 with the weights they meet

VSIM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VSIM_INLINE int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// out[r][c] = (out[r][c] +) sum over k < depth of rows[r][k] * panel[k][c], for c < G * L
template <bool Onto, int G>
VSIM_INLINE void tile(const uint32_t* rows, int64_t row_words, const uint32_t* panel, int64_t depth, float* out,
                      int64_t out_row) {
  Vec sum[kRows][G];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < G; ++c) sum[r][c] = Onto ? load(out + r * out_row + c * L) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    __m512bh b[G];
    for (int c = 0; c < G; ++c) b[c] = (__m512bh)_mm512_load_si512(panel + k * kWide + c * L);
    for (int r = 0; r < kRows; ++r) {
      int32_t word;
      __builtin_memcpy(&word, rows + r * row_words + k, sizeof word);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(word);
      for (int c = 0; c < G; ++c) sum[r][c] = (Vec)_mm512_dpbf16_ps((__m512)sum[r][c], a, b[c]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < G; ++c) store(out + r * out_row + c * L, sum[r][c]);
}

// The same for `count` rows and up to kWide columns; vectors that hold none are left out.
template <bool Onto, int G = kGroups>
void multiply(const uint32_t* rows, int64_t row_words, int64_t count, const uint32_t* panel, int64_t depth, float* out,
              int64_t out_row, int64_t columns) {
  if constexpr (G > 1)
    if (columns <= (G - 1) * L)
      return multiply<Onto, G - 1>(rows, row_words, count, panel, depth, out, out_row, columns);
  for (int64_t r = 0; r < count; r += kRows)
    tile<Onto, G>(rows + r * row_words, row_words, panel, depth, out + r * out_row, out_row);
}

// 2^x by a polynomial fitted to it on [0, 1), off by 7.5e-5 of it; NaN for NaN.
VSIM_INLINE __m512 power_of_two(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.078024514f), f, _mm512_set1_ps(0.22606717f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583356f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999252f));
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

VSIM_INLINE void store_rounded(void* to, __m512 x) {
  const __m256bh numbers = _mm512_cvtneps_pbh(x);
  __builtin_memcpy(to, &numbers, sizeof numbers);
}

struct Space {  // pointers into scratch
  uint32_t* keys;     // [Nk / kWide][d / 2][kWide] words along d
  uint32_t* values;   // [d / kWide][Nk / 2][kWide] words along Nk
  uint32_t* queries;  // [kBlock][d / 2]
  float* scores;      // [kBlock][Nk]; later the weights, in the front half of each row
  float* sums;        // [kBlock][d]
  int64_t d_words, k_words, k_columns, d_columns, bytes;  // of padded widths
};

// Without scratch only the sizes.
Space layout(const AttentionArgs& g, void* scratch) {
  Space z;
  z.bytes = 0;
  const auto take = [&](int64_t words) {
    char* piece = scratch ? static_cast<char*>(scratch) + z.bytes : nullptr;
    z.bytes += whole(words * 4, 64);
    return piece;
  };
  z.d_words = (g.d + 1) / 2;
  z.k_words = (g.Nk + 1) / 2;
  z.k_columns = whole(g.Nk, kWide);
  z.d_columns = whole(g.d, kWide);
  z.keys = reinterpret_cast<uint32_t*>(take(z.k_columns * z.d_words));
  z.values = reinterpret_cast<uint32_t*>(take(z.d_columns * z.k_words));
  z.queries = reinterpret_cast<uint32_t*>(take(kBlock * z.d_words));
  z.scores = reinterpret_cast<float*>(take(kBlock * z.k_columns));
  z.sums = reinterpret_cast<float*>(take(kBlock * z.d_columns));
  return z;
}

// A token as words, `step` apart; an odd last number has a zero beside it.
VSIM_INLINE void copy_words(const char* token, int64_t d, uint32_t* to, int64_t step) {
  for (int64_t w = 0; w < d / 2; ++w) __builtin_memcpy(to + w * step, token + 4 * w, 4);
  if (d % 2) {
    to[d / 2 * step] = 0;
    __builtin_memcpy(to + d / 2 * step, token + 2 * d - 2, 2);
  }
}

void pack(const AttentionArgs& g, const char* k, const char* v, const Space& z) {
  for (int64_t t = 0; t < z.k_columns; ++t)  // past the last key the last again: its score is left out
    copy_words(k + smaller(t, g.Nk - 1) * g.k.token, g.d, z.keys + t / kWide * kWide * z.d_words + t % kWide, kWide);
  for (int64_t w = 0; w < z.k_words; ++w) {  // past the last value the last again: its weight is 0
    const uint16_t* upper = reinterpret_cast<const uint16_t*>(v + 2 * w * g.v.token);
    const uint16_t* lower = reinterpret_cast<const uint16_t*>(v + smaller(2 * w + 1, g.Nk - 1) * g.v.token);
    for (int64_t column = 0; column < z.d_columns; column += kWide) {
      uint32_t* to = z.values + column * z.k_words + w * kWide;
      const int64_t count = smaller(kWide, g.d - column);
      for (int64_t i = 0; i < count; ++i) to[i] = upper[column + i] | (uint32_t)lower[column + i] << 16;
      for (int64_t i = count; i < kWide; ++i) to[i] = 0;
    }
  }
}

// Scores of one query to weights, of which the largest is 1, in place; returns one over their sum.
float soften(const AttentionArgs& g, float* row, int64_t columns) {
  for (int64_t j = g.Nk; j < columns; ++j) row[j] = -__builtin_inff();
  __m512 most[kGroups], sum[kGroups];  // each waits for the one before it: several take turns
  for (int c = 0; c < kGroups; ++c) most[c] = _mm512_loadu_ps(row + c * L);
  for (int64_t j = kWide; j < columns; j += kWide)
    for (int c = 0; c < kGroups; ++c) most[c] = _mm512_max_ps(_mm512_loadu_ps(row + j + c * L), most[c]);
  for (int c = 1; c < kGroups; ++c) most[0] = _mm512_max_ps(most[0], most[c]);
  const float scale = g.scale * 1.44269504f;
  const __m512 slope = _mm512_set1_ps(scale), shift = _mm512_set1_ps(_mm512_reduce_max_ps(most[0]) * scale);
  for (int c = 0; c < kGroups; ++c) sum[c] = _mm512_setzero_ps();
  for (int64_t j = 0; j < columns; j += kWide)
    for (int c = 0; c < kGroups; ++c) {
      const __m512 weight = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(row + j + c * L), slope, shift));
      sum[c] = _mm512_add_ps(sum[c], weight);
      store_rounded(reinterpret_cast<char*>(row) + 2 * (j + c * L), weight);  // behind what is still to be read
    }
  for (int c = 1; c < kGroups; ++c) sum[0] = _mm512_add_ps(sum[0], sum[c]);
  return 1.0f / _mm512_reduce_add_ps(sum[0]);
}

// `count` queries of one head, at most kBlock; up to a whole number of kRows the last is computed again.
void block(const AttentionArgs& g, const char* q, char* out, int64_t count, const Space& z) {
  const int64_t rows = whole(count, kRows);
  for (int64_t r = 0; r < rows; ++r)
    copy_words(q + smaller(r, count - 1) * g.q.token, g.d, z.queries + r * z.d_words, 1);
  for (int64_t first = 0; first < g.Nk; first += kWide)
    multiply<false>(z.queries, z.d_words, rows, z.keys + first * z.d_words, z.d_words, z.scores + first, z.k_columns,
                    g.Nk - first);
  float inverse[kBlock];
  for (int64_t r = 0; r < rows; ++r) inverse[r] = soften(g, z.scores + r * z.k_columns, z.k_columns);
  for (int64_t i = 0; i < rows * z.d_columns; ++i) z.sums[i] = 0;
  const uint32_t* weights = reinterpret_cast<const uint32_t*>(z.scores);
  for (int64_t column = 0; column < g.d; column += kWide)
    for (int64_t w = 0; w < z.k_words; w += kDepth)
      multiply<true>(weights + w, z.k_columns, rows, z.values + column * z.k_words + w * kWide,
                     smaller(kDepth, z.k_words - w), z.sums + column, z.d_columns, g.d - column);
  for (int64_t r = 0; r < count; ++r) {
    const float* sums = z.sums + r * z.d_columns;
    char* token = out + r * g.out.token;
    int64_t i = 0;
    for (; i + L <= g.d; i += L) store_rounded(token + 2 * i, (__m512)(load(sums + i) * inverse[r]));
    if (i < g.d) {
      uint16_t numbers[L];
      store_rounded(numbers, (__m512)(load(sums + i) * inverse[r]));
      __builtin_memcpy(token + 2 * i, numbers, 2 * (g.d - i));
    }
  }
}

}  // namespace
}  // namespace attention

size_t attention_scratch(const AttentionArgs& g) {
  return attention::layout(g, nullptr).bytes;
}

void attention_rows(const AttentionArgs& g, int64_t h, int64_t first, int64_t end, void* scratch) {
  using namespace attention;
  const Space z = layout(g, scratch);
  const auto at = [&](const Heads& x) { return x.data + h / g.H * x.batch + h % g.H * x.head; };
  pack(g, at(g.k), at(g.v), z);
  for (; first < end; first += kBlock)
    block(g, at(g.q) + first * g.q.token, at(g.out) + first * g.out.token, smaller(kBlock, end - first), z);
}

}  // namespace vsim::VSIM_ISA

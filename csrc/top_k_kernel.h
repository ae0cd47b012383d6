// scan() for one instruction set; included once by a simd_*.cpp, which sets VSIM_ISA and VSIM_LANES.
// Queries lie in panels, one per lane, made once; kRows vectors at a time are rounded to codes in L1, meet every panel
// and are forgotten: neither codes nor scores of the vectors reach memory. Lanes without a query never reach their
// threshold; where the last tile has too few vectors the last one fills it and is not looked at again.
#include "int8_dot.h"
#include "top_k.h"

namespace vsim::VSIM_ISA {
namespace top_k {
namespace {

constexpr int kRows = 6;
constexpr int kGroups = L == 16 ? 4 : 2;  // vectors of queries in a panel; with kRows, all that the registers hold
constexpr int64_t kWide = kGroups * L;
constexpr int kChains = 4;  // divides the 64 / L vectors that rows are padded to
constexpr int64_t kFew = 5;          // below so many queries rounding a vector costs more than its products
constexpr float kMagic = 0x1.8p23f;  // adding it rounds to a whole number, found in the low bits
constexpr int32_t kMagicBits = 0x4B400000;
constexpr float kRoundedUp = 1.001f;  // more than a sum of up to kMostDimensions squares can have lost

#if defined(__AVX512VNNI__)
typedef uint8_t Stored;              // codes of a vector, + 128 as the instruction wants: undone by `offsets`
constexpr int32_t kUnsign = 128;
#else
typedef Code Stored;
constexpr int32_t kUnsign = 0;
#endif
typedef Stored Narrow __attribute__((vector_size(sizeof(Stored) * VSIM_LANES), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * VSIM_LANES), aligned(2), may_alias));

VSIM_INLINE Vec load_as_float(const float* p) { return load(p); }
VSIM_INLINE Vec load_as_float(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const Uint bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Uint);
  const Uint magnitude = (bits & 0x7fffu) << 13;
  const Uint special = (Uint)(magnitude >= 0x0f800000u) & 0x7f800000u;  // infinity and NaN
  return (Vec)((Uint)((Vec)magnitude * 0x1p112f) | special | (bits & 0x8000u) << 16);
#endif
}

// The last count < L numbers of a row, and zeros.
template <class T>
VSIM_INLINE Vec load_last(const T* p, int64_t count) {
  T last[L] = {};
  __builtin_memcpy(last, p, count * sizeof(T));
  return load_as_float(last);
}

// Which lanes reach their threshold.
VSIM_INLINE uint32_t reached(Vec bound, Vec threshold) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)bound, (__m512)threshold, _CMP_GE_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)bound, (__m256)threshold, _CMP_GE_OQ));
#else
  uint32_t mask = 0;
  for (int k = 0; k < L; ++k) mask |= (uint32_t)(bound[k] >= threshold[k]) << k;
  return mask;
#endif
}

struct Space {  // pointers into scratch; lanes: queries rounded up to whole vectors
  float* queries;  // [lanes][wide] in float32, padded with zeros
  int32_t* panels;  // [panels][wide / kUnit][lanes of the panel] words of codes
  int32_t* offsets;  // [lanes] undo kUnsign
  float *scale, *base, *by_length, *by_error;  // [lanes] bound = scale·step·dot + base + by_length·|r| + by_error·|r - r'|
  float* thresholds;  // [lanes]
  float* mean;  // [wide]
  float* rest;  // [wide] v - m
  Stored* codes;  // [kRows][wide]
};

// A float32 product of the numbers as given, the same bits wherever they lie.
template <class T>
VSIM_INLINE float product(const T* row, const float* query, int64_t D) {
  Vec sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * L <= D; d += 4 * L)
    for (int c = 0; c < 4; ++c) sum[c] += load_as_float(row + d + c * L) * load(query + d + c * L);
  for (; d + L <= D; d += L) sum[0] += load_as_float(row + d) * load(query + d);
  if (d < D) sum[1] += load_last(row + d, D - d) * load(query + d);
  return total<L>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
VSIM_INLINE float squared_length(const T* row, int64_t D) {
  Vec sum[2] = {};
  int64_t d = 0;
  for (; d + 2 * L <= D; d += 2 * L)
    for (int c = 0; c < 2; ++c) sum[c] += load_as_float(row + d + c * L) * load_as_float(row + d + c * L);
  for (; d + L <= D; d += L) sum[0] += load_as_float(row + d) * load_as_float(row + d);
  if (d < D) sum[1] += load_last(row + d, D - d) * load_last(row + d, D - d);
  return total<L>(sum[0] + sum[1]);
}

template <class T>
void ready(const Scan& g, int64_t first, int64_t count, int64_t wide, float* thresholds, const Space& z) {
  const int64_t words = wide / kUnit, lanes = (count + L - 1) / L * L;
  const double slack = (double)(g.D + 16) * 0x1p-22;
  for (int64_t d = 0; d < wide; ++d) z.mean[d] = d < g.D ? g.mean[d] : 0;
  for (int64_t d = 0; d < wide; ++d) z.rest[d] = 0;
  double mean_squared = 0;
  for (int64_t d = 0; d < g.D; ++d) mean_squared += (double)g.mean[d] * g.mean[d];
  for (int64_t q = 0; q < lanes; ++q) {
    float* query = z.queries + q * wide;
    for (int64_t d = 0; d < wide; ++d) query[d] = 0;
    z.scale[q] = z.base[q] = z.by_length[q] = z.by_error[q] = 0;
    z.offsets[q] = 0;
    z.thresholds[q] = __builtin_inff();
    if (q < count) {
      const T* row = static_cast<const T*>(g.queries.rows) + (first + q) * g.D;
      int64_t d = 0;
      for (; d + L <= g.D; d += L) store(query + d, load_as_float(row + d));
      if (d < g.D) store(query + d, load_last(row + d, g.D - d));
    }
    double squared = 0, with_mean = 0;
    float most = 0;
    for (int64_t d = 0; d < g.D; ++d) {
      squared += (double)query[d] * query[d];
      with_mean += (double)query[d] * g.mean[d];
      const float size = __builtin_fabsf(query[d]);
      most = size > most ? size : most;
    }
    const double length = __builtin_sqrt(squared);
    const bool usable = q < count && length < kLongest;  // else a vector too, and reported as such
    const float step = usable && most > 1e-30f ? most / 127 : 0, inverse = step > 0 ? 127 / most : 0;
    double error = 0, rounded = 0;
    const int64_t panel = q / kWide * kWide, width = smaller(kWide, lanes - panel);
    int32_t* to = z.panels + panel * words + (q - panel);
    for (int64_t w = 0; w < words; ++w) {
      int8_t codes[kUnit];
      for (int64_t u = 0; u < kUnit; ++u) {
        const float value = usable ? query[w * kUnit + u] : 0;
        const int32_t code = (int32_t)__builtin_nearbyintf(value * inverse);
        codes[u] = (int8_t)code;
        z.offsets[q] -= kUnsign * code;
        error += ((double)value - (double)step * code) * ((double)value - (double)step * code);
        rounded += (double)step * code * step * code;
      }
      to[w * width] = word_at(codes);
    }
    if (!usable) continue;
    z.scale[q] = step;
    z.base[q] = (float)(with_mean + slack * length * __builtin_sqrt(mean_squared)) + 1e-30f;
    z.by_length[q] = (float)(__builtin_sqrt(error) + slack * length) * kRoundedUp;
    z.by_error[q] = (float)__builtin_sqrt(rounded) * kRoundedUp;
    z.thresholds[q] = thresholds[q];
  }
}

struct Rounded {
  float step, length, error;  // value of a code; |r|; |r - r'|
};

// Codes of a vector less the mean. Several sums and maxima at a time: one would wait for itself.
template <class T>
VSIM_INLINE Rounded round_to_codes(const T* row, int64_t D, int64_t wide, const Space& z, Stored* codes) {
  Int most[kChains] = {};  // magnitudes as integers, which order alike and have a maximum instruction; NaN is the largest
  const auto put = [&](int64_t d, Vec value, Int& top) __attribute__((always_inline)) {
    value -= load(z.mean + d);
    store(z.rest + d, value);
    const Int size = (Int)value & 0x7fffffff;
    top = size > top ? size : top;
  };
  int64_t d = 0;
  for (; d + kChains * L <= D; d += kChains * L)
    for (int c = 0; c < kChains; ++c) put(d + c * L, load_as_float(row + d + c * L), most[c]);
  for (; d + L <= D; d += L) put(d, load_as_float(row + d), most[0]);
  if (d < D) put(d, load_last(row + d, D - d), most[1]);
  for (int c = 1; c < kChains; ++c) most[0] = most[c] > most[0] ? most[c] : most[0];
  int32_t top_bits = 0;
  for (int64_t k = 0; k < L; ++k) top_bits = most[0][k] > top_bits ? most[0][k] : top_bits;
  float top;
  __builtin_memcpy(&top, &top_bits, sizeof top);
  const bool tiny = !(top > 1e-30f);  // too small to divide by: all codes 0
  const float inverse = tiny ? 0 : 127 / top;
  Vec length[kChains] = {}, error[kChains] = {};
  for (d = 0; d < wide; d += kChains * L)
    for (int c = 0; c < kChains; ++c) {
      const int64_t at = d + c * L;
      const Vec scaled = load(z.rest + at) * inverse, sum = scaled + kMagic, left = scaled - (sum - kMagic);
      *reinterpret_cast<Narrow*>(codes + at) = __builtin_convertvector((Int)sum - (kMagicBits - kUnsign), Narrow);
      length[c] += scaled * scaled;
      error[c] += left * left;
    }
  for (int c = 1; c < kChains; ++c) {
    length[0] += length[c];
    error[0] += error[c];
  }
  const float step = tiny ? 0 : top / 127, bound = tiny ? 1e-30f * __builtin_sqrtf((float)wide) : 0;
  return {step, bound + step * __builtin_sqrtf(total<L>(length[0])) * kRoundedUp,
          bound + step * __builtin_sqrtf(total<L>(error[0])) * kRoundedUp};
}

// kRows vectors against G groups of queries from lane `first` on.
template <int G, class T>
VSIM_INLINE void tile(const Scan& g, const Space& z, int64_t query, int64_t first, int64_t vector, int64_t rows,
                      int64_t wide, const Rounded* rounded) {
  const int64_t words = wide / kUnit;
  const int32_t* panel = z.panels + first * words;
  Int dot[kRows][G];
  for (int c = 0; c < G; ++c) {
    Int offset;
    __builtin_memcpy(&offset, z.offsets + first + c * L, sizeof offset);
    for (int r = 0; r < kRows; ++r) dot[r][c] = offset;
  }
  for (int64_t w = 0; w < words; ++w) {
    Int q[G];
    for (int c = 0; c < G; ++c) __builtin_memcpy(&q[c], panel + (w * G + c) * L, sizeof q[c]);
    for (int r = 0; r < kRows; ++r) {
      const Int v = splat_int(load_word(z.codes + r * wide + w * kUnit));
      for (int c = 0; c < G; ++c) dot[r][c] = add(dot[r][c], v, q[c]);
    }
  }
  for (int c = 0; c < G; ++c) {
    const int64_t lane = first + c * L;
    const Vec scale = load(z.scale + lane), base = load(z.base + lane);
    const Vec by_length = load(z.by_length + lane), by_error = load(z.by_error + lane);
    for (int r = 0; r < rows; ++r) {
      const Vec bound = __builtin_convertvector(dot[r][c], Vec) * (scale * rounded[r].step) +
                        (by_length * rounded[r].length + (by_error * rounded[r].error + base));
      for (uint32_t mask = reached(bound, load(z.thresholds + lane)); mask; mask &= mask - 1) {
        const int64_t q = lane + __builtin_ctz(mask), v = vector + r;
        const float score = product(static_cast<const T*>(g.vectors.rows) + v * g.D, z.queries + q * wide, g.D);
        if (score >= z.thresholds[q]) z.thresholds[q] = g.found(g.context, query + q, v, score);
      }
    }
  }
}

template <class T>
VSIM_INLINE void fetch_ahead(const Scan& g, int64_t from, int64_t to) {
  const char* row = reinterpret_cast<const char*>(static_cast<const T*>(g.vectors.rows) + from * g.D);
  const char* end = reinterpret_cast<const char*>(static_cast<const T*>(g.vectors.rows) + to * g.D);
  for (; row < end; row += 64) __builtin_prefetch(row);
}

template <class T>
int64_t scan_few(const Scan& g, int64_t query, int64_t count, int64_t from, int64_t to, int64_t wide, const Space& z) {
  int64_t bad = -1;
  for (int64_t v = from; v < to; ++v) {
    const T* row = static_cast<const T*>(g.vectors.rows) + v * g.D;
    fetch_ahead<T>(g, smaller(v + kRows, to), smaller(v + kRows + 1, to));
    if (!(squared_length(row, g.D) < kLongest * kLongest)) {
      if (bad < 0) bad = v;
      continue;
    }
    for (int64_t q = 0; q < count; ++q) {
      const float score = product(row, z.queries + q * wide, g.D);
      if (score >= z.thresholds[q]) z.thresholds[q] = g.found(g.context, query + q, v, score);
    }
  }
  return bad;
}

template <class T>
int64_t scan_many(const Scan& g, int64_t query, int64_t count, int64_t from, int64_t to, int64_t wide, const Space& z) {
  int64_t bad = -1;
  for (int64_t v = from; v < to; v += kRows) {
    Rounded rounded[kRows];
    const int64_t rows = smaller(kRows, to - v);
    for (int64_t r = 0; r < kRows; ++r) {
      const T* row = static_cast<const T*>(g.vectors.rows) + (v + smaller(r, rows - 1)) * g.D;
      rounded[r] = round_to_codes(row, g.D, wide, z, z.codes + r * wide);
      if (!(rounded[r].length < kLongest)) {
        if (bad < 0) bad = v + r;
        rounded[r] = {0, __builtin_nanf(""), 0};  // a bound that reaches no threshold
      }
    }
    fetch_ahead<T>(g, v + rows, smaller(v + rows + kRows, to));
    for (int64_t first = 0; first < count; first += kWide) {
      const int64_t groups = (smaller(kWide, count - first) + L - 1) / L;
      if (groups == 1) tile<1, T>(g, z, query, first, v, rows, wide, rounded);
      if (groups == 2) tile<2, T>(g, z, query, first, v, rows, wide, rounded);
      if constexpr (kGroups == 4) {
        if (groups == 3) tile<3, T>(g, z, query, first, v, rows, wide, rounded);
        if (groups == 4) tile<4, T>(g, z, query, first, v, rows, wide, rounded);
      }
    }
  }
  return bad;
}

template <class T>
int64_t run(const Scan& g, int64_t first, int64_t count, int64_t from, int64_t to, float* thresholds, int64_t wide,
            const Space& z) {
  ready<T>(g, first, count, wide, thresholds, z);
  const int64_t bad = (count < kFew ? scan_few<T> : scan_many<T>)(g, first, count, from, to, wide, z);
  for (int64_t q = 0; q < count; ++q) thresholds[q] = z.thresholds[q];
  return bad;
}

Space lay_out(int64_t count, int64_t wide, void* scratch) {
  const int64_t lanes = (count + L - 1) / L * L;
  char* at = static_cast<char*>(scratch);
  const auto take = [&](int64_t bytes) {
    char* piece = at;
    at += (bytes + 63) / 64 * 64;
    return piece;
  };
  Space z;
  z.queries = reinterpret_cast<float*>(take(lanes * wide * 4));
  z.panels = reinterpret_cast<int32_t*>(take(lanes * wide * 4 / kUnit));
  z.offsets = reinterpret_cast<int32_t*>(take(lanes * 4));
  const auto take_floats = [&](int64_t number) { return reinterpret_cast<float*>(take(number * 4)); };
  z.scale = take_floats(lanes);
  z.base = take_floats(lanes);
  z.by_length = take_floats(lanes);
  z.by_error = take_floats(lanes);
  z.thresholds = take_floats(lanes);
  z.mean = take_floats(wide);
  z.rest = take_floats(wide);
  z.codes = reinterpret_cast<Stored*>(take(kRows * wide * sizeof(Stored)));
  return z;
}

}  // namespace
}  // namespace top_k

int64_t scan(const Scan& g, int64_t first, int64_t end, int64_t from, int64_t to, float* thresholds, void* scratch) {
  const int64_t wide = (g.D + 63) / 64 * 64;
  const top_k::Space z = top_k::lay_out(end - first, wide, scratch);
  return (g.half ? top_k::run<uint16_t> : top_k::run<float>)(g, first, end - first, from, to, thresholds, wide, z);
}

}  // namespace vsim::VSIM_ISA

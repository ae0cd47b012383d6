// derivatives_video for one instruction set; included once by each simd_*.cpp, which sets VSIM_ISA and VSIM_LANES.
// One pass over time: a block of rows serves all windows while it and the rows ahead are in cache. Each block is
// visited twice per window, first for the norms, then for the directions, which live in registers only.
// The variance needs no second pass: mean over d of var_t(u) = (sum_t |u|^2 - |sum_t u|^2 / n) / ((n - 1) D).
#include "derivatives.h"
#include "vector.h"

namespace vsim::VSIM_ISA {
namespace {

constexpr int kRows = 4;  // times per block; their sums fit in registers and their rows in L1
constexpr int64_t kFlush = 16;  // fp32 additions between fp64 ones: rounding does not pile up over long videos

VSIM_INLINE float inverse(float norm) { return 1.0f / (norm < kMinNorm ? kMinNorm : norm); }

// |u|^2: 1, or less for a difference shorter than kMinNorm.
VSIM_INLINE double unit_norm2(float norm) {
  return norm < kMinNorm ? (double)norm * norm / ((double)kMinNorm * kMinNorm) : norm == norm ? 1.0 : norm;
}

VSIM_INLINE void store_moments(const DerivativesArgs& a, int64_t bs, const double* sum, double units) {
  const int64_t n = a.counts[bs];
  double sum2 = 0;
  for (int64_t d = 0; d < a.D; ++d) {
    a.mean[bs * a.D + d] = n > 0 ? (float)(sum[d] / n) : 0.0f;
    sum2 += sum[d] * sum[d];
  }
  const double variance = n > 1 ? (units - sum2 / n) / ((double)(n - 1) * a.D) : 0.0;
  a.variance[bs] = variance < 0 ? 0.0f : (float)variance;  // rounding may fall below zero; NaN stays NaN
}

// L columns of one difference. The last vector of a row ends at its last column; lanes seen before are masked out.
template <bool Last>
VSIM_INLINE Vec difference(const float* p, int64_t ahead, const Int& fresh) {
  const Vec d = load(p + ahead) - load(p);
  return Last ? (Vec)((Int)d & fresh) : d;
}

// Squared norms of R differences.
template <int R, bool Last>
VSIM_INLINE void norms_step(const float* x, int64_t ahead, int64_t D, const Int& fresh, Vec* acc) {
  for (int r = 0; r < R; ++r) {
    const Vec d = difference<Last>(x + r * D, ahead, fresh);
    acc[r] += d * d;
  }
}

// R directions, their sum, and their distances to the ones before them; inv[0] belongs to the row `before`.
template <int R, bool Last>
VSIM_INLINE void directions_step(const float* x, const float* before, int64_t ahead, int64_t D, const Int& fresh,
                                 const float* inv, Vec* acc, float* sum) {
  Vec last = difference<Last>(before, ahead, fresh) * inv[0], s{};
  for (int r = 0; r < R; ++r) {
    const Vec u = difference<Last>(x + r * D, ahead, fresh) * inv[r + 1], e = u - last;
    acc[r] += e * e;
    s += u;
    last = u;
  }
  store(sum, load(sum) + s);
}

// R consecutive derivatives of one window, from time t on. inverse_before: that of time t - 1, then of the last row.
template <int R>
VSIM_INLINE void rows(const float* x, int64_t t, int64_t window, int64_t D, float* magnitudes, float* changes,
                      float& inverse_before, float* sum, double& units) {
  const float* row = x + t * D;
  const float* before = t > 0 ? row - D : row;
  const int64_t ahead = window * D, full = D - D % L, end = D - L;
  Int fresh;
  for (int64_t lane = 0; lane < L; ++lane) fresh[lane] = end + lane >= full ? -1 : 0;
  Vec acc[R] = {};
  for (int64_t i = 0; i < full; i += L) norms_step<R, false>(row + i, ahead, D, fresh, acc);
  if (full < D) norms_step<R, true>(row + end, ahead, D, fresh, acc);
  float inv[R + 1];
  inv[0] = inverse_before;
  for (int r = 0; r < R; ++r) {
    const float norm = __builtin_sqrtf(total<L>(acc[r]));
    magnitudes[t + r] = norm;
    inv[r + 1] = inverse(norm);
    units += unit_norm2(norm);
    acc[r] = Vec{};
  }
  inverse_before = inv[R];
  for (int64_t i = 0; i < full; i += L)
    directions_step<R, false>(row + i, before + i, ahead, D, fresh, inv, acc, sum + i);
  if (full < D) directions_step<R, true>(row + end, before + end, ahead, D, fresh, inv, acc, sum + end);
  for (int r = t > 0 ? 0 : 1; r < R; ++r) changes[t + r - 1] = __builtin_sqrtf(total<L>(acc[r]));
}

// Lanes over dimensions; D >= L. recent [S, D] collects kFlush blocks in fp32 before they enter sums [S, D] in fp64.
// units [S] and inverse_before [S] are scratch.
void wide(const DerivativesArgs& a, int64_t b, double* sums, double* units, float* recent, float* inverse_before) {
  const float* x = a.x + b * a.T * a.D;
  for (int64_t i = 0; i < a.S * a.D; ++i) sums[i] = recent[i] = 0;
  for (int64_t s = 0; s < a.S; ++s) units[s] = inverse_before[s] = 0;
  for (int64_t start = 0; start < a.T; start += kRows) {
    for (int64_t s = 0; s < a.S; ++s) {
      const int64_t bs = b * a.S + s, n = a.counts[bs];
      float *m = a.magnitudes + bs * a.T, *c = a.changes + bs * a.T, *sum = recent + s * a.D;
      if (start + kRows <= n)
        rows<kRows>(x, start, a.windows[s], a.D, m, c, inverse_before[s], sum, units[s]);
      else
        for (int64_t t = start; t < n; ++t) rows<1>(x, t, a.windows[s], a.D, m, c, inverse_before[s], sum, units[s]);
    }
    if (start / kRows % kFlush == kFlush - 1 || start + kRows >= a.T) {
      for (int64_t i = 0; i < a.S * a.D; ++i) sums[i] += recent[i];
      for (int64_t i = 0; i < a.S * a.D; ++i) recent[i] = 0;
    }
  }
  for (int64_t s = 0; s < a.S; ++s) store_moments(a, b * a.S + s, sums + s * a.D, units[s]);
}

// Lanes over time: few dimensions would leave most lanes empty, so the video is transposed to xt [D, T] first.
// inv [T] and u [T + L] are scratch.
void narrow(const DerivativesArgs& a, int64_t b, double* sum, float* __restrict__ xt, float* __restrict__ inv,
            float* __restrict__ u) {
  const int64_t T = a.T, D = a.D;
  const float* x = a.x + b * T * D;
  int64_t used = 0;  // rows past a video's length are never read
  for (int64_t s = 0; s < a.S; ++s)
    if (const int64_t n = a.counts[b * a.S + s]; n > 0 && n + a.windows[s] > used) used = n + a.windows[s];
  for (int64_t t = 0; t < used; ++t)
    for (int64_t d = 0; d < D; ++d) xt[d * T + t] = x[t * D + d];

  for (int64_t s = 0; s < a.S; ++s) {
    const int64_t bs = b * a.S + s, n = a.counts[bs], w = a.windows[s];
    float* __restrict__ m = a.magnitudes + bs * T;
    float* __restrict__ c = a.changes + bs * T;
    for (int64_t t = 0; t < n; ++t) m[t] = c[t] = 0;
    for (int64_t d = 0; d < D; ++d) {
      const float* row = xt + d * T;
      for (int64_t t = 0; t < n; ++t) m[t] += (row[t + w] - row[t]) * (row[t + w] - row[t]);
    }
    for (int64_t t = 0; t < n; ++t) {
      m[t] = __builtin_sqrtf(m[t]);
      inv[t] = inverse(m[t]);
    }
    for (int64_t lane = 0; lane < L; ++lane) u[n + lane] = 0;
    double units = 0;
    for (int64_t t = 0; t < n; ++t) units += unit_norm2(m[t]);
    for (int64_t d = 0; d < D; ++d) {
      const float* row = xt + d * T;
      for (int64_t t = 0; t < n; ++t) u[t] = (row[t + w] - row[t]) * inv[t];
      for (int64_t t = 0; t + 1 < n; ++t) c[t] += (u[t + 1] - u[t]) * (u[t + 1] - u[t]);
      sum[d] = 0;
      for (int64_t start = 0; start < n; start += kFlush * L) {
        const int64_t end = start + kFlush * L < n ? start + kFlush * L : n;
        Vec part{};
        for (int64_t t = start; t < end; t += L) part += load(u + t);
        sum[d] += total<L>(part);
      }
    }
    for (int64_t t = 0; t + 1 < n; ++t) c[t] = __builtin_sqrtf(c[t]);
    store_moments(a, bs, sum, units);
  }
}

}  // namespace

void derivatives_video(const DerivativesArgs& a, int64_t b, void* scratch) {
  double* sums = static_cast<double*>(scratch);
  double* units = sums + a.S * a.D;
  float* rest = reinterpret_cast<float*>(units + a.S);
  if (a.D > kMaxLanes)
    wide(a, b, sums, units, rest, rest + a.S * a.D);
  else
    narrow(a, b, sums, rest, rest + a.D * a.T, rest + (a.D + 1) * a.T);
  for (int64_t s = 0; s < a.S; ++s) {
    const int64_t bs = b * a.S + s, n = a.counts[bs];
    for (int64_t t = n; t < a.T; ++t) a.magnitudes[bs * a.T + t] = 0;
    for (int64_t t = n > 0 ? n - 1 : 0; t < a.T; ++t) a.changes[bs * a.T + t] = 0;
  }
}

}  // namespace vsim::VSIM_ISA

// derivatives on the GPU: one launch for all videos, windows and times, and a small one that closes the moments.
// A warp owns kRun consecutive times of one window: it reads each row pair coalesced, once for the norms and once,
// from L1/L2, for the directions, which live in registers only. The warps of a block add up their direction sums in
// shared memory and write one partial row per kCudaChunk times, so that no atomics are needed and runs repeat exactly.
#include "check.h"
#include "derivatives.h"

namespace vsim {
namespace {

constexpr int kWarps = 8, kRun = kCudaChunk / kWarps;

template <int V>
struct alignas(4 * V) Vec {
  float v[V];
};

template <int V>
__device__ Vec<V> difference(const float* p, int64_t ahead) {
  const Vec<V> a = *reinterpret_cast<const Vec<V>*>(p), b = *reinterpret_cast<const Vec<V>*>(p + ahead);
  Vec<V> d;
#pragma unroll
  for (int k = 0; k < V; ++k) d.v[k] = b.v[k] - a.v[k];
  return d;
}

__device__ float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

// Block: one chunk of kCudaChunk times of one window of one video. V: floats per load; D must be a multiple of it.
template <int V>
__global__ void __launch_bounds__(32 * kWarps)
derivatives_kernel(DerivativesArgs a, int64_t chunks, float* __restrict__ partial) {
  __shared__ Vec<V> sums[kWarps][32];
  const int64_t chunk = blockIdx.x % chunks, bs = blockIdx.x / chunks, b = bs / a.S;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t n = a.counts[bs], ahead = a.windows[bs % a.S] * a.D;
  const int64_t t0 = chunk * kCudaChunk + warp * kRun;
  const int64_t left = n - t0;
  const int runs = left < 0 ? 0 : left < kRun ? static_cast<int>(left) : kRun;  // derivatives of this warp
  const float* rows = a.x + (b * a.T + t0) * a.D;                                // read only where runs > 0
  float *m = a.magnitudes + bs * a.T, *c = a.changes + bs * a.T;

  float inv[kRun + 1];  // of t0 - 1, then of the run: the change at t0 - 1 belongs to this warp
#pragma unroll
  for (int r = 0; r <= kRun; ++r) {
    float square = 0;
    if (r <= runs && runs > 0 && t0 + r > 0) {
      for (int64_t i = lane * V; i < a.D; i += 32 * V) {
        const Vec<V> d = difference<V>(rows + (r - 1) * a.D + i, ahead);
#pragma unroll
        for (int k = 0; k < V; ++k) square = fmaf(d.v[k], d.v[k], square);
      }
    }
    const float norm = sqrtf(warp_sum(square));
    inv[r] = 1.0f / (norm < kMinNorm ? kMinNorm : norm);
    if (r > 0 && lane == 0 && t0 + r - 1 < a.T) m[t0 + r - 1] = norm;  // zero past the run
  }

  float change[kRun] = {};
  for (int64_t tile = 0; tile < a.D; tile += 32 * V) {
    const int64_t i = tile + lane * V;
    Vec<V> sum = {}, last = {};
    if (i < a.D && runs > 0) {
      if (t0 > 0) {
        last = difference<V>(rows - a.D + i, ahead);
#pragma unroll
        for (int k = 0; k < V; ++k) last.v[k] *= inv[0];
      }
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if (r < runs) {
          const Vec<V> d = difference<V>(rows + r * a.D + i, ahead);
#pragma unroll
          for (int k = 0; k < V; ++k) {
            const float u = d.v[k] * inv[r + 1], e = u - last.v[k];
            change[r] = fmaf(e, e, change[r]);
            sum.v[k] += u;
            last.v[k] = u;
          }
        }
      }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && i < a.D) {
      Vec<V> block = sums[0][lane];
      for (int other = 1; other < kWarps; ++other)
#pragma unroll
        for (int k = 0; k < V; ++k) block.v[k] += sums[other][lane].v[k];
      *reinterpret_cast<Vec<V>*>(partial + blockIdx.x * a.D + i) = block;
    }
    __syncthreads();
  }

  // The change at t0 + r - 1 lies between its direction and the next, which is this warp's r-th.
#pragma unroll
  for (int r = 0; r < kRun; ++r) {
    const float square = warp_sum(r < runs ? change[r] : 0.0f);
    const int64_t t = t0 + r - 1;
    if (lane == 0 && t >= 0 && t < a.T) c[t] = sqrtf(square);
  }
  if (lane == 0 && t0 <= a.T - 1 && t0 + kRun >= a.T) c[a.T - 1] = 0;  // the last time has no next direction
}

__device__ double block_sum(double value, double* shared) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double all = 0;
  for (int warp = 0; warp < kWarps; ++warp) all += shared[warp];
  __syncthreads();
  return all;
}

// Block: one window of one video. mean = sum u / n, variance = (sum |u|^2 - |sum u|^2 / n) / ((n - 1) D).
__global__ void __launch_bounds__(32 * kWarps)
moments_kernel(DerivativesArgs a, int64_t chunks, const float* __restrict__ partial) {
  __shared__ double shared[kWarps];
  const int64_t bs = blockIdx.x, n = a.counts[bs];
  double units = 0, square = 0;
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
    const double norm = a.magnitudes[bs * a.T + t], eps = kMinNorm;
    units += norm < eps ? norm * norm / (eps * eps) : norm == norm ? 1.0 : norm;
  }
  for (int64_t d = threadIdx.x; d < a.D; d += blockDim.x) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[(bs * chunks + chunk) * a.D + d];
    a.mean[bs * a.D + d] = n > 0 ? static_cast<float>(sum / n) : 0.0f;
    square += sum * sum;
  }
  units = block_sum(units, shared);
  square = block_sum(square, shared);
  if (threadIdx.x == 0) {
    const double variance = n > 1 ? (units - square / n) / ((n - 1) * static_cast<double>(a.D)) : 0.0;
    a.variance[bs] = variance < 0 ? 0.0f : static_cast<float>(variance);
  }
}

}  // namespace

void derivatives_cuda(const DerivativesArgs& args, float* partial, void* stream) {
  if (args.B == 0 || args.S == 0) return;
  const int64_t chunks = (args.T + kCudaChunk - 1) / kCudaChunk, blocks = args.B * args.S * chunks;
  if (blocks > INT32_MAX) throw std::runtime_error("derivatives: more than 2^31 blocks; split the batch");
  const auto on = static_cast<cudaStream_t>(stream);
  const bool aligned = args.D % 4 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  const auto kernel = aligned ? derivatives_kernel<4> : derivatives_kernel<1>;
  if (chunks > 0) kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, on>>>(args, chunks, partial);
  VSIM_CHECK_CUDA(cudaGetLastError());
  moments_kernel<<<static_cast<unsigned>(args.B * args.S), 32 * kWarps, 0, on>>>(args, chunks, partial);
  VSIM_CHECK_CUDA(cudaGetLastError());
}

}  // namespace vsim

// Temporal derivatives at several windows; CPU and CUDA share this header.
//   d[t] = x[t + w] - x[t],  m[t] = |d[t]|,  u[t] = d[t] / max(m[t], 1e-12),  c[t] = |u[t + 1] - u[t]|
// No function here is inline: code compiled for one instruction set must not be merged with another's.
#pragma once
#include <cstddef>
#include <cstdint>

namespace vsim {

enum class Simd : int;

struct DerivativesArgs {
  const float* x;          // [B, T, D]
  const int64_t* windows;  // [S], each >= 1
  const int64_t* counts;   // [B, S] derivatives per video and window, 0 <= count <= max(0, T - window)
  int64_t B, T, D, S;
  float* magnitudes;  // [B, S, T], zero from counts on
  float* changes;     // [B, S, T], zero from counts - 1 on
  float* mean;        // [B, S, D] mean of u over t
  float* variance;    // [B, S] unbiased variance of u over t, mean over D; zero where counts < 2
};

constexpr float kMinNorm = 1e-12f;
constexpr int64_t kMaxLanes = 16;  // up to so many dimensions SIMD lanes run over time, above over dimensions

// Pointers to host memory; threads <= 0 takes all hardware threads.
void derivatives_cpu(const DerivativesArgs& args, Simd simd, int64_t threads);

// Pointers to memory of the current device, windows and counts too; enqueued on `stream` (a cudaStream_t).
// partial: scratch [B, S, ceil(T / kCudaChunk), D].
constexpr int64_t kCudaChunk = 64;
void derivatives_cuda(const DerivativesArgs& args, float* partial, void* stream);

// One video by one thread, compiled once per instruction set.
// scratch: derivatives_scratch(args) bytes, aligned as double.
size_t derivatives_scratch(const DerivativesArgs& args);
namespace portable { void derivatives_video(const DerivativesArgs& args, int64_t b, void* scratch); }
namespace avx2 { void derivatives_video(const DerivativesArgs& args, int64_t b, void* scratch); }
namespace avx512 { void derivatives_video(const DerivativesArgs& args, int64_t b, void* scratch); }

}  // namespace vsim

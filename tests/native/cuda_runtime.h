// A grid on one CPU thread, for checking kernels without a GPU: every CUDA thread is a fibre that runs until it meets a
// warp or block barrier; blocks run one behind the other. Include it in place of CUDA's header of this name.
// A warp whose lanes meet different shuffles, or a block barrier that a thread misses, aborts.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned n = 1) : x(n) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulation {

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  const char* waits = nullptr;  // what for; null while it runs
  bool block = false, done = false;
  uint64_t value = 0;
};
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline unsigned current = 0;
inline std::function<void()> body;
inline std::vector<uint64_t> exchanged;  // what each lane brought to the shuffle that just completed

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::abort();
}

inline void wait(const char* what, bool block, uint64_t value = 0) {
  Fibre& f = fibres[current];
  f.waits = what;
  f.block = block;
  f.value = value;
  swapcontext(&f.context, &scheduler);
}

inline void enter() {
  body();
  fibres[current].done = true;
  swapcontext(&fibres[current].context, &scheduler);
}

// Lets the group of fibres [from, from + size) pass once all of them wait for the same.
inline bool release(unsigned from, unsigned size, bool block) {
  bool any = false;
  for (unsigned t = from; t < from + size; ++t) {
    const Fibre& f = fibres[t];
    if (!f.done && (!f.waits || f.block != block)) return false;
    any = any || !f.done;
  }
  if (!any) return false;
  for (unsigned t = from; t < from + size; ++t) {
    if (fibres[t].done) fail("a thread has left that others wait for");
    if (!block && fibres[t].waits != fibres[from].waits) fail("lanes of a warp met different shuffles");
  }
  for (unsigned t = from; t < from + size; ++t) {
    exchanged[t] = fibres[t].value;
    fibres[t].waits = nullptr;
  }
  return true;
}

inline void run_block(unsigned threads) {
  fibres = std::vector<Fibre>(threads);
  exchanged.assign(threads, 0);
  for (unsigned t = 0; t < threads; ++t) {
    constexpr size_t bytes = 256 << 10;
    Fibre& f = fibres[t];
    f.stack.reset(new char[bytes]);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = bytes;
    makecontext(&f.context, enter, 0);
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibres[t].done || fibres[t].waits) continue;
      moved = true;
      current = t;
      swapcontext(&scheduler, &fibres[t].context);
    }
    for (unsigned warp = 0; warp < threads; warp += 32) moved = release(warp, 32, false) || moved;
    moved = release(0, threads, true) || moved;
  }
  for (const Fibre& f : fibres)
    if (!f.done) fail("deadlock");
}

struct Index {
  struct {
    operator unsigned() const { return current; }
  } x;
};

template <class T>
T shuffle(const char* what, T value, unsigned source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  wait(what, false, bits);
  std::memcpy(&value, &exchanged[current / 32 * 32 + source], sizeof(T));
  return value;
}

}  // namespace emulation

inline emulation::Index threadIdx;
inline dim3 blockIdx, blockDim;

inline void __syncthreads() { emulation::wait("__syncthreads", true); }
inline void __syncwarp() { emulation::wait("__syncwarp", false); }
template <class T>
T __shfl_sync(unsigned, T value, int source) { return emulation::shuffle("__shfl_sync", value, source & 31); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle("__shfl_xor_sync", value, (threadIdx.x % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
  const unsigned lane = threadIdx.x % 32;
  return emulation::shuffle("__shfl_up_sync", value, lane < by ? lane : lane - by);
}
inline unsigned __ballot_sync(unsigned, bool value) {
  emulation::wait("__ballot_sync", false, value);
  unsigned bits = 0;
  for (unsigned l = 0; l < 32; ++l) bits |= static_cast<unsigned>(emulation::exchanged[emulation::current / 32 * 32 + l]) << l;
  return bits;
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at += value;
  return old;
}

template <class... Wanted, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* launch, void (*kernel)(Wanted...), Given&&... args) {
  blockDim = launch->blockDim;
  emulation::body = [&] { kernel(args...); };
  // Backwards: where blocks share a queue, the last one does all work, with the largest offsets.
  for (blockIdx.x = launch->gridDim.x; blockIdx.x-- > 0;) emulation::run_block(launch->blockDim.x);
  return cudaSuccess;
}

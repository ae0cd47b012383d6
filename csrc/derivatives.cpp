#include "derivatives.h"

#include <vector>

#include "parallel.h"
#include "simd.h"

namespace vsim {

size_t derivatives_scratch(const DerivativesArgs& a) {
  const int64_t doubles = a.S * a.D + a.S;
  const int64_t floats = a.D > kMaxLanes ? a.S * a.D + a.S : (a.D + 2) * a.T + kMaxLanes;
  return doubles * sizeof(double) + floats * sizeof(float);
}

void derivatives_cpu(const DerivativesArgs& args, Simd simd, int64_t threads) {
  const auto kernel = [&] {
    switch (simd) {
#if defined(VSIM_X86)
      case Simd::avx512: return avx512::derivatives_video;
      case Simd::avx2: return avx2::derivatives_video;
#endif
      default: return portable::derivatives_video;
    }
  }();
  const int64_t dims = args.D > kMaxLanes ? args.D : kMaxLanes;  // narrow rows cost as much as a full vector
  threads = thread_count(threads, args.B, args.B * args.S * args.T * dims, int64_t{1} << 19);  // ~0.1 ms each
  const size_t doubles = (derivatives_scratch(args) + 7) / 8 + 8;  // plus a cache line between threads
  std::vector<double> scratch(threads * doubles);
  parallel_for(args.B, threads, [&](int64_t b, int64_t thread) { kernel(args, b, scratch.data() + thread * doubles); });
}

}  // namespace vsim

#include "best_cosines.h"

#include "parallel.h"
#include "simd.h"

namespace vsim {

size_t best_cosines_scratch(const BestCosinesArgs& a) {
  const int64_t tokens = (a.Kb + 63) / 64 * 64;  // enough for the panels of every instruction set
  return tokens * a.D * 2 + tokens * 4 + a.Ka * (a.D * 2 + 4 + 64) + 64;
}

void best_cosines_cpu(const BestCosinesArgs& args, Simd simd, int64_t threads) {
  if (args.N == 0 || args.M == 0) return;
  const auto kernel = [&] {
    switch (simd) {
#if defined(VSIM_X86)
      case Simd::avx512: return usable_vnni() ? avx512vnni::best_cosines_frames : avx2::best_cosines_frames;
      case Simd::avx2: return avx2::best_cosines_frames;
#endif
      default: return portable::best_cosines_frames;
    }
  }();
  const int64_t pairs = args.N * args.M;
  threads = thread_count(threads, pairs, pairs * args.Ka * args.Kb * args.D, int64_t{1} << 24);  // ~0.1 ms each
  // An item packs a frame of b once for all its frames of a: as few items as keep the threads evenly busy.
  const int64_t wanted = threads == 1 ? 1 : (4 * threads + args.M - 1) / args.M;
  const int64_t parts = wanted < args.N ? wanted : args.N;
  const Scratch scratch(best_cosines_scratch(args), threads);
  parallel_for(args.M * parts, threads, [&](int64_t item, int64_t thread) {
    const int64_t m = item / parts, part = item % parts;
    kernel(args, m, part * args.N / parts, (part + 1) * args.N / parts, scratch.of(thread));
  });
}

}  // namespace vsim

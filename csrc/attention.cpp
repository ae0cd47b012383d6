#include "attention.h"

#include <stdexcept>

#include "parallel.h"

namespace vsim {

void attention_cpu(const AttentionArgs& args, int64_t threads) {
#if defined(VSIM_X86)
  const int64_t heads = args.B * args.H;
  if (heads == 0 || args.Nq == 0) return;
  const int64_t products = heads * args.Nq * args.Nk * args.d;
  threads = thread_count(threads, heads * ((args.Nq + 95) / 96), products, int64_t{1} << 22);  // ~0.1 ms each
  // Each part of a head packs its keys and values again: one part, unless threads would have too little to share.
  const int64_t parts = heads % threads == 0 || heads >= 4 * threads ? 1 : (4 * threads + heads - 1) / heads;
  const int64_t rows = ((args.Nq + parts - 1) / parts + 23) / 24 * 24;  // whole blocks
  const Scratch scratch(avx512bf16::attention_scratch(args), threads);
  parallel_for(heads * parts, threads, [&](int64_t item, int64_t thread) {
    const int64_t first = item % parts * rows, end = first + rows < args.Nq ? first + rows : args.Nq;
    if (first < end) avx512bf16::attention_rows(args, item / parts, first, end, scratch.of(thread));
  });
#else
  throw std::runtime_error("attention on bfloat16 is compiled for x86-64 only");
#endif
}

}  // namespace vsim

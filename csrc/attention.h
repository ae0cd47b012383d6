// Softmax attention on bfloat16: out = softmax(scale * q k^T) v per head; sums in float32, weights rounded to bfloat16.
// No function here is inline: code compiled for one instruction set must not be merged with another's.
#pragma once
#include <cstddef>
#include <cstdint>

namespace vsim {

struct Heads {  // [B, H, N, d] bfloat16: bytes from one to the next; the d numbers of a token lie side by side
  char* data;
  int64_t batch, head, token;
};

struct AttentionArgs {
  Heads q, k, v, out;  // q, out: [B, H, Nq, d]; k, v: [B, H, Nk, d]
  int64_t B, H, Nq, Nk, d;
  float scale;  // positive
};

// Pointers to host memory; threads <= 0 takes all hardware threads. The same bits for any number of threads.
// Needs usable_bf16().
void attention_cpu(const AttentionArgs& args, int64_t threads);

// Queries first..end of head h (of B * H) by one thread. scratch: attention_scratch(args) bytes, aligned to 64.
namespace avx512bf16 {
size_t attention_scratch(const AttentionArgs& args);
void attention_rows(const AttentionArgs& args, int64_t h, int64_t first, int64_t end, void* scratch);
}  // namespace avx512bf16

}  // namespace vsim

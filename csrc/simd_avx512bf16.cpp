// The bfloat16 kernels, compiled with -mavx512bf16 besides the flags of simd_avx512.cpp.
// Internal linkage and no std:: templates below this line: the linker keeps one copy of an inline function,
// and it could be the one that this CPU cannot run.
#define VSIM_ISA avx512bf16
#define VSIM_LANES 16
#include "attention_kernel.h"

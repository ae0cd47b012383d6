// The int8 kernels, compiled with -mavx512vnni besides the flags of simd_avx512.cpp.
// Internal linkage and no std:: templates below this line: the linker keeps one copy of an inline function,
// and it could be the one that this CPU cannot run.
#define VSIM_ISA avx512vnni
#define VSIM_LANES 16
#include "best_cosines_kernel.h"
#include "top_k_kernel.h"

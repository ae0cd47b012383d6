// Every SIMD kernel, compiled with -mavx2 -mfma -mf16c.
// Internal linkage and no std:: templates below this line: the linker keeps one copy of an inline function,
// and it could be the one that this CPU cannot run.
#define VSIM_ISA avx2
#define VSIM_LANES 8
#include "best_cosines_kernel.h"
#include "derivatives_kernel.h"
#include "dtw_kernel.h"
#include "top_k_kernel.h"

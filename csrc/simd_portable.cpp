// Every SIMD kernel for the compiler's baseline: SSE2 on x86-64, NEON on AArch64.
// Internal linkage and no std:: templates below this line: the linker keeps one copy of an inline function,
// and it could be the one that this CPU cannot run.
#define VSIM_ISA portable
#define VSIM_LANES 4
#include "best_cosines_kernel.h"
#include "derivatives_kernel.h"
#include "dtw_kernel.h"
#include "top_k_kernel.h"

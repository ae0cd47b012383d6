// Every SIMD kernel for avx512 flags. Internal linkage and no std:: templates below this line:
// the linker keeps one copy of an inline function, and it could be the one this CPU cannot run.
#define VSIM_ISA avx512
#define VSIM_LANES 16
#include "derivatives_kernel.h"

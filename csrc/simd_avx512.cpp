// Every SIMD kernel but the int8 ones, compiled with -mavx512f and its common companions.
// Internal linkage and no std:: templates below this line: the linker keeps one copy of an inline function,
// and it could be the one that this CPU cannot run.
#define VSIM_ISA avx512
#define VSIM_LANES 16
#include "derivatives_kernel.h"
#include "dtw_kernel.h"

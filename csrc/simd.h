// Instruction sets the core is compiled for, and the choice among them at run time.
#pragma once
#include <string>
#include <vector>

namespace vsim {

enum class Simd : int { portable, avx2, avx512 };

const char* simd_name(Simd simd);

// The levels this build holds and this CPU runs, slowest first; never empty.
std::vector<Simd> usable_simd();

// "" picks the fastest. Throws std::invalid_argument for an unknown name, std::runtime_error if it cannot run here.
Simd choose_simd(const std::string& name);

// Whether this CPU, where it runs Simd::avx512, has the int8 dot products too: all but the first few do.
bool usable_vnni();

// Whether this CPU runs Simd::avx512 and multiplies bfloat16, too.
bool usable_bf16();

}  // namespace vsim

#include "simd.h"

#include <stdexcept>

namespace vsim {

const char* simd_name(Simd simd) {
  static const char* const names[] = {"portable", "avx2", "avx512"};
  return names[static_cast<int>(simd)];
}

std::vector<Simd> usable_simd() {
  std::vector<Simd> usable{Simd::portable};
#if defined(VSIM_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    usable.push_back(Simd::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
      usable.push_back(Simd::avx512);
  }
#endif
  return usable;
}

bool usable_vnni() {
#if defined(VSIM_X86)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool usable_bf16() {
#if defined(VSIM_X86)
  __builtin_cpu_init();
  return usable_simd().back() == Simd::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Simd choose_simd(const std::string& name) {
  const auto usable = usable_simd();
  if (name.empty()) return usable.back();
  std::string known;
  for (Simd simd : {Simd::portable, Simd::avx2, Simd::avx512}) {
    if (name == simd_name(simd)) {
      for (Simd have : usable)
        if (have == simd) return simd;
      throw std::runtime_error("simd '" + name + "' cannot run on this CPU; the fastest here is '" +
                               simd_name(usable.back()) + "'");
    }
    known += std::string(known.empty() ? "" : ", ") + simd_name(simd);
  }
  throw std::invalid_argument("simd must be one of " + known + ", got '" + name + "'");
}

}  // namespace vsim

// CUDA status -> std::runtime_error that names the call.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define VSIM_CHECK_CUDA(call) ::vsim::check_cuda((call), #call)

namespace vsim {

inline void check_cuda(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(status));
}

}  // namespace vsim

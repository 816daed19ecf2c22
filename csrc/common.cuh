// What every launcher needs.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace cast_kernels {

// Call after each launch: a refused launch (no driver, no code for this GPU, bad grid) becomes a readable error.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
  }
}

}  // namespace cast_kernels

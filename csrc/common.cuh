// What every launcher needs.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace cast_kernels {

inline void check(cudaError_t error, const char* op) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // the runtime keeps it for the next call that asks: this one is told here
    throw std::runtime_error(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(error));
  }
}

// Call after each launch: a refused launch (no driver, no code for this GPU, bad grid) becomes a readable error.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

}  // namespace cast_kernels

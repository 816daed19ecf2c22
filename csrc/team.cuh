// Teams of the GPU, see team.h.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cast_kernels {

// Blocks are one-dimensional, of whole warps.
struct DeviceWarp {
  __device__ int rank() const { return static_cast<int>(threadIdx.x % 32); }
  __device__ int size() const { return 32; }
  __device__ int index() const { return static_cast<int>(threadIdx.x / 32); }
  __device__ int count() const { return static_cast<int>(blockDim.x / 32); }
  __device__ void sync() const { __syncwarp(); }
  __device__ uint32_t ballot(bool bit) const { return __ballot_sync(0xffffffffu, bit); }
};

struct BlockTeam {
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void barrier() const { __syncthreads(); }
  __device__ DeviceWarp warp() const { return {}; }
};

}  // namespace cast_kernels

// Teams of the GPU, see team.h. Blocks are one-dimensional, of whole warps.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cast_kernels {

class DeviceWarp {
 public:
  __device__ DeviceWarp(int index, int count) : index_(index), count_(count) {}
  __device__ int rank() const { return static_cast<int>(threadIdx.x % 32); }
  __device__ int size() const { return 32; }
  __device__ int index() const { return index_; }
  __device__ int count() const { return count_; }
  __device__ void sync() const { __syncwarp(); }
  __device__ uint32_t ballot(bool bit) const { return __ballot_sync(kAll, bit); }
  __device__ uint32_t match(uint32_t word) const { return __match_any_sync(kAll, word); }
  __device__ uint32_t take(uint32_t word, int rank) const { return __shfl_sync(kAll, word, rank); }
  __device__ uint32_t sum(uint32_t value) const { return __reduce_add_sync(kAll, value); }
  __device__ uint64_t sum(uint64_t value) const {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
    return value;
  }

 private:
  static constexpr uint32_t kAll = 0xffffffffu;
  int index_, count_;
};

template <int kThreads>
struct BlockTeam {
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int size() { return kThreads; }
  __device__ void barrier() const { __syncthreads(); }
  __device__ DeviceWarp warp() const { return {static_cast<int>(threadIdx.x / 32), kThreads / 32}; }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The blocks of a cluster, one-dimensional, too. Its barrier orders global memory, as does that of a block.
template <int kBlocks, int kThreads>
struct ClusterTeam {
  __device__ int block() const { return static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
  __device__ int rank() const { return block() * kThreads + static_cast<int>(threadIdx.x); }
  __device__ static constexpr int size() { return kBlocks * kThreads; }
  __device__ void barrier() const { cooperative_groups::this_cluster().sync(); }
  __device__ DeviceWarp warp() const { return {rank() / 32, size() / 32}; }
};
#endif

// The blocks gridDim.x of a launch; its end is their barrier.
struct GridTeam {
  __device__ int rank() const { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
  __device__ int size() const { return static_cast<int>(gridDim.x * blockDim.x); }
  __device__ DeviceWarp warp() const { return {rank() / 32, size() / 32}; }
};

}  // namespace cast_kernels

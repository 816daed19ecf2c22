// Teams of the GPU, see team.h. Blocks are one-dimensional, of whole warps.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cast_kernels {

template <int kSize>
class DeviceWarp {
 public:
  __device__ DeviceWarp(int thread, int threads) : index_(thread / kSize), count_(threads / kSize) {}
  __device__ int rank() const { return static_cast<int>(threadIdx.x % kSize); }
  static constexpr int kThreads = kSize;
  __device__ static constexpr int size() { return kSize; }
  __device__ int index() const { return index_; }
  __device__ int count() const { return count_; }
  __device__ void sync() const { __syncwarp(mask()); }
  __device__ uint32_t ballot(bool bit) const { return __ballot_sync(whole(), bit); }
  __device__ uint32_t match(uint32_t word) const { return __match_any_sync(whole(), word); }
  __device__ uint32_t take(uint32_t word, int rank) const { return __shfl_sync(whole(), word, rank); }
  template <class Value>
  __device__ Value sum(Value value) const {
    for (int step = kSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(mask(), value, step);
    return value;
  }
  __device__ uint32_t sum_before(uint32_t value) const {
    uint32_t sum = value;
    for (int step = 1; step < kSize; step *= 2) {
      const uint32_t before = __shfl_up_sync(mask(), sum, step, kSize);
      if (rank() >= step) sum += before;
    }
    return sum - value;
  }

 private:
  static constexpr uint32_t kAll = 0xffffffffu;
  __device__ static uint32_t mask() {
    return kSize == 32 ? kAll : (kAll >> (32 - kSize)) << (threadIdx.x & (32 - kSize));
  }
  // Of these only whole warps have need.
  __device__ static constexpr uint32_t whole() {
    static_assert(kSize == 32);
    return kAll;
  }
  int index_, count_;
};

using WholeWarp = DeviceWarp<32>;
using Lanes = DeviceWarp<4>;

// threadIdx.x, read anew for every step: what a step derives from it (quotients by a width, say) would else be kept in
// registers for the next step that does the same, through all phases in between.
__device__ inline int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

template <int kThreads>
struct BlockTeam {
  __device__ int rank() const { return thread_index(); }
  __device__ static constexpr int size() { return kThreads; }
  __device__ void barrier() const { __syncthreads(); }
  __device__ WholeWarp warp() const { return {rank(), size()}; }
  __device__ Lanes lanes() const { return {rank(), size()}; }
  __device__ static constexpr int groups() { return 1; }
  __device__ static constexpr int group_index() { return 0; }
  __device__ BlockTeam group() const { return *this; }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The blocks of a cluster, one-dimensional, too, and each a group. Its barrier orders global memory, as does that of a
// block.
template <int kBlocks, int kThreads>
struct ClusterTeam {
  __device__ int rank() const { return group_index() * kThreads + thread_index(); }
  __device__ static constexpr int size() { return kBlocks * kThreads; }
  __device__ void barrier() const { cooperative_groups::this_cluster().sync(); }
  __device__ WholeWarp warp() const { return {rank(), size()}; }
  __device__ Lanes lanes() const { return {rank(), size()}; }
  __device__ static constexpr int groups() { return kBlocks; }
  __device__ int group_index() const { return static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
  __device__ BlockTeam<kThreads> group() const { return {}; }
};
#endif

// The blocks gridDim.x of a launch; its end is their barrier.
struct GridTeam {
  __device__ int rank() const { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
  __device__ int size() const { return static_cast<int>(gridDim.x * blockDim.x); }
  __device__ WholeWarp warp() const { return {rank(), size()}; }
  __device__ Lanes lanes() const { return {rank(), size()}; }
  __device__ static constexpr int groups() { return 1; }
  __device__ static constexpr int group_index() { return 0; }
  __device__ GridTeam group() const { return *this; }
};

}  // namespace cast_kernels

// A block per image.
#include "seeds_parallel.cuh"
#include "seeds_parallel_team.h"

namespace cast_kernels {
namespace {

constexpr int kBlockThreads = 1024;

__device__ const LabTables device_tables;

template <bool kNearBins>
__global__ void __launch_bounds__(kBlockThreads, 1)
    seeds_block_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                       SeedsOutput output, const __grid_constant__ ParallelLaunch launch, char* workspace) {
  extern __shared__ __align__(16) char shared[];
  BlockTeam<kBlockThreads> team;
  const int i = static_cast<int>(blockIdx.x);
  label_by_block<kNearBins>(team, plan, launch, device_tables, images.image(i), shared,
                            workspace + i * launch.slot_bytes, output.stride, output.image(plan, i));
}

}  // namespace

void launch_block(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                  const ParallelLaunch& launch, char* workspace, cudaStream_t stream) {
  const auto kernel = launch.near_bins ? seeds_block_kernel<true> : seeds_block_kernel<false>;
  // The device's limit, not this launch's need: another thread could lower that before the launch.
  const auto most = static_cast<int>(device_limits().block_memory);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "seeds");
  const auto blocks = static_cast<unsigned>(images.batch);
  kernel<<<blocks, kBlockThreads, launch.shared_bytes, stream>>>(plan, images, output, launch, workspace);
  check_launch("seeds");
}

}  // namespace cast_kernels

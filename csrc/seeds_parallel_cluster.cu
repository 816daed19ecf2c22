// A cluster of blocks per image.
#include "seeds_parallel.cuh"
#include "seeds_parallel_team.h"

namespace cast_kernels {
namespace {

constexpr int kClusterThreads = 640;

[[maybe_unused]] __device__ const LabTables device_tables;  // not where the kernel is empty

template <class Count>
__global__ void __launch_bounds__(kClusterThreads, 1)
    seeds_cluster_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                         SeedsOutput output, const __grid_constant__ ParallelLaunch launch, char* workspace) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char shared[];
  ClusterTeam<kClusterBlocks, kClusterThreads> team;
  const int i = static_cast<int>(blockIdx.x) / kClusterBlocks;
  label_by_cluster<Count>(team, plan, launch, device_tables, images.image(i), shared,
                          workspace + i * launch.slot_bytes, output.stride, output.image(plan, i));
#endif
}

}  // namespace

bool has_cluster_code() {
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, seeds_cluster_kernel<uint16_t>), "seeds");
  return code.ptxVersion >= 90;
}

void launch_cluster(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                    const ParallelLaunch& launch, char* workspace, cudaStream_t stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(images.batch * kClusterBlocks));
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto kernel = launch.wide_counts ? seeds_cluster_kernel<uint32_t> : seeds_cluster_kernel<uint16_t>;
  // The device's limit, not this launch's need: another thread could lower that before the launch.
  const auto most = static_cast<int>(device_limits().block_memory);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "seeds");
  check(cudaLaunchKernelEx(&config, kernel, plan, images, output, launch, workspace), "seeds");
}

}  // namespace cast_kernels

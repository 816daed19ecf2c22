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
                         SeedsOutput output, char* workspace, size_t slot_bytes) {
#if __CUDA_ARCH__ >= 900
  ClusterTeam<kClusterBlocks, kClusterThreads> team;
  const int i = static_cast<int>(blockIdx.x) / kClusterBlocks;
  ParallelState<uint16_t, uint16_t, Count> state;
  lay_out_all_far(plan, workspace + i * slot_bytes, &state);
  start_image(team, plan, state, device_tables, images.image(i));
  label_image(team, plan, state);
  write_labels(team, plan, state, output.stride, output.image(plan, i));
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
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto kernel = launch.wide_counts ? seeds_cluster_kernel<uint32_t> : seeds_cluster_kernel<uint16_t>;
  check(cudaLaunchKernelEx(&config, kernel, plan, images, output, workspace, launch.slot_bytes), "seeds");
}

}  // namespace cast_kernels

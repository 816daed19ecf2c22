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
                       SeedsOutput output, uint32_t near_used, char* workspace, size_t slot_bytes) {
  extern __shared__ __align__(16) char shared[];
  BlockTeam<kBlockThreads> team;
  BlockState state;
  uint8_t *far_bins, *bins;
  uint16_t *far_histogram, *histogram;
  uint32_t *far_queue, *queue;
  lay_out_block_far(plan, kNearBins, workspace + blockIdx.x * slot_bytes, &state, &far_bins, &far_histogram,
                    &far_queue);
  lay_out_block_near(plan, kNearBins, shared, &state, &bins, &histogram, &queue);
  state.queue = SiteQueue(queue, near_queue(kNearBins), far_queue);
  state.histogram = histogram;
  state.bins = kNearBins ? bins : far_bins;
  for (int i = static_cast<int>(blockIdx.x); i < images.batch; i += static_cast<int>(gridDim.x)) {
    const uint32_t used = start_image(team, plan, state, device_tables, images.image(i));
    if (used <= near_used) {
      label_image(team, plan, state);
    } else {
      const BlockManyBins many{state.joint,   state.cell_labels, state.dense,   state.used,     state.edges,
                               state.labels,  state.joint,       far_histogram, state.totals,   state.inverse,
                               state.factors, state.lengths,     state.partial, state.num_bins, state.queue};
      label_image(team, plan, many);
    }
    write_labels(team, plan, state, output.stride, output.image(plan, i));
    team.barrier();  // before the next image
  }
}

}  // namespace

void launch_block(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                  const ParallelLaunch& launch, char* workspace, cudaStream_t stream) {
  const auto kernel = launch.near_bins ? seeds_block_kernel<true> : seeds_block_kernel<false>;
  // The device's limit, not this launch's need: another thread could lower that before the launch.
  const auto most = static_cast<int>(device_limits().block_memory);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "seeds");
  kernel<<<launch.slots, kBlockThreads, launch.shared_bytes, stream>>>(plan, images, output, launch.near_used,
                                                                       workspace, launch.slot_bytes);
  check_launch("seeds");
}

}  // namespace cast_kernels

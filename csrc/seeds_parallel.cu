#include <algorithm>
#include <type_traits>

#include "common.cuh"
#include "lab.h"
#include "seeds_cuda.h"
#include "seeds_parallel_grid.h"
#include "seeds_parallel_team.h"
#include "team.cuh"

namespace cast_kernels {
namespace {

constexpr int kBlockThreads = 1024;
constexpr int kClusterThreads = 512;
constexpr int kGridThreads = 256;

__device__ const LabTables device_tables;

struct Output {
  int32_t* labels;
  int stride;

  __device__ int32_t* image(const ParallelPlan& plan, int64_t i) const {
    const int64_t columns = (plan.width + stride - 1) / stride;
    const int64_t rows = (plan.height + stride - 1) / stride;
    return labels + i * rows * columns;
  }
};

// 1. A block per image
template <bool kNearBins>
__global__ void __launch_bounds__(kBlockThreads, 1)
    seeds_block_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                       Output output, uint32_t near_used, char* workspace, size_t slot_bytes) {
  extern __shared__ __align__(16) char shared[];
  BlockTeam<kBlockThreads> team;
  BlockState state;
  uint8_t *far_bins, *bins;
  uint16_t *far_histogram, *histogram;
  uint32_t *far_queue, *queue;
  lay_out_block_far(plan, kNearBins, workspace + blockIdx.x * slot_bytes, &state, &far_bins, &far_histogram,
                    &far_queue);
  lay_out_block_near(plan, kNearBins, shared, &state, &bins, &histogram, &queue);
  state.queue = SiteQueue(queue, kNearQueue, far_queue);
  state.histogram = histogram;
  state.bins = kNearBins ? bins : far_bins;
  for (int i = static_cast<int>(blockIdx.x); i < images.batch; i += static_cast<int>(gridDim.x)) {
    const uint32_t used = start_image(team, plan, state, device_tables, images.image(i));
    if (used <= near_used) {
      label_image<uint32_t>(team, plan, state);
    } else {
      const BlockManyBins many{state.joint,   state.cell_labels, state.dense,   state.used,     state.edges,
                               state.labels,  state.joint,       far_histogram, state.totals,   state.inverse,
                               state.factors, state.lengths,     state.partial, state.num_bins, state.queue};
      label_image<uint32_t>(team, plan, many);
    }
    write_labels(team, plan, state, output.stride, output.image(plan, i));
    team.barrier();  // before the next image
  }
}

// 2. A cluster per image
template <class Count>
__global__ void __launch_bounds__(kClusterThreads, 1)
    seeds_cluster_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                         Output output, char* workspace, size_t slot_bytes) {
#if __CUDA_ARCH__ >= 900
  ClusterTeam<kClusterBlocks, kClusterThreads> team;
  const int slot = static_cast<int>(blockIdx.x) / kClusterBlocks;
  const int slots = static_cast<int>(gridDim.x) / kClusterBlocks;
  ParallelState<uint16_t, uint16_t, Count> state;
  lay_out_all_far(plan, workspace + slot * slot_bytes, &state);
  for (int i = slot; i < images.batch; i += slots) {
    start_image(team, plan, state, device_tables, images.image(i));
    label_image<uint64_t>(team, plan, state);
    write_labels(team, plan, state, output.stride, output.image(plan, i));
    team.barrier();  // before the next image
  }
#endif
}

// 3. A launch per step; blockIdx.y is the image
template <GridStep step, class Count>
__global__ void __launch_bounds__(kGridThreads, 2)
    seeds_step_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                      Output output, GridArguments arguments, char* workspace, size_t slot_bytes) {
  ParallelState<uint16_t, uint16_t, Count> state;
  lay_out_all_far(plan, workspace + blockIdx.y * slot_bytes, &state);
  if constexpr (step == GridStep::number_bins) {
    BlockTeam<kGridThreads> team;
    const uint32_t used = number_bins(team, state.used, plan.bins, state.partial);
    if (team.rank() == 0) *state.num_bins = used;
  } else {
    run_grid_step<step>(GridTeam{}, plan, state, device_tables, images.image(blockIdx.y),
                        output.image(plan, blockIdx.y), arguments);
  }
}

constexpr bool uses_histogram(GridStep step) {
  return step == GridStep::index_bins || step == GridStep::start_labels || step == GridStep::decide_cells ||
         step == GridStep::move_cells || step == GridStep::decide_pixels || step == GridStep::move_pixels;
}

// How many threads a step can use for one image.
size_t grid_items(const ParallelPlan& plan, GridStep step, const GridArguments& arguments) {
  const auto pixels = static_cast<size_t>(plan.pixels());
  const size_t cells = static_cast<size_t>(plan.cells(arguments.grid));
  const size_t lanes = plan.max_size[arguments.grid] <= kThreadPixels ? 1 : 32;
  switch (step) {
    case GridStep::number_bins:
      return 1;
    case GridStep::clear_dense:
      return cells * plan.max_bins;
    case GridStep::start_labels:
    case GridStep::spread_labels:
      return cells * lanes;
    case GridStep::refine:
      return cells;
    case GridStep::find_cells:
      return cells / 4 + 1;
    case GridStep::decide_cells:
    case GridStep::move_cells:
      return (cells / 4 + 1) * lanes;
    case GridStep::find_pixels:
      return pixels / 4;
    case GridStep::decide_pixels:
    case GridStep::move_pixels:
      return pixels / 16;  // the queue is seldom longer
    default:
      return pixels;
  }
}

template <class Count>
void launch_grid(const SeedsBatch& images, const Output& output, const ParallelPlan& plan, const ParallelLaunch& launch,
                 int multiprocessors, int64_t label_pixels, char* workspace, cudaStream_t stream) {
  for (int64_t first = 0; first < images.batch; first += launch.slots) {
    SeedsBatch some = images;
    some.pixels = images.pixels + first * images.image_stride;
    some.batch = std::min<int64_t>(images.batch - first, launch.slots);
    const Output labels{output.labels + first * label_pixels, output.stride};
    const size_t most = std::max<size_t>(static_cast<size_t>(16 * multiprocessors) / some.batch, 1);
    launch_grid_steps(plan, output.stride, [&](auto tag, const GridArguments& arguments) {
      const size_t wanted = (grid_items(plan, tag.value, arguments) + kGridThreads - 1) / kGridThreads;
      const dim3 blocks(static_cast<unsigned>(std::clamp<size_t>(wanted, 1, most)), static_cast<unsigned>(some.batch));
      // The histogram lies last: other steps need not know the type of its counts.
      using StepCount = std::conditional_t<uses_histogram(tag.value), Count, uint16_t>;
      seeds_step_kernel<tag.value, StepCount>
          <<<blocks, kGridThreads, 0, stream>>>(plan, some, labels, arguments, workspace, launch.slot_bytes);
    });
  }
}

template <class Count>
void launch_cluster(const SeedsBatch& images, const Output& output, const ParallelPlan& plan,
                    const ParallelLaunch& launch, char* workspace, cudaStream_t stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(launch.slots * kClusterBlocks));
  config.blockDim = dim3(kClusterThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, seeds_cluster_kernel<Count>, plan, images, output, workspace, launch.slot_bytes),
        "seeds");
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "seeds");
  return value;
}

}  // namespace

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "seeds");
  cudaFuncAttributes code{};  // the cluster kernel is empty in code for older devices
  check(cudaFuncGetAttributes(&code, seeds_cluster_kernel<uint16_t>), "seeds");
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          attribute(cudaDevAttrClusterLaunch, device) != 0 && code.ptxVersion >= 90};
}

size_t seeds_parallel_cuda_bytes(const ParallelLaunch& launch) { return launch.slots * launch.slot_bytes; }

void seeds_parallel_cuda(const SeedsBatch& images, int32_t* labels, const ParallelPlan& plan,
                         const ParallelLaunch& launch, int64_t stride, char* workspace, uintptr_t stream_handle) {
  if (images.batch == 0) return;  // an empty grid is a launch error
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  const Output output{labels, static_cast<int>(stride)};
  switch (launch.driver) {
    case SeedsDriver::block: {
      const auto kernel = launch.near_bins ? seeds_block_kernel<true> : seeds_block_kernel<false>;
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(launch.shared_bytes)),
            "seeds");
      kernel<<<launch.slots, kBlockThreads, launch.shared_bytes, stream>>>(plan, images, output, launch.near_used,
                                                                           workspace, launch.slot_bytes);
      break;
    }
    case SeedsDriver::cluster:
      launch.wide_counts ? launch_cluster<uint32_t>(images, output, plan, launch, workspace, stream)
                         : launch_cluster<uint16_t>(images, output, plan, launch, workspace, stream);
      break;
    default: {
      const int64_t label_pixels = ((images.height + stride - 1) / stride) * ((images.width + stride - 1) / stride);
      const int multiprocessors = device_limits().multiprocessors;
      launch.wide_counts
          ? launch_grid<uint32_t>(images, output, plan, launch, multiprocessors, label_pixels, workspace, stream)
          : launch_grid<uint16_t>(images, output, plan, launch, multiprocessors, label_pixels, workspace, stream);
    }
  }
  check_launch("seeds");
}

}  // namespace cast_kernels

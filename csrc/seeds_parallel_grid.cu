// A launch for each step of all images.
#include <algorithm>
#include <type_traits>

#include "seeds_parallel.cuh"
#include "seeds_parallel_grid.h"

namespace cast_kernels {
namespace {

constexpr int kGridThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;

__device__ const LabTables device_tables;

// blockIdx.y is the image.
template <GridStep step, class Count>
__global__ void __launch_bounds__(kGridThreads, 2)
    seeds_step_kernel(const __grid_constant__ ParallelPlan plan, const __grid_constant__ SeedsBatch images,
                      SeedsOutput output, GridArguments arguments, const __grid_constant__ ParallelLaunch launch,
                      char* workspace) {
  ParallelState<uint16_t, uint16_t, Count> state;
  Replay far(workspace + blockIdx.y * launch.slot_bytes, launch.far);
  lay_out_grid(plan, launch.list_words, far, &state);
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
         step == GridStep::move_cells || step == GridStep::decide_pixels || step == GridStep::decide_corners ||
         step == GridStep::move_pixels;
}

// How many threads a step can use for one image.
size_t grid_items(const ParallelPlan& plan, GridStep step, const GridArguments& arguments) {
  const auto pixels = static_cast<size_t>(plan.pixels());
  const size_t cells = static_cast<size_t>(plan.cells(arguments.grid));
  const size_t lanes = plan.max_size[arguments.grid] <= kThreadCell ? 1 : Lanes::kThreads;
  switch (step) {
    case GridStep::number_bins:
      return 1;
    case GridStep::clear_dense:
      return cells * plan.max_bins;
    case GridStep::list_bins:
      return cells * WholeWarp::kThreads;
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
    case GridStep::mark_border:
      return pixels / kWindow;
    case GridStep::find_pixels:
      return pixels / kWindow / 2;
    case GridStep::decide_pixels:
      return pixels / 16;  // the lists are seldom longer
    case GridStep::decide_corners:
    case GridStep::move_pixels:
      return pixels / 64;
    default:
      return pixels;
  }
}

template <class Count>
void launch_steps(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                  const ParallelLaunch& launch, int multiprocessors, char* workspace, cudaStream_t stream) {
  const auto most =
      static_cast<size_t>(std::max<int64_t>(kBlocksPerMultiprocessor * multiprocessors / images.batch, 1));
  launch_grid_steps(plan, output.stride, [&](auto tag, const GridArguments& arguments) {
    const size_t wanted = (grid_items(plan, tag.value, arguments) + kGridThreads - 1) / kGridThreads;
    const dim3 blocks(static_cast<unsigned>(std::clamp<size_t>(wanted, 1, most)), static_cast<unsigned>(images.batch));
    // The histogram lies last: other steps need not know the type of its counts.
    using StepCount = std::conditional_t<uses_histogram(tag.value), Count, uint16_t>;
    seeds_step_kernel<tag.value, StepCount>
        <<<blocks, kGridThreads, 0, stream>>>(plan, images, output, arguments, launch, workspace);
    check_launch("seeds");
  });
}

}  // namespace

void launch_grid(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                 const ParallelLaunch& launch, char* workspace, cudaStream_t stream) {
  const int multiprocessors = device_limits().multiprocessors;
  const auto steps = launch.wide_counts ? launch_steps<uint32_t> : launch_steps<uint16_t>;
  steps(images, output, plan, launch, multiprocessors, workspace, stream);
}

}  // namespace cast_kernels

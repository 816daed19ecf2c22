#include "seeds_launch.h"

#include <algorithm>
#include <stdexcept>

namespace cast_kernels {
namespace {

constexpr size_t kWorkspace = size_t{2} << 30;        // bytes, unless a single image needs more
constexpr int64_t kMostSlots = 65535;                 // blockIdx.y of a launch
constexpr size_t kNearLists = 14 << 10;               // bytes of shared memory that the lists have at least
constexpr size_t kFewNearLists = 6 << 10;             // where it is short
constexpr size_t kClusterLists = 24 << 10;            // here it is not, but the first level cache needs it more
constexpr uint32_t kEnoughBins = 160;                 // nine photos of ten use fewer
constexpr int64_t kClusterPixels = int64_t{1} << 20;  // beyond, one image is worth more than a cluster

// What the lists would take if all sites of a phase were in them: more than there ever are.
size_t list_bytes(const ParallelLaunch& launch) { return 2 * sizeof(uint32_t) * launch.list_words; }

// Sets what a block needs; false where it cannot hold the image.
bool fit_block(const ParallelPlan& plan, const SeedsSchedule& schedule, const DeviceLimits& limits,
               ParallelLaunch* launch) {
  if (plan.num_labels > 255 || schedule.most_pixels > 65535) return false;
  launch->list_words = static_cast<uint32_t>(num_sites(plan, 1));
  BlockState state{};
  uint16_t* histogram;
  for (const bool near_bins : {true, false}) {
    Arena near(nullptr, &launch->near);
    lay_out_block_near(plan, near_bins, near, &state);
    const size_t lists = std::min(list_bytes(*launch), near_bins ? kNearLists : kFewNearLists);
    if (near.used() + lists + block_histogram_bytes(plan, 1) > limits.block_memory) continue;
    const size_t room = limits.block_memory - near.used() - lists;
    uint32_t most = std::min<uint32_t>(plan.max_bins, 256);
    while (block_histogram_bytes(plan, most) > room) --most;
    if (near_bins && most < std::min(kEnoughBins, plan.max_bins)) continue;
    launch->near_bins = near_bins;
    launch->near_used = most;
    launch->shared_bytes =
        std::min(limits.block_memory, near.used() + block_histogram_bytes(plan, most) + list_bytes(*launch));
    Arena far(nullptr, &launch->far);
    lay_out_block_far(plan, near_bins, launch->list_words, far, &state, &histogram);
    launch->slot_bytes = far.used();
    return true;
  }
  return false;
}

template <class Count>
bool fit_cluster(const ParallelPlan& plan, const DeviceLimits& limits, ParallelLaunch* launch) {
  launch->list_words = static_cast<uint32_t>(num_sites(plan, kClusterBlocks));
  ParallelState<uint16_t, uint16_t, Count> state{};
  Arena near(nullptr, &launch->near);
  lay_out_cluster_near(plan, near, &state);
  launch->shared_bytes = near.used() + std::min(list_bytes(*launch), kClusterLists);
  Arena far(nullptr, &launch->far);
  lay_out_cluster_far(plan, launch->list_words, 0, far, &state);
  launch->slot_bytes = far.used();
  // One such block fits a multiprocessor; parts of a GPU may have fewer.
  return limits.clusters && limits.multiprocessors >= kClusterBlocks && launch->shared_bytes <= limits.block_memory;
}

template <class Count>
void fit_grid(const ParallelPlan& plan, ParallelLaunch* launch) {
  launch->list_words = static_cast<uint32_t>(num_sites(plan, 1));
  launch->shared_bytes = 0;
  ParallelState<uint16_t, uint16_t, Count> state{};
  Arena far(nullptr, &launch->far);
  lay_out_grid(plan, launch->list_words, far, &state);
  launch->slot_bytes = far.used();
}

}  // namespace

ParallelLaunch parallel_launch(const ParallelPlan& plan, const SeedsSchedule& schedule, int64_t batch,
                               SeedsDriver driver, const DeviceLimits& limits) {
  ParallelLaunch block{}, cluster{}, grid{};
  const bool fits_block = fit_block(plan, schedule, limits, &block);
  const bool wide = schedule.most_pixels > 65535;
  cluster.wide_counts = grid.wide_counts = wide;
  const auto fit = wide ? fit_cluster<uint32_t> : fit_cluster<uint16_t>;
  const int clusters = fit(plan, limits, &cluster) ? limits.multiprocessors / kClusterBlocks : 0;
  wide ? fit_grid<uint32_t>(plan, &grid) : fit_grid<uint16_t>(plan, &grid);
  if (driver == SeedsDriver::automatic) {
    // A few images are done sooner by several multiprocessors each.
    if (fits_block && (clusters == 0 || batch > 2 * clusters)) {
      driver = SeedsDriver::block;
    } else if (clusters > 0 && (plan.pixels() <= kClusterPixels || batch >= clusters)) {
      driver = SeedsDriver::cluster;
    } else {
      driver = SeedsDriver::grid;
    }
  }
  if (driver == SeedsDriver::block && !fits_block) {
    throw std::invalid_argument("a block of this device cannot hold images of this size");
  }
  if (driver == SeedsDriver::cluster && clusters == 0) {
    throw std::invalid_argument(limits.clusters ? "a cluster of this device cannot hold so many superpixels"
                                                : "this device has no clusters");
  }
  ParallelLaunch launch = driver == SeedsDriver::block ? block : driver == SeedsDriver::cluster ? cluster : grid;
  launch.driver = driver;
  const auto room = static_cast<int64_t>(std::max<size_t>(kWorkspace / launch.slot_bytes, 1));
  launch.slots = static_cast<int>(std::clamp<int64_t>(batch, 1, std::min(room, kMostSlots)));
  return launch;
}

}  // namespace cast_kernels

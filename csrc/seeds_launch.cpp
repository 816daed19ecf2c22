#include "seeds_launch.h"

#include <algorithm>
#include <stdexcept>

namespace cast_kernels {
namespace {

constexpr size_t kWorkspace = size_t{2} << 30;        // bytes, unless a single image needs more
constexpr int64_t kMostSlots = 65535;                 // blockIdx.y of a launch
constexpr uint32_t kEnoughBins = 160;                 // nine photos of ten use fewer
constexpr int64_t kClusterPixels = int64_t{1} << 20;  // beyond, one image is worth more than a cluster

// Sets what a block needs; false where it cannot hold the image.
bool fit_block(const ParallelPlan& plan, const SeedsSchedule& schedule, const DeviceLimits& limits,
               ParallelLaunch* launch) {
  if (plan.num_labels > 255 || schedule.most_pixels > 65535) return false;
  BlockState state{};
  uint8_t* bins;
  uint16_t* histogram;
  uint32_t* queue;
  for (const bool near_bins : {true, false}) {
    const size_t fixed = lay_out_block_near(plan, near_bins, nullptr, &state, &bins, &histogram, &queue);
    const size_t row = sizeof(uint16_t) * static_cast<size_t>(plan.num_labels);  // of one bin
    if (fixed + row + 4 > limits.block_memory) continue;
    const auto most = static_cast<uint32_t>(std::min<size_t>((limits.block_memory - fixed - 4) / row, 256));
    if (near_bins && most < std::min(kEnoughBins, plan.max_bins)) continue;
    launch->near_bins = near_bins;
    launch->near_used = std::min(most, plan.max_bins);
    launch->shared_bytes = fixed + 4 + row * launch->near_used;
    launch->slot_bytes = lay_out_block_far(plan, near_bins, nullptr, &state, &bins, &histogram, &queue);
    return true;
  }
  return false;
}

template <class Count>
size_t far_bytes(const ParallelPlan& plan) {
  ParallelState<uint16_t, uint16_t, Count> state{};
  return lay_out_all_far(plan, nullptr, &state);
}

}  // namespace

ParallelLaunch parallel_launch(const ParallelPlan& plan, const SeedsSchedule& schedule, int64_t batch,
                               SeedsDriver driver, const DeviceLimits& limits) {
  ParallelLaunch launch{};
  launch.wide_counts = schedule.most_pixels > 65535;
  const bool fits_block = fit_block(plan, schedule, limits, &launch);
  const int clusters = limits.clusters ? std::max(limits.multiprocessors / kClusterBlocks, 1) : 0;
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
  launch.driver = driver;
  if (driver == SeedsDriver::cluster && clusters == 0) throw std::invalid_argument("this device has no clusters");
  if (driver == SeedsDriver::block) {
    if (!fits_block) throw std::invalid_argument("a block of this device cannot hold images of this size");
    launch.slots = static_cast<int>(std::clamp<int64_t>(batch, 1, limits.multiprocessors));
    return launch;
  }
  launch.shared_bytes = 0;
  launch.slot_bytes = launch.wide_counts ? far_bytes<uint32_t>(plan) : far_bytes<uint16_t>(plan);
  const auto room = static_cast<int64_t>(std::max<size_t>(kWorkspace / launch.slot_bytes, 1));
  launch.slots = static_cast<int>(std::clamp<int64_t>(batch, 1, std::min(room, kMostSlots)));
  return launch;
}

}  // namespace cast_kernels

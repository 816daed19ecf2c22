// How parallel SEEDS runs on a GPU: which driver, how many images at a time, how much memory. Arithmetic on sizes and
// limits of the device alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "seeds_parallel_state.h"
#include "seeds_plans.h"

namespace cast_kernels {

enum class SeedsDriver : int32_t {
  automatic,
  block,    // a block per image, labels and histogram in its shared memory
  cluster,  // a cluster of blocks per image, everything in global memory
  grid,     // a launch per step, everything in global memory
};

struct DeviceLimits {
  int multiprocessors;
  size_t block_memory;  // shared memory that a block may ask for
  bool clusters;
};

struct ParallelLaunch {
  SeedsDriver driver;
  int slots;  // images at a time, each with a piece of the workspace
  size_t slot_bytes;
  size_t shared_bytes;
  bool near_bins;      // block: bins in shared memory, too
  uint32_t near_used;  // block: up to so many used bins the histogram is there
  bool wide_counts;    // 32 bits
};

constexpr int kClusterBlocks = 8;  // what every device with clusters offers

// How much of the queue a block has in shared memory. The first sweeps over pixels queue up to 5,200 of a photo of
// 224 x 224; where shared memory is short, the histogram needs it more.
CAST_HOST_DEVICE constexpr uint32_t near_queue(bool near_bins) { return near_bins ? 5632 : 2048; }

// Throws std::invalid_argument where the driver asked for cannot run that.
ParallelLaunch parallel_launch(const ParallelPlan& plan, const SeedsSchedule& schedule, int64_t batch,
                               SeedsDriver driver, const DeviceLimits& limits);

inline size_t workspace_bytes(const ParallelLaunch& launch) { return launch.slots * launch.slot_bytes; }

// The state of a block: what lies in its shared memory, then what lies in its piece of the workspace.
using BlockState = ParallelState<uint8_t, uint8_t, uint16_t>;
using BlockManyBins = ParallelState<uint8_t, uint16_t, uint16_t>;  // with bins and histogram in the workspace

template <class State>
CAST_HOST_DEVICE inline size_t lay_out_block_far(const ParallelPlan& plan, bool near_bins, char* far, State* state,
                                                 uint8_t** bins, uint16_t** histogram, uint32_t** queue) {
  Arena arena(far);
  *queue = lay_out_far(plan, arena, state);
  *bins = arena.take<uint8_t>(near_bins ? 0 : plan.pixels());
  *histogram = arena.take<uint16_t>(static_cast<size_t>(plan.num_labels) * plan.max_bins + 1);
  return arena.used();
}

// Returns the bytes of shared memory without the histogram, which comes last.
template <class State>
CAST_HOST_DEVICE inline size_t lay_out_block_near(const ParallelPlan& plan, bool near_bins, char* near, State* state,
                                                  uint8_t** bins, uint16_t** histogram, uint32_t** queue) {
  Arena arena(near);
  lay_out_small(plan, arena, state);
  *queue = arena.take<uint32_t>(near_queue(near_bins));
  state->labels = arena.take<uint8_t>(num_framed_labels<uint8_t>(plan));
  *bins = arena.take<uint8_t>(near_bins ? plan.pixels() : 0);
  *histogram = arena.take<uint16_t>(0);
  return arena.used();
}

}  // namespace cast_kernels

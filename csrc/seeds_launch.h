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
  cluster,  // a cluster of blocks per image; what blocks share in global memory
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
  bool near_bins;       // block: bins in shared memory, too
  uint32_t near_used;   // block: up to so many used bins the histogram is there
  bool wide_counts;     // 32 bits
  uint32_t list_words;  // of each list of a group
  Layout near, far;     // of a block's shared memory, and of a piece of the workspace
};

constexpr int kClusterBlocks = 8;  // what every whole device with clusters offers

// Throws std::invalid_argument where the driver asked for cannot run that.
ParallelLaunch parallel_launch(const ParallelPlan& plan, const SeedsSchedule& schedule, int64_t batch,
                               SeedsDriver driver, const DeviceLimits& limits);

inline size_t workspace_bytes(const ParallelLaunch& launch) { return launch.slots * launch.slot_bytes; }

// The state of a block.
using BlockState = ParallelState<uint8_t, uint8_t, uint16_t>;
using BlockManyBins = ParallelState<uint8_t, uint16_t, uint16_t>;  // with bins and histogram in the workspace

// What lies in its piece of the workspace.
template <class Memory>
CAST_HOST_DEVICE inline void lay_out_block_far(const ParallelPlan& plan, bool near_bins, uint32_t list_words,
                                               Memory& memory, BlockState* state, uint16_t** histogram) {
  lay_out_far(plan, memory, state);
  lay_out_lists(memory, list_words, 0, 1, state);
  if (!near_bins) state->bins = memory.template take<uint8_t>(num_places<uint8_t>(plan));
  *histogram = memory.template take<uint16_t>(static_cast<size_t>(plan.num_labels) * plan.max_bins + 1);
}

// What lies in its shared memory. Last come the histogram, of the bins that the image uses, and the lists.
template <class Memory>
CAST_HOST_DEVICE inline void lay_out_block_near(const ParallelPlan& plan, bool near_bins, Memory& memory,
                                                BlockState* state) {
  lay_out_group(plan, memory, state);
  lay_out_small(plan, memory, state);
  state->border = memory.template take<uint32_t>(num_border_words<uint8_t>(plan));
  state->labels = memory.template take<uint8_t>(num_framed_labels<uint8_t>(plan));
  if (near_bins) state->bins = memory.template take<uint8_t>(num_places<uint8_t>(plan));
  state->histogram = memory.template take<uint16_t>(0);
}

CAST_HOST_DEVICE inline size_t block_histogram_bytes(const ParallelPlan& plan, uint32_t num_bins) {
  return (sizeof(uint16_t) * plan.num_labels * num_bins + 15) / 16 * 16;
}

// What each block of a cluster has of its own in shared memory, and what the blocks share.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_cluster_near(const ParallelPlan& plan, Memory& memory, State* state) {
  lay_out_group(plan, memory, state);
  state->near_lists = memory.template take<uint32_t>(0);
}

template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_cluster_far(const ParallelPlan& plan, uint32_t list_words, int block,
                                                 Memory& memory, State* state) {
  lay_out_all_far(plan, memory, state);
  lay_out_lists(memory, list_words, block, kClusterBlocks, state);
}

template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_grid(const ParallelPlan& plan, uint32_t list_words, Memory& memory,
                                          State* state) {
  lay_out_group(plan, memory, state);
  lay_out_all_far(plan, memory, state);
  lay_out_lists(memory, list_words, 0, 1, state);
  state->near_words = 0;
}

}  // namespace cast_kernels

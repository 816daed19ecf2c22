// What a team of threads needs for the sequential order of one image: sizes, and where its arrays lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "seeds_colours.h"
#include "team.h"

namespace cast_kernels {

constexpr int kMaxDepth = 30;  // levels; more never fit

// The same for all images of a batch.
struct SequentialPlan {
  int width, height, num_labels;
  int depth;  // levels of the grid: blocks first, the superpixels themselves last
  int columns[kMaxDepth], rows[kMaxDepth];
  int bins;
  uint32_t max_bins;  // that an image can use
  int prior, iterations;
  bool double_step, lab;
  float power[256];  // PowerTable
};

// One level below the superpixels.
struct SequentialLevel {
  int columns, rows;
  int32_t* x_edges;  // [columns + 1] first pixel of every column of cells, and the end
  int32_t* y_edges;  // [rows + 1]
  int32_t* labels;   // [rows, columns]
};

// One orientation of the image, see PixelPlane.
struct SequentialPlane {
  uint16_t* labels;  // [rows, columns]; one more row where the plane is transposed
  uint16_t* bins;    // [rows, columns]
  int rows, columns;
};

struct SequentialState {
  SequentialPlane image, transposed;
  UsedBins used;
  uint8_t* bin_lanes;     // [max_bins] place of each used bin in OpenCV's sum, see confidence
  uint32_t* cell_count;   // [max_bins] of the cell at hand, otherwise zero
  uint32_t* histogram;    // [max_bins, num_labels]
  uint32_t* totals;       // [num_labels]
  uint32_t* parts;        // [num_labels] blocks of the current level
  uint32_t* line_start;   // [lines] of the list of pairs
  uint32_t* pairs;        // [pixels] positions of the first of two neighbours with different labels
  int32_t* level_arrays;  // of every SequentialLevel, one after the other
};

// Shared by the team, in the fastest memory there is.
struct SequentialScratch {
  uint32_t partial[kSummers];
  uint32_t labels[32];  // of the pairs that the warp has at hand
  uint32_t positions[32];
  float from[32], to[32];  // products of a chunk of bins, see confidence
  float sum_from[4], sum_to[4];
  float power[256];
};

CAST_HOST_DEVICE inline int level_words(const SequentialPlan& plan, int level) {
  return plan.columns[level] + plan.rows[level] + 2 + plan.columns[level] * plan.rows[level];
}

CAST_HOST_DEVICE inline SequentialLevel sequential_level(const SequentialPlan& plan, const SequentialState& state,
                                                         int level) {
  int32_t* at = state.level_arrays;
  for (int i = 0; i < level; ++i) at += level_words(plan, i);
  const int columns = plan.columns[level];
  const int rows = plan.rows[level];
  return {columns, rows, at, at + columns + 1, at + columns + rows + 2};
}

// Lays the arrays out from `base`; returns the bytes they take.
CAST_HOST_DEVICE inline size_t lay_out(const SequentialPlan& plan, char* base, SequentialState* state) {
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    char* const at = base + used;
    used += (bytes + 15) / 16 * 16;
    return at;
  };
  const size_t pixels = static_cast<size_t>(plan.width) * plan.height;
  const size_t words = static_cast<size_t>(used_bins_words(plan.bins));
  const size_t labels = static_cast<size_t>(plan.num_labels);
  size_t levels = 0;
  for (int i = 0; i + 1 < plan.depth; ++i) levels += level_words(plan, i);

  state->image = {reinterpret_cast<uint16_t*>(take(2 * pixels)), reinterpret_cast<uint16_t*>(take(2 * pixels)),
                  plan.height, plan.width};
  state->transposed = {reinterpret_cast<uint16_t*>(take(2 * (pixels + plan.height))),
                       reinterpret_cast<uint16_t*>(take(2 * pixels)), plan.width, plan.height};
  state->used = {reinterpret_cast<uint32_t*>(take(4 * words)), reinterpret_cast<uint32_t*>(take(4 * words))};
  state->bin_lanes = reinterpret_cast<uint8_t*>(take(plan.max_bins));
  state->cell_count = reinterpret_cast<uint32_t*>(take(4 * plan.max_bins));
  state->histogram = reinterpret_cast<uint32_t*>(take(4 * plan.max_bins * labels));
  state->totals = reinterpret_cast<uint32_t*>(take(4 * labels));
  state->parts = reinterpret_cast<uint32_t*>(take(4 * labels));
  state->line_start = reinterpret_cast<uint32_t*>(take(4 * static_cast<size_t>(plan.width + plan.height)));
  state->pairs = reinterpret_cast<uint32_t*>(take(4 * pixels));
  state->level_arrays = reinterpret_cast<int32_t*>(take(4 * levels));
  return used;
}

}  // namespace cast_kernels

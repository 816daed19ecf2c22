// The parallel order of SEEDS in steps: within a step the threads of a team work side by side, between steps lies a
// barrier. What is decided, and what a move changes, stands in seeds_phases.h. Here: from the image to bins, and from
// cells to pixels.
#pragma once

#include "seeds_parallel_cells.h"
#include "seeds_parallel_pixels.h"

namespace cast_kernels {

// First pixel of a cell along one axis: that of block i is the least whose proportional block is i, and halves begin
// half way between the edges of the coarser cells.
CAST_HOST_DEVICE inline int32_t cell_edge(int cell, int blocks, int size, int grid) {
  const auto block_edge = [&](int block) { return block == blocks ? size : (block * size + blocks - 1) / blocks; };
  const int block = cell >> grid;
  int32_t left = block_edge(block);
  if (cell == block << grid) return left;
  int32_t right = block_edge(block + 1);
  for (int bit = grid - 1; bit >= 0; --bit) {
    const int32_t middle = (left + right) / 2;
    if ((cell >> bit & 1) != 0) {
      left = middle;
    } else {
      right = middle;
    }
  }
  return left;
}

template <class Team, class State>
CAST_HOST_DEVICE inline void reset(const Team& team, const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  const auto group = team.group();
  for (int i = group.rank(); i < 2 * kLists; i += group.size()) state.lengths[i] = 0;
  for (int i = group.rank(); i < 512; i += group.size()) state.factors[i] = plan.factors[i];
  for (int i = team.rank(); i < used_bins_words(plan.bins); i += team.size()) state.used.words[i] = 0;
  for (int i = team.rank(); i < plan.num_labels; i += team.size()) state.totals[i] = 0;
  for (int grid = 0; grid < plan.grids; ++grid) {
    const SeedsCells<Label> cells = cells_of(plan, state, grid);
    int32_t* const edges = const_cast<int32_t*>(cells.x_edges);  // the y edges follow
    for (int i = team.rank(); i < cells.columns + cells.rows + 2; i += team.size()) {
      const bool is_x = i <= cells.columns;
      edges[i] = is_x ? cell_edge(i, plan.columns, plan.width, grid)
                      : cell_edge(i - cells.columns - 1, plan.rows, plan.height, grid);
    }
  }
  const auto clear_labels = [&](Label* labels, size_t count) {
    const int words = static_cast<int>(count) / parts_per_word<Label>();
    for (int i = team.rank(); i < words; i += team.size()) reinterpret_cast<Word*>(labels)[i] = 0xffffffffu;
  };
  clear_labels(state.cell_labels, num_cell_labels<Label>(plan));
  clear_labels(state.labels, num_framed_labels<Label>(plan));
  const int border_words = static_cast<int>(num_border_words<Label>(plan));
  for (int i = team.rank(); i < border_words; i += team.size()) state.border[i] = 0;
}

// Bins renumbered to those that occur, and empty histograms.
template <class Team, class State>
CAST_HOST_DEVICE inline void index_bins(const Team& team, const ParallelPlan& plan, const State& state) {
  using Bin = typename State::Bin;
  const int stride = label_stride<typename State::Label>(plan);
  for_each_place(team, plan.height, (plan.width + 3) / 4, [&](int y, int four) {
    const int place = y * stride + 4 * four;
    const auto* const pairs = reinterpret_cast<const Word*>(state.joint + place);
    const uint32_t pair[] = {pairs[0], pairs[1]};
    uint32_t bins[4];
    CAST_UNROLL
    for (int i = 0; i < 4; ++i) bins[i] = used_bin_index(state.used, pair[i / 2] >> (16 * (i & 1)) & 0xffff);
    auto* const to = reinterpret_cast<Word*>(state.bins + place);
    if (sizeof(Bin) == 1) {
      to[0] = bins[0] | bins[1] << 8 | bins[2] << 16 | bins[3] << 24;
    } else {
      to[0] = bins[0] | bins[1] << 16;
      to[1] = bins[2] | bins[3] << 16;
    }
  });
  const size_t counts = static_cast<size_t>(plan.num_labels) * *state.num_bins;
  const size_t words = (counts * sizeof(typename State::Count) + 3) / 4;
  for (size_t i = team.rank(); i < words; i += team.size()) reinterpret_cast<Word*>(state.histogram)[i] = 0;
}

// Every pixel takes the label of its cell.
template <class Team, class State>
CAST_HOST_DEVICE inline void spread_labels(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  using Label = typename State::Label;
  const auto cells = cells_of(plan, state, grid);
  const int stride = label_stride<Label>(plan);
  Label* const labels = pixel_labels(plan, state);
  for_each_cell(team, plan, grid, cells.columns * cells.rows, [&](const auto& lanes, int i) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    const Label label = cells.labels[row * cells.label_stride + column];
    const int left = cells.x_edges[column];
    const int width = cells.x_edges[column + 1] - left;
    for (int y = cells.y_edges[row]; y < cells.y_edges[row + 1]; ++y) {
      for (int x = lanes.rank(); x < width; x += lanes.size()) labels[y * stride + left + x] = label;
    }
  });
}

// The labels of every stride-th pixel of every stride-th row.
template <class Team, class State>
CAST_HOST_DEVICE inline void write_labels(const Team& team, const ParallelPlan& plan, const State& state, int step,
                                          int32_t* labels) {
  const int stride = label_stride<typename State::Label>(plan);
  const auto* const pixels = pixel_labels(plan, state);
  const LabelGrid grid(plan.height, plan.width, step);
  const int columns = static_cast<int>(grid.columns);
  for_each_place(team, static_cast<int>(grid.rows), columns, [&](int row, int column) {
    labels[row * columns + column] = pixels[(row * stride + column) * step];
  });
}

}  // namespace cast_kernels

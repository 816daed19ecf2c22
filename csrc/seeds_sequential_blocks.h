// The sequential order of SEEDS by a team of threads, up to the moves of whole blocks: see seeds_sequential_team.h.
#pragma once

#include "seeds_sequential_state.h"

namespace cast_kernels {
namespace {

#include "seeds_window.inl"

// 1. Cells
// Along one axis, also of the cell after the last. Sides up to kMaxTeamSide have products of 26 bits.
CAST_HOST_DEVICE inline int first_pixel(int cell, int cells, int size) {
  return cell == cells ? size : (cell * size + cells - 1) / cells;
}

// The parent along one axis of a cell: that of its last pixel.
CAST_HOST_DEVICE inline int parent_cell(int cell, int cells, int size, int above) {
  return (first_pixel(cell + 1, cells, size) - 1) * above / size;
}

CAST_HOST_DEVICE inline int parent_of(const SequentialPlan& plan, int level, int cell) {
  const int columns = plan.columns[level];
  const int row = parent_cell(cell / columns, plan.rows[level], plan.height, plan.rows[level + 1]);
  const int column = parent_cell(cell % columns, columns, plan.width, plan.columns[level + 1]);
  return row * plan.columns[level + 1] + column;
}

// The level's edge is that of the first finer cell with this parent.
template <class Team>
CAST_HOST_DEVICE inline void write_edges(const Team& team, int32_t* edges, int cells, const int32_t* finer,
                                         int finer_cells, int size) {
  for (int cell = team.rank(); cell <= cells; cell += team.size()) {
    if (finer == nullptr) {
      edges[cell] = first_pixel(cell, cells, size);
      continue;
    }
    int child = 2 * cell < finer_cells ? 2 * cell : finer_cells;
    while (child > 0 && parent_cell(child - 1, finer_cells, size, cells) >= cell) --child;
    while (child < finer_cells && parent_cell(child, finer_cells, size, cells) < cell) ++child;
    edges[cell] = finer[child];
  }
}

template <class Team>
CAST_HOST_DEVICE inline void start_cells(Team& team, const SequentialPlan& plan, const SequentialState& state) {
  for (int i = 0; i + 1 < plan.depth; ++i) {
    const SequentialLevel level = sequential_level(plan, state, i);
    const SequentialLevel finer = i == 0 ? SequentialLevel{} : sequential_level(plan, state, i - 1);
    write_edges(team, level.x_edges, level.columns, finer.x_edges, finer.columns, plan.width);
    write_edges(team, level.y_edges, level.rows, finer.y_edges, finer.rows, plan.height);
    team.barrier();
  }
}

// The labels of a level, from those of the coarser one.
template <class Team>
CAST_HOST_DEVICE inline void inherit_labels(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                            int i) {
  const SequentialLevel level = sequential_level(plan, state, i);
  const bool is_top = i + 2 == plan.depth;
  const SequentialLevel above = is_top ? SequentialLevel{} : sequential_level(plan, state, i + 1);
  for (int cell = team.rank(); cell < level.columns * level.rows; cell += team.size()) {
    const int parent = parent_of(plan, i, cell);
    level.labels[cell] = is_top ? parent : above.labels[parent];
  }
  team.barrier();
}

// The label of the block that holds a pixel.
CAST_HOST_DEVICE inline int32_t block_label(const SequentialPlan& plan, const SequentialLevel& blocks, int x, int y) {
  return blocks.labels[y * blocks.rows / plan.height * blocks.columns + x * blocks.columns / plan.width];
}

// 2. Colours
// Bins of both planes, renumbered to those that occur, order kept; returns how many.
template <class Team>
CAST_HOST_DEVICE inline uint32_t start_bins(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                            const LabTables& tables, const SeedsImage& image,
                                            SequentialScratch& scratch) {
  const int words = used_bins_words(plan.bins);
  const int pixels = plan.width * plan.height;
  for (int i = team.rank(); i < words; i += team.size()) state.used.words[i] = 0;
  team.barrier();
  quantise(team, tables, image, plan.width, plan.height, plan.bins, plan.lab, state.used, state.image.bins);
  team.barrier();
  const uint32_t num_bins = number_bins(team, state.used, plan.bins, scratch.partial);
  for (int i = team.rank(); i < words; i += team.size()) {
    uint32_t index = state.used.before[i];
    for (int bit = 0; bit < 32; ++bit) {
      if ((state.used.words[i] >> bit & 1) != 0) state.bin_lanes[index++] = static_cast<uint8_t>(bit % 4);
    }
  }
  for (int i = team.rank(); i < pixels; i += team.size()) {
    const int y = i / plan.width;
    const int x = i - y * plan.width;
    const auto bin = static_cast<uint16_t>(used_bin_index(state.used, state.image.bins[i]));
    state.image.bins[i] = bin;
    state.transposed.bins[x * plan.height + y] = bin;
  }
  return num_bins;
}

template <class Team>
CAST_HOST_DEVICE inline void start_superpixels(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                               uint32_t num_bins) {
  const size_t counts = static_cast<size_t>(num_bins) * plan.num_labels;
  for (size_t i = team.rank(); i < counts; i += team.size()) state.histogram[i] = 0;
  for (uint32_t i = team.rank(); i < num_bins; i += team.size()) state.cell_count[i] = 0;
  for (int i = team.rank(); i < plan.num_labels; i += team.size()) state.totals[i] = 0;
  for (int i = plan.depth - 2; i >= 0; --i) inherit_labels(team, plan, state, i);
  const SequentialLevel blocks = sequential_level(plan, state, 0);
  for (int i = team.rank(); i < plan.width * plan.height; i += team.size()) {
    const int y = i / plan.width;
    const int32_t label = block_label(plan, blocks, i - y * plan.width, y);
    atomic_add(state.histogram + static_cast<size_t>(state.image.bins[i]) * plan.num_labels + label, 1u);
    atomic_add(state.totals + label, 1u);
  }
  team.barrier();
}

// 3. Blocks, by one warp
struct CellBox {
  int left, right, top, bottom;
  CAST_HOST_DEVICE int pixels() const { return (right - left) * (bottom - top); }
};

CAST_HOST_DEVICE inline CellBox cell_box(const SequentialLevel& level, int cell) {
  const int row = cell / level.columns;
  const int column = cell - row * level.columns;
  return {level.x_edges[column], level.x_edges[column + 1], level.y_edges[row], level.y_edges[row + 1]};
}

template <class Warp>
CAST_HOST_DEVICE inline void count_cell(const Warp& warp, const SequentialState& state, const CellBox& box) {
  const int width = box.right - box.left;
  for (int i = warp.rank(); i < box.pixels(); i += warp.size()) {
    const int row = i / width;
    const int at = (box.top + row) * state.image.columns + box.left + i - row * width;
    atomic_add(state.cell_count + state.image.bins[at], 1u);
  }
  warp.sync();
}

// How much better the cell's histogram, in cell_count, intersects that of another superpixel than the rest of its own.
template <class Warp>
CAST_HOST_DEVICE inline float confidence(const Warp& warp, const SequentialPlan& plan, const SequentialState& state,
                                         SequentialScratch& scratch, uint32_t num_bins, int pixels, int from, int to) {
  const auto total = static_cast<float>(pixels);
  const float total_from = static_cast<float>(state.totals[from]) - total;
  const auto total_to = static_cast<float>(state.totals[to]);
  // Where the products pass 2^24 the order of the sum matters: four lanes, ascending bins.
  for (int lane = warp.rank(); lane < 4; lane += warp.size()) scratch.sum_from[lane] = scratch.sum_to[lane] = 0.0f;
  const auto chunk = static_cast<uint32_t>(warp.size());
  for (uint32_t first = 0; first < num_bins; first += chunk) {
    const uint32_t bin = first + static_cast<uint32_t>(warp.rank());
    const uint32_t cell = bin < num_bins ? state.cell_count[bin] : 0;
    if (warp.ballot(cell != 0) == 0) continue;
    float product_from = 0.0f;
    float product_to = 0.0f;
    if (cell != 0) {
      const uint32_t* const counts = state.histogram + static_cast<size_t>(bin) * plan.num_labels;
      const auto count = static_cast<float>(cell);
      const float own = (static_cast<float>(counts[from]) - count) * total;
      const float other = static_cast<float>(counts[to]) * total;
      const float cell_from = count * total_from;
      const float cell_to = count * total_to;
      product_from = cell_from < own ? cell_from : own;
      product_to = cell_to < other ? cell_to : other;
    }
    scratch.from[warp.rank()] = product_from;
    scratch.to[warp.rank()] = product_to;
    warp.sync();
    for (int lane = warp.rank(); lane < 4; lane += warp.size()) {
      float sum_from = scratch.sum_from[lane];
      float sum_to = scratch.sum_to[lane];
      for (uint32_t i = 0; i < chunk && first + i < num_bins; ++i) {
        if (state.bin_lanes[first + i] != lane) continue;
        sum_from += scratch.from[i];
        sum_to += scratch.to[i];
      }
      scratch.sum_from[lane] = sum_from;
      scratch.sum_to[lane] = sum_to;
    }
    warp.sync();
  }
  warp.sync();
  const auto share = [total](const float* sum, float other) {
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (other * total);
  };
  const float result = share(scratch.sum_to, total_to) - share(scratch.sum_from, total_from);
  warp.sync();
  return result;
}

// Moves the cell if it gains enough, and forgets cell_count.
template <class Warp>
CAST_HOST_DEVICE inline bool try_cell(const Warp& warp, const SequentialPlan& plan, const SequentialState& state,
                                      SequentialScratch& scratch, const SequentialLevel& level, uint32_t num_bins,
                                      int cell, int from, int to, float required) {
  const CellBox box = cell_box(level, cell);
  count_cell(warp, state, box);
  const bool moves = confidence(warp, plan, state, scratch, num_bins, box.pixels(), from, to) > required;
  for (uint32_t bin = warp.rank(); bin < num_bins; bin += warp.size()) {
    const uint32_t count = state.cell_count[bin];
    if (count == 0) continue;
    state.cell_count[bin] = 0;
    if (!moves) continue;
    uint32_t* const counts = state.histogram + static_cast<size_t>(bin) * plan.num_labels;
    counts[from] -= count;
    counts[to] += count;
  }
  if (moves && warp.rank() == 0) {
    state.totals[from] -= static_cast<uint32_t>(box.pixels());
    state.totals[to] += static_cast<uint32_t>(box.pixels());
    --state.parts[from];
    ++state.parts[to];
    level.labels[cell] = to;
  }
  warp.sync();
  return moves;
}

// One sweep over the pairs (i, j) of neighbouring cells along rows, or along columns. The outer ring never moves.
template <bool kVertical, class Warp>
CAST_HOST_DEVICE inline void block_sweep(const Warp& warp, const SequentialPlan& plan, const SequentialState& state,
                                         SequentialScratch& scratch, const SequentialLevel& level, uint32_t num_bins,
                                         float required) {
  const int along = kVertical ? level.columns : 1;  // from i to j
  const int across = kVertical ? 1 : level.columns;
  const int length = kVertical ? level.rows : level.columns;
  const int lines = kVertical ? level.columns : level.rows;
  const int32_t* const label = level.labels;
  const auto may_leave_cell = [&](int cell, int away) {
    const int own = label[cell];
    return keeps_links(label[cell + away] == own, label[cell - across] == own, label[cell + across] == own,
                       label[cell + away - across] == own, label[cell + away + across] == own);
  };
  for (int line = 1; line < lines - 1; ++line) {
    for (int position = 1; position < length - 2; ++position) {
      const int i = line * across + position * along;
      const int j = i + along;
      const int a = label[i];
      const int b = label[j];
      if (a == b) continue;
      const bool i_may = state.parts[a] == 2 || (state.parts[a] > 2 && may_leave_cell(i, -along));
      const bool j_may = state.parts[b] == 2 || (state.parts[b] > 2 && may_leave_cell(j, along));
      warp.sync();  // all have read what try_cell changes
      if (i_may && try_cell(warp, plan, state, scratch, level, num_bins, i, a, b, required)) continue;
      if (j_may && try_cell(warp, plan, state, scratch, level, num_bins, j, b, a, required)) ++position;
    }
  }
}

template <class Team>
CAST_HOST_DEVICE inline void block_stage(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                         SequentialScratch& scratch, uint32_t num_bins) {
  for (int i = plan.depth - 2; i >= 0; --i) {
    const SequentialLevel level = sequential_level(plan, state, i);
    inherit_labels(team, plan, state, i);
    const bool is_top = i + 2 == plan.depth;
    for (int k = team.rank(); k < plan.num_labels; k += team.size()) state.parts[k] = is_top ? 4 : 0;
    team.barrier();
    for (int cell = team.rank(); !is_top && cell < level.columns * level.rows; cell += team.size()) {
      atomic_add(state.parts + level.labels[cell], i == 0 ? 1u : 4u);
    }
    team.barrier();
    const auto warp = team.warp();
    for (int step = plan.double_step ? 0 : 1; warp.index() == 0 && step < 2; ++step) {
      const float required = step == 0 ? 0.1f : 0.0f;
      block_sweep<false>(warp, plan, state, scratch, level, num_bins, required);
      block_sweep<true>(warp, plan, state, scratch, level, num_bins, required);
    }
    team.barrier();
  }
}

}  // namespace
}  // namespace cast_kernels

// The parallel order of SEEDS in steps: within a step the threads of a team work side by side, between steps lies a
// barrier. What is decided, and what a move changes, stands in seeds_phases.h.
#pragma once

#include "seeds_parallel_state.h"

namespace cast_kernels {

// 1. Start
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
  for (int i = team.rank(); i < used_bins_words(plan.bins); i += team.size()) state.used.words[i] = 0;
  for (int i = team.rank(); i < 4 * kMaxSweeps; i += team.size()) state.lengths[i] = 0;
  for (int i = team.rank(); i < plan.num_labels; i += team.size()) state.totals[i] = 0;
  for (int i = team.rank(); i < 512; i += team.size()) state.factors[i] = plan.factors[i / 256][i % 256];
  for (int grid = 0; grid < plan.grids; ++grid) {
    const SeedsCells<Label> cells = cells_of(plan, state, grid);
    int32_t* const edges = const_cast<int32_t*>(cells.x_edges);  // the y edges follow
    for (int i = team.rank(); i < cells.columns + cells.rows + 2; i += team.size()) {
      const bool is_x = i <= cells.columns;
      edges[i] = is_x ? cell_edge(i, plan.columns, plan.width, grid)
                      : cell_edge(i - cells.columns - 1, plan.rows, plan.height, grid);
    }
  }
  for (int i = team.rank(); i < num_cell_labels(plan); i += team.size()) state.cell_labels[i] = kOutside<Label>;
  auto* const words = reinterpret_cast<Word*>(state.labels);
  const int num_words = static_cast<int>(num_framed_labels<Label>(plan)) / labels_per_word<Label>();
  for (int i = team.rank(); i < num_words; i += team.size()) words[i] = 0xffffffffu;
}

// Bins renumbered to those that occur, and empty histograms.
template <class Team, class State>
CAST_HOST_DEVICE inline void index_bins(const Team& team, const ParallelPlan& plan, const State& state) {
  for (int i = team.rank(); i < plan.pixels(); i += team.size()) {
    state.bins[i] = static_cast<typename State::Bin>(used_bin_index(state.used, state.joint[i]));
  }
  const size_t counts = static_cast<size_t>(plan.num_labels) * *state.num_bins;
  const size_t words = (counts * sizeof(typename State::Count) + 3) / 4;
  for (size_t i = team.rank(); i < words; i += team.size()) reinterpret_cast<Word*>(state.histogram)[i] = 0;
}

template <class Team, class State>
CAST_HOST_DEVICE inline void clear_dense(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  const size_t counts = static_cast<size_t>(plan.cells(grid)) * *state.num_bins;
  for (size_t i = team.rank(); i < counts; i += team.size()) state.dense[i] = 0;
}

// The cell along one axis that holds a pixel.
CAST_HOST_DEVICE inline int cell_of(int pixel, const int32_t* edges, int cells, int size) {
  int cell = pixel * cells / size;
  while (cell > 0 && edges[cell] > pixel) --cell;
  while (edges[cell + 1] <= pixel) ++cell;
  return cell;
}

template <class Team, class State>
CAST_HOST_DEVICE inline void count_dense(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  const auto cells = cells_of(plan, state, grid);
  for (int i = team.rank(); i < plan.pixels(); i += team.size()) {
    const int y = i / plan.width;
    const int column = cell_of(i - y * plan.width, cells.x_edges, cells.columns, plan.width);
    const int row = cell_of(y, cells.y_edges, cells.rows, plan.height);
    const size_t cell = static_cast<size_t>(row) * cells.columns + column;
    atomic_add(state.dense + cell * *state.num_bins + state.bins[i], 1u);
  }
}

// 2. Cells, each by one thread where they are small, else by one warp
constexpr uint32_t kThreadPixels = 16;

template <class Team, class Work>
CAST_HOST_DEVICE inline void for_each_cell(const Team& team, const ParallelPlan& plan, int grid, int count, Work work) {
  if (plan.max_size[grid] <= kThreadPixels) {
    for (int i = team.rank(); i < count; i += team.size()) work(OneThread{}, i);
  } else {
    const auto warp = team.warp();
    for (int i = warp.index(); i < count; i += warp.count()) work(warp, i);
  }
}

CAST_HOST_DEVICE inline int lowest_rank(uint32_t ranks) { return count_bits((ranks & (0u - ranks)) - 1); }

// Calls visit(bin, count) for every bin of a cell, spread over the threads of the warp.
template <class Warp, class State, class Visit>
CAST_HOST_DEVICE inline void visit_bins(const Warp& warp, const ParallelPlan& plan, const State& state,
                                        const SeedsCells<typename State::Label>& cells, int grid, int column, int row,
                                        Visit visit) {
  if (plan.is_dense(grid)) {
    const uint32_t num_bins = *state.num_bins;
    const uint32_t* const counts = state.dense + (static_cast<size_t>(row) * cells.columns + column) * num_bins;
    for (uint32_t bin = warp.rank(); bin < num_bins; bin += warp.size()) {
      if (counts[bin] != 0) visit(bin, counts[bin]);
    }
    return;
  }
  constexpr uint32_t kNoBin = 0xffffffffu;
  const int left = cells.x_edges[column];
  const int width = cells.x_edges[column + 1] - left;
  const int pixels = width * (cells.y_edges[row + 1] - cells.y_edges[row]);
  const typename State::Bin* const corner = state.bins + cells.y_edges[row] * plan.width + left;
  const auto bin_at = [&](int i) -> uint32_t {
    if (i >= pixels) return kNoBin;
    const int y = i / width;
    return corner[y * plan.width + i - y * width];
  };
  // A thread has one pixel of each chunk. Of the pixels with the same bin the first visits, for all of them.
  for (int first = 0; first < pixels; first += warp.size()) {
    const uint32_t bin = bin_at(first + warp.rank());
    const uint32_t alike = warp.match(bin);
    bool is_first = bin != kNoBin && lowest_rank(alike) == warp.rank();
    uint32_t count = static_cast<uint32_t>(count_bits(alike));
    for (int other = 0; other < pixels; other += warp.size()) {
      if (other == first) continue;
      const uint32_t other_bin = bin_at(other + warp.rank());
      const uint32_t other_alike = warp.match(other_bin);
      const bool speaks = other_bin != kNoBin && lowest_rank(other_alike) == warp.rank();
      for (uint32_t left_over = warp.ballot(speaks); left_over != 0; left_over &= left_over - 1) {
        const int rank = lowest_rank(left_over);
        const bool same = warp.take(other_bin, rank) == bin;
        const uint32_t more = static_cast<uint32_t>(count_bits(warp.take(other_alike, rank)));
        count += same ? more : 0;
        if (same && other < first) is_first = false;
      }
    }
    if (is_first) visit(bin, count);
  }
}

// Labels of the blocks and the counts of all superpixels; the histograms are empty.
template <class Team, class State>
CAST_HOST_DEVICE inline void start_labels(const Team& team, const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  const SeedsCells<Label> cells = cells_of(plan, state, 0);
  const uint32_t num_bins = *state.num_bins;
  for_each_cell(team, plan, 0, cells.columns * cells.rows, [&](const auto& warp, int i) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    // A block belongs to the superpixel of its last pixel.
    const int y = (cells.y_edges[row + 1] - 1) * plan.label_rows / plan.height;
    const int x = (cells.x_edges[column + 1] - 1) * plan.label_columns / plan.width;
    const auto label = static_cast<uint32_t>(y * plan.label_columns + x);
    if (warp.rank() == 0) {
      cells.labels[row * cells.label_stride + column] = static_cast<Label>(label);
      atomic_add(state.totals + label, cell_size(cells, column, row));
    }
    visit_bins(warp, plan, state, cells, 0, column, row, [&](uint32_t bin, uint32_t count) {
      add_count(state.histogram + (label * num_bins + bin), static_cast<int32_t>(count));
    });
  });
}

// Each cell of grid - 1 hands its label to its four parts.
template <class Team, class State>
CAST_HOST_DEVICE inline void refine(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  const auto coarse = cells_of(plan, state, grid - 1);
  const auto cells = cells_of(plan, state, grid);
  for (int i = team.rank(); i < cells.columns * cells.rows; i += team.size()) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    cells.labels[row * cells.label_stride + column] = coarse.labels[row / 2 * coarse.label_stride + column / 2];
  }
}

struct Phase {
  int sweep;
  int number;  // 0..3
};

template <class State>
CAST_HOST_DEVICE inline SeedsRules rules_of(const ParallelPlan& plan, const State& state, const Phase& phase) {
  const ParallelPlan::Sweep& sweep = plan.sweeps[phase.sweep];
  return {sweep.min_total, sweep.max_total, state.factors + (sweep.kind == kGrids ? 0 : 256)};
}

template <class State>
CAST_HOST_DEVICE inline uint32_t* queue_length(const State& state, const Phase& phase) {
  return state.lengths + 4 * phase.sweep + phase.number;
}

// Queues the cells of a phase that may move, with the directions to compare.
template <class Team, class State>
CAST_HOST_DEVICE inline void find_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                        const Phase& phase) {
  const auto cells = cells_of(plan, state, plan.sweeps[phase.sweep].kind);
  const auto pixels = pixel_state(plan, state);
  const SeedsRules rules = rules_of(plan, state, phase);
  const int x = phase_column(phase.number);
  const int y = phase_row(phase.number);
  const int columns = phase_count(cells.columns, x);
  const int rows = phase_count(cells.rows, y);
  for (int i = team.rank(); i < columns * rows; i += team.size()) {
    const int row = i / columns;
    const int cell_x = x + 2 * (i - row * columns);
    const int cell_y = y + 2 * row;
    const uint32_t candidates = cell_candidates(pixels, rules, cells, cell_x, cell_y);
    if (candidates == 0) continue;
    state.queue.set(append_to(queue_length(state, phase)), site_of(cell_x, cell_y, candidates));
  }
}

// decide_cell of seeds_phases.h, with the sums shared by a warp.
template <class Warp, class State>
CAST_HOST_DEVICE inline uint32_t best_direction(const Warp& warp, const ParallelPlan& plan, const State& state,
                                                const SeedsCells<typename State::Label>& cells, int grid, int x, int y,
                                                uint32_t candidates) {
  using Sum = SumOf<typename State::Count>;
  const typename State::Label* const site = cells.labels + y * cells.label_stride + x;
  const uint32_t num_bins = *state.num_bins;
  const uint32_t size = cell_size(cells, x, y);
  const uint32_t own = *site * num_bins;
  const uint32_t own_total = state.totals[*site] - size;
  uint32_t other[4];
  uint32_t total[4];
  Sum sum[4];
  Sum own_sum = 0;
  for (int d = 0; d < 4; ++d) {
    const bool is_candidate = (candidates >> d & 1) != 0;
    const uint32_t label = is_candidate ? site[direction_offset(d, cells.label_stride)] : *site;
    other[d] = label * num_bins;
    total[d] = state.totals[label];
    sum[d] = 0;
  }
  visit_bins(warp, plan, state, cells, grid, x, y, [&](uint32_t bin, uint32_t count) {
    own_sum += cell_term<Sum>(count, size, state.histogram[own + bin] - count, own_total);
    for (int d = 0; d < 4; ++d) {
      if ((candidates >> d & 1) != 0) sum[d] += cell_term<Sum>(count, size, state.histogram[other[d] + bin], total[d]);
    }
  });
  CellShare<Sum> best{warp.sum(own_sum), own_total};
  uint32_t to = kStays;
  for (int d = 0; d < 4; ++d) {
    if ((candidates >> d & 1) == 0) continue;
    const CellShare<Sum> share{warp.sum(sum[d]), total[d]};
    if (is_greater(share, best)) {
      best = share;
      to = static_cast<uint32_t>(d);
    }
  }
  return to;
}

template <class Team, class State>
CAST_HOST_DEVICE inline void decide_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                          const Phase& phase) {
  const int grid = plan.sweeps[phase.sweep].kind;
  const auto cells = cells_of(plan, state, grid);
  const int count = static_cast<int>(*queue_length(state, phase));
  for_each_cell(team, plan, grid, count, [&](const auto& warp, int i) {
    const uint32_t site = state.queue.get(i);
    const int x = site_x(site);
    const int y = site_y(site);
    const uint32_t to = best_direction(warp, plan, state, cells, grid, x, y, site_code(site));
    warp.sync();
    if (warp.rank() == 0) state.queue.set(i, site_of(x, y, to));
  });
}

template <class Team, class State>
CAST_HOST_DEVICE inline void move_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                        const Phase& phase) {
  using Label = typename State::Label;
  const int grid = plan.sweeps[phase.sweep].kind;
  const auto cells = cells_of(plan, state, grid);
  const int count = static_cast<int>(*queue_length(state, phase));
  const uint32_t num_bins = *state.num_bins;
  for_each_cell(team, plan, grid, count, [&](const auto& warp, int i) {
    const uint32_t moved = state.queue.get(i);
    if (site_code(moved) == kStays) return;
    const int x = site_x(moved);
    const int y = site_y(moved);
    Label* const site = cells.labels + y * cells.label_stride + x;
    const uint32_t from = *site;
    const uint32_t to = site[direction_offset(static_cast<int>(site_code(moved)), cells.label_stride)];
    visit_bins(warp, plan, state, cells, grid, x, y, [&](uint32_t bin, uint32_t pixels) {
      add_count(state.histogram + (from * num_bins + bin), -static_cast<int32_t>(pixels));
      add_count(state.histogram + (to * num_bins + bin), static_cast<int32_t>(pixels));
    });
    warp.sync();
    if (warp.rank() == 0) {
      const uint32_t size = cell_size(cells, x, y);
      atomic_add(state.totals + from, 0u - size);
      atomic_add(state.totals + to, size);
      *site = static_cast<Label>(to);
    }
  });
}

// 3. Pixels
// Every pixel takes the label of its cell.
template <class Team, class State>
CAST_HOST_DEVICE inline void spread_labels(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  const auto cells = cells_of(plan, state, grid);
  const auto pixels = pixel_state(plan, state);
  for_each_cell(team, plan, grid, cells.columns * cells.rows, [&](const auto& warp, int i) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    const auto label = cells.labels[row * cells.label_stride + column];
    const int left = cells.x_edges[column];
    const int width = cells.x_edges[column + 1] - left;
    for (int y = cells.y_edges[row]; y < cells.y_edges[row + 1]; ++y) {
      for (int x = warp.rank(); x < width; x += warp.size()) pixels.labels[y * pixels.label_stride + left + x] = label;
    }
  });
}

// Queues the pixels of a phase beside another label, a word of them at a time, and prepares decide_pixels.
template <class Team, class State>
CAST_HOST_DEVICE inline void find_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                         const Phase& phase) {
  using Label = typename State::Label;
  constexpr int kLabels = labels_per_word<Label>();
  constexpr int kBits = 8 * sizeof(Label);
  constexpr uint32_t kLabel = kOutside<Label>;
  for (int label = team.rank(); label < plan.num_labels; label += team.size()) {
    state.inverse[label] = inverse_square(state.totals[label]);
  }
  const int stride = label_stride<Label>(plan) / kLabels;
  const Word* const words = reinterpret_cast<const Word*>(state.labels) + stride + 1;
  const int columns = (plan.width + kLabels - 1) / kLabels;
  const int rows = phase_count(plan.height, phase_row(phase.number));
  const int last_column = plan.width - 1;
  const int step_rows = team.size() / columns;
  const int step_columns = team.size() - step_rows * columns;
  int row = team.rank() / columns;
  int column = team.rank() - row * columns;
  while (row < rows) {
    const int x = column * kLabels;
    const int y = phase_row(phase.number) + 2 * row;
    const Word* const at = words + y * stride + column;
    const uint32_t here = at[0];
    // What lies outside the image counts as alike.
    uint32_t differs = (y > 0 ? at[-stride] : here) ^ here;
    differs |= (y + 1 < plan.height ? at[stride] : here) ^ here;
    differs |= (here << kBits | (x > 0 ? at[-1] >> (32 - kBits) : here & kLabel)) ^ here;
    uint32_t east = (here >> kBits | at[1] << (32 - kBits)) ^ here;
    if (last_column < x + kLabels) east &= ~(kLabel << (kBits * (last_column - x)));
    differs |= east;
    for (int i = phase_column(phase.number); i < kLabels; i += 2) {
      if ((differs >> (kBits * i) & kLabel) == 0 || x + i > last_column) continue;
      state.queue.set(append_to(queue_length(state, phase)), site_of(x + i, y, kStays));
    }
    row += step_rows;
    column += step_columns;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
}

template <class Team, class State>
CAST_HOST_DEVICE inline void decide_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                           const Phase& phase) {
  const auto pixels = pixel_state(plan, state);
  const SeedsRules rules = rules_of(plan, state, phase);
  const bool wide = plan.sweeps[phase.sweep].kind == kGrids;
  const uint32_t count = *queue_length(state, phase);
  for (uint32_t i = team.rank(); i < count; i += team.size()) {
    const uint32_t site = state.queue.get(i);
    const int x = site_x(site);
    const int y = site_y(site);
    const int direction = wide ? decide_pixel<true>(pixels, rules, x, y) : decide_pixel<false>(pixels, rules, x, y);
    if (direction != kStay) state.queue.set(i, site_of(x, y, static_cast<uint32_t>(direction)));
  }
}

template <class Team, class State>
CAST_HOST_DEVICE inline void move_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                         const Phase& phase) {
  const auto pixels = pixel_state(plan, state);
  const uint32_t count = *queue_length(state, phase);
  for (uint32_t i = team.rank(); i < count; i += team.size()) {
    const uint32_t moved = state.queue.get(i);
    if (site_code(moved) == kStays) continue;
    move_pixel(pixels, site_x(moved), site_y(moved), static_cast<int>(site_code(moved)),
               [](auto* count_or_total, int change) { add_count(count_or_total, change); });
  }
}

// The labels of every stride-th pixel of every stride-th row.
template <class Team, class State>
CAST_HOST_DEVICE inline void write_labels(const Team& team, const ParallelPlan& plan, const State& state, int stride,
                                          int32_t* labels) {
  const auto pixels = pixel_state(plan, state);
  const LabelGrid grid(plan.height, plan.width, stride);
  const int columns = static_cast<int>(grid.columns);
  for (int i = team.rank(); i < grid.size(); i += team.size()) {
    const int y = i / columns;
    labels[i] = pixels.labels[y * stride * pixels.label_stride + (i - y * columns) * stride];
  }
}

}  // namespace cast_kernels

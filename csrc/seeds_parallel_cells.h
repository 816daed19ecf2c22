// The sweeps over cells of pixels, by a team.
#pragma once

#include <type_traits>

#include "seeds_around.h"
#include "seeds_packed_cell.h"
#include "seeds_parallel_state.h"

namespace cast_kernels {

// 1. The bins of cells
CAST_HOST_DEVICE inline uint32_t bin_entry(uint32_t bin, uint32_t count) { return bin | count << 16; }
CAST_HOST_DEVICE inline uint32_t entry_bin(uint32_t entry) { return entry & 0xffff; }
CAST_HOST_DEVICE inline uint32_t entry_count(uint32_t entry) { return entry >> 16; }

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
  const int stride = label_stride<typename State::Label>(plan);
  for_each_place(team, plan.height, plan.width, [&](int y, int x) {
    const int column = cell_of(x, cells.x_edges, cells.columns, plan.width);
    const int row = cell_of(y, cells.y_edges, cells.rows, plan.height);
    const size_t cell = static_cast<size_t>(row) * cells.columns + column;
    atomic_add(state.dense + cell * *state.num_bins + state.bins[y * stride + x], 1u);
  });
}

template <class State>
CAST_HOST_DEVICE inline CellPixels<typename State::Bin> pixels_of(const ParallelPlan& plan, const State& state,
                                                                  const SeedsCells<typename State::Label>& cells,
                                                                  int column, int row) {
  const int left = cells.x_edges[column];
  const int top = cells.y_edges[row];
  const int stride = label_stride<typename State::Label>(plan);
  const int width = cells.x_edges[column + 1] - left;
  return {state.bins + top * stride + left, width, width * (cells.y_edges[row + 1] - top), stride};
}

// Where the list of a cell begins: cells of a row share the room of its pixels.
template <class State>
CAST_HOST_DEVICE inline uint32_t* entries_of(const ParallelPlan& plan, const State& state,
                                             const SeedsCells<typename State::Label>& cells, int column, int row) {
  const int top = cells.y_edges[row];
  return state.entries + top * plan.width + cells.x_edges[column] * (cells.y_edges[row + 1] - top);
}

// The bins of each cell and how often they occur, in any order: a thread per cell.
template <int kPixels, class Team, class State>
CAST_HOST_DEVICE inline void list_bins_by_threads(const Team& team, const ParallelPlan& plan, const State& state,
                                                  int grid) {
  const auto cells = cells_of(plan, state, grid);
  for (int i = team.rank(); i < cells.columns * cells.rows; i += team.size()) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    uint32_t* const entries = entries_of(plan, state, cells, column, row);
    uint32_t length = 0;
    const PackedCell<typename State::Bin, kPixels> cell(pixels_of(plan, state, cells, column, row));
    cell.visit([&](uint32_t bin, uint32_t count) { entries[length++] = bin_entry(bin, count); });
    state.num_entries[i] = length;
  }
}

// The same for larger cells: a warp per cell.
template <class Team, class State>
CAST_HOST_DEVICE inline void list_bins_by_warps(const Team& team, const ParallelPlan& plan, const State& state,
                                                int grid) {
  constexpr uint32_t kNoBin = 0xffffffffu;
  const auto cells = cells_of(plan, state, grid);
  const auto warp = team.warp();
  const auto rank = static_cast<uint32_t>(warp.rank());
  const auto size = static_cast<uint32_t>(warp.size());
  for (int i = warp.index(); i < cells.columns * cells.rows; i += warp.count()) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    const auto pixels = pixels_of(plan, state, cells, column, row);
    uint32_t* const entries = entries_of(plan, state, cells, column, row);
    uint32_t length = 0;
    uint32_t kept = 0;  // entry `rank`: the first `size` of them are up to date here alone
    // A thread has one pixel of each chunk: it is counted by an entry of an earlier chunk, or a new one.
    for (int first = 0; first < pixels.count; first += warp.size()) {
      const int mine = first + warp.rank();
      const uint32_t bin = mine < pixels.count ? pixels.bin(mine) : kNoBin;
      bool is_new = bin != kNoBin;
      for (uint32_t k = 0; k < length; ++k) {
        const uint32_t entry = k < size ? warp.take(kept, static_cast<int>(k)) : entries[k];
        const bool same = entry_bin(entry) == bin;
        const auto more = static_cast<uint32_t>(count_bits(warp.ballot(same)));
        if (same) is_new = false;
        if (k == rank) kept += more << 16;
        if (k >= size && rank == 0) entries[k] = entry + (more << 16);
      }
      const uint32_t alike = warp.match(is_new ? bin : kNoBin);
      const bool is_first = is_new && static_cast<uint32_t>(lowest_bit(alike)) == rank;
      const uint32_t firsts = warp.ballot(is_first);
      if (is_first) {
        const auto before = static_cast<uint32_t>(count_bits(firsts & ((1u << rank) - 1)));
        entries[length + before] = bin_entry(bin, static_cast<uint32_t>(count_bits(alike)));
      }
      warp.sync();
      const uint32_t known = length;
      length += static_cast<uint32_t>(count_bits(firsts));
      if (rank >= known && rank < length) kept = entries[rank];
    }
    if (rank < length) entries[rank] = kept;
    if (rank == 0) state.num_entries[i] = length;
  }
}

template <class Team, class State>
CAST_HOST_DEVICE inline void list_bins(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  // The block driver, whose labels have 8 bits, has half of the registers: for 32 words of bins they are too few.
  constexpr int kPackedCell = sizeof(typename State::Label) < sizeof(typename State::Bin) ? 32 : 64;
  if (plan.max_size[grid] <= kThreadCell) {
    list_bins_by_threads<kThreadCell>(team, plan, state, grid);
  } else if (plan.max_size[grid] <= kPackedCell) {
    list_bins_by_threads<kPackedCell>(team, plan, state, grid);
  } else {
    list_bins_by_warps(team, plan, state, grid);
  }
}

// Calls visit(bin, count) for every bin of a cell, spread over the lanes.
template <class Lanes, class State, class Visit>
CAST_HOST_DEVICE inline void visit_bins(const Lanes& lanes, const ParallelPlan& plan, const State& state,
                                        const SeedsCells<typename State::Label>& cells, int grid, int column, int row,
                                        Visit visit) {
  const int cell = row * cells.columns + column;
  if (plan.is_listed(grid)) {
    const uint32_t* const entries = entries_of(plan, state, cells, column, row);
    const uint32_t length = state.num_entries[cell];
    CAST_KEEP_LOOP
    for (uint32_t i = lanes.rank(); i < length; i += lanes.size()) {
      visit(entry_bin(entries[i]), entry_count(entries[i]));
    }
  } else if constexpr (std::is_same_v<Lanes, OneThread>) {
    PackedCell<typename State::Bin, kSmallCell>(pixels_of(plan, state, cells, column, row)).visit(visit);
  } else {
    const uint32_t num_bins = *state.num_bins;
    const uint32_t* const counts = state.dense + static_cast<size_t>(cell) * num_bins;
    CAST_KEEP_LOOP
    for (uint32_t bin = lanes.rank(); bin < num_bins; bin += lanes.size()) {
      if (counts[bin] != 0) visit(bin, counts[bin]);
    }
  }
}

// Calls work(lanes, i) for i below count: small cells have one thread each, others the lanes.
template <class Team, class Work>
CAST_HOST_DEVICE inline void for_each_cell(const Team& team, const ParallelPlan& plan, int grid, int count, Work work) {
  if (plan.max_size[grid] <= kThreadCell) {
    for (int i = team.rank(); i < count; i += team.size()) work(OneThread{}, i);
  } else {
    const auto lanes = team.lanes();
    for (int i = lanes.index(); i < count; i += lanes.count()) work(lanes, i);
  }
}

// 2. Labels of cells
// Labels of the blocks and the counts of all superpixels; the histograms are empty.
template <class Team, class State>
CAST_HOST_DEVICE inline void start_labels(const Team& team, const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  const SeedsCells<Label> cells = cells_of(plan, state, 0);
  const uint32_t num_bins = *state.num_bins;
  for_each_cell(team, plan, 0, cells.columns * cells.rows, [&](const auto& lanes, int i) {
    const int row = i / cells.columns;
    const int column = i - row * cells.columns;
    // A block belongs to the superpixel of its last pixel.
    const int y = (cells.y_edges[row + 1] - 1) * plan.label_rows / plan.height;
    const int x = (cells.x_edges[column + 1] - 1) * plan.label_columns / plan.width;
    const auto label = static_cast<uint32_t>(y * plan.label_columns + x);
    if (lanes.rank() == 0) {
      cells.labels[row * cells.label_stride + column] = static_cast<Label>(label);
      atomic_add(state.totals + label, cell_size(cells, column, row));
    }
    visit_bins(lanes, plan, state, cells, 0, column, row, [&](uint32_t bin, uint32_t count) {
      add_count(state.histogram + (label * num_bins + bin), static_cast<int32_t>(count));
    });
  });
}

// Each cell of grid - 1 hands its label to its four parts.
template <class Team, class State>
CAST_HOST_DEVICE inline void refine(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
  const auto coarse = cells_of(plan, state, grid - 1);
  const auto cells = cells_of(plan, state, grid);
  for_each_place(team, cells.rows, cells.columns, [&](int row, int column) {
    cells.labels[row * cells.label_stride + column] = coarse.labels[row / 2 * coarse.label_stride + column / 2];
  });
}

// 3. A phase
// cell_candidates of seeds_phases.h.
template <class State>
CAST_HOST_DEVICE inline uint32_t candidates_of(const State& state, const ParallelPlan::Sweep& sweep,
                                               const SeedsCells<typename State::Label>& cells, int x, int y) {
  using Label = typename State::Label;
  const Around<Label> around(cells.labels, cells.label_stride, y * cells.label_stride + x);
  const uint32_t own_sides = around.sides_like(around.own());
  uint32_t others = kAllSides & ~own_sides & ~around.sides_like(kOutside<Label>);
  if (others == 0 || !may_leave(own_sides, around.corners_like(around.own()))) return 0;
  if (state.totals[around.own()] < cell_size(cells, x, y) + sweep.min_total) return 0;
  uint32_t candidates = 0;
  while (others != 0) {
    const int d = lowest_bit(others) >> 3;
    const uint32_t other = around.side(d);
    others &= ~around.sides_like(other);
    if (state.totals[other] <= sweep.max_total) candidates |= 1u << d;
  }
  return candidates;
}

// Lists the cells that may move, with the directions to compare.
template <class Team, class State>
CAST_HOST_DEVICE inline void find_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                        const Phase& phase) {
  const auto group = team.group();
  const ParallelPlan::Sweep& sweep = plan.sweeps[phase.sweep];
  const auto cells = cells_of(plan, state, sweep.kind);
  const int x = phase_column(phase.number);
  const int y = phase_row(phase.number);
  const Band band = band_of(team, phase_count(cells.rows, y));
  const int columns = phase_count(cells.columns, x);
  const int count = band.rows() * columns;
  const SiteList list = list_of(state, kSiteList);
  const auto warp = group.warp();
  for (int begin = warp.index() * warp.size(); begin < count; begin += warp.count() * warp.size()) {
    const int i = begin + warp.rank();
    const int row = i / columns;
    const int cell_x = x + 2 * (i - row * columns);
    const int cell_y = y + 2 * (band.begin + row);
    const uint32_t candidates = i < count ? candidates_of(state, sweep, cells, cell_x, cell_y) : 0;
    const Append<1> append(warp, length_of(state, phase, kSiteList), {candidates != 0});
    if (candidates != 0) list.set(append.place(0), with_code(cell_place(cell_x, cell_y), candidates));
  }
}

// choose_cell of seeds_phases.h, with the sums shared by the lanes: a direction or kStays.
template <class Lanes, class State>
CAST_HOST_DEVICE inline uint32_t choose_direction(const Lanes& lanes, const ParallelPlan& plan, const State& state,
                                                  const SeedsCells<typename State::Label>& cells, int grid, int x,
                                                  int y, uint32_t candidates) {
  using Sum = SumOf<typename State::Count>;
  const typename State::Label* const site = cells.labels + y * cells.label_stride + x;
  const uint32_t num_bins = *state.num_bins;
  const uint32_t size = cell_size(cells, x, y);
  const uint32_t own = *site * num_bins;
  const uint32_t own_total = state.totals[*site] - size;
  CellShare<Sum> best{0, own_total};
  uint32_t to = kStays;
  for (bool is_first = true; candidates != 0; candidates &= candidates - 1) {
    const int d = lowest_bit(candidates);
    const uint32_t label = site[direction_offset(d, cells.label_stride)];
    const uint32_t other = label * num_bins;
    const uint32_t total = state.totals[label];
    Sum sum = 0;
    visit_bins(lanes, plan, state, cells, grid, x, y, [&](uint32_t bin, uint32_t count) {
      if (is_first) best.sum += cell_term<Sum>(count, size, state.histogram[own + bin] - count, own_total);
      sum += cell_term<Sum>(count, size, state.histogram[other + bin], total);
    });
    if (is_first) best.sum = lanes.sum(best.sum);
    is_first = false;
    const CellShare<Sum> share{lanes.sum(sum), total};
    if (is_greater(share, best)) {
      best = share;
      to = static_cast<uint32_t>(d);
    }
  }
  return to;
}

// The decision takes the place of the directions.
template <class Team, class State>
CAST_HOST_DEVICE inline void decide_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                          const Phase& phase) {
  const int grid = plan.sweeps[phase.sweep].kind;
  const auto cells = cells_of(plan, state, grid);
  const SiteList list = list_of(state, kSiteList);
  const int count = static_cast<int>(*length_of(state, phase, kSiteList));
  for_each_cell(team.group(), plan, grid, count, [&](const auto& lanes, int i) {
    const uint32_t site = list.get(i);
    const int x = cell_x(site);
    const int y = cell_y(site);
    const uint32_t to = choose_direction(lanes, plan, state, cells, grid, x, y, code_of(site));
    lanes.sync();  // all have seen the candidates
    if (lanes.rank() == 0) list.set(i, with_code(cell_place(x, y), to));
  });
}

template <class Team, class State>
CAST_HOST_DEVICE inline void move_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                        const Phase& phase) {
  using Label = typename State::Label;
  const auto group = team.group();
  const int grid = plan.sweeps[phase.sweep].kind;
  const auto cells = cells_of(plan, state, grid);
  const SiteList list = list_of(state, kSiteList);
  const int count = static_cast<int>(*length_of(state, phase, kSiteList));
  const uint32_t num_bins = *state.num_bins;
  if (group.rank() == 0) empty_lists(state, phase.number + 1);
  for_each_cell(group, plan, grid, count, [&](const auto& lanes, int i) {
    const uint32_t move = list.get(i);
    if (code_of(move) == kStays) return;
    const int x = cell_x(move);
    const int y = cell_y(move);
    Label* const site = cells.labels + y * cells.label_stride + x;
    const uint32_t from = *site;
    const uint32_t to = site[direction_offset(static_cast<int>(code_of(move)), cells.label_stride)];
    visit_bins(lanes, plan, state, cells, grid, x, y, [&](uint32_t bin, uint32_t pixels) {
      add_count(state.histogram + (from * num_bins + bin), -static_cast<int32_t>(pixels));
      add_count(state.histogram + (to * num_bins + bin), static_cast<int32_t>(pixels));
    });
    lanes.sync();
    if (lanes.rank() == 0) {
      const uint32_t size = cell_size(cells, x, y);
      atomic_add(state.totals + from, 0u - size);
      atomic_add(state.totals + to, size);
      *site = static_cast<Label>(to);
    }
  });
}

}  // namespace cast_kernels

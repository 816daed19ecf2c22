// The sweeps over cells of pixels, by a team.
#pragma once

#include <type_traits>

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

// Where the pixels of a cell lie.
template <class Bin>
struct CellPixels {
  const Bin* corner;
  int width, count, stride;

  CAST_HOST_DEVICE uint32_t bin(int i) const {
    const int y = i / width;
    return corner[y * stride + i - y * width];
  }
};

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

// The bins of each cell and how often they occur, in any order: a warp per cell.
template <class Team, class State>
CAST_HOST_DEVICE inline void list_bins(const Team& team, const ParallelPlan& plan, const State& state, int grid) {
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

// The bins of a small cell, in registers.
template <class Bin>
class SmallCell {
 public:
  CAST_HOST_DEVICE explicit SmallCell(const CellPixels<Bin>& pixels) {
    CAST_UNROLL  // no index of words_ is left for the run
    for (int w = 0; w < kWords; ++w) words_[w] = 0;
    const Bin* row = pixels.corner;
    int x = 0;
    CAST_UNROLL
    for (int i = 0; i < static_cast<int>(kSmallCell); ++i) {
      if (i >= pixels.count) break;
      words_[i / kPerWord] |= static_cast<uint32_t>(row[x]) << (kBits * (i % kPerWord));
      left_ |= 1u << (kBits * (i % kPerWord + 1) - 1 - i / kPerWord);
      if (++x == pixels.width) {
        x = 0;
        row += pixels.stride;
      }
    }
  }

  // Calls visit(bin, count) for every bin.
  template <class Visit>
  CAST_HOST_DEVICE void visit(Visit visit) const {
    for (uint32_t left = left_; left != 0;) {
      const int bit = lowest_bit(left);
      const int at = bit / kBits;  // of kPerWord
      const int word = kBits - 1 - bit % kBits;
      uint32_t value = words_[0];
      CAST_UNROLL
      for (int w = 1; w < kWords; ++w) value = w == word ? words_[w] : value;
      const uint32_t bin = value >> (kBits * at) & static_cast<Bin>(-1);
      uint32_t alike = 0;
      CAST_UNROLL
      for (int w = 0; w < kWords; ++w) alike |= zero_parts<Bin>(words_[w] ^ repeat<Bin>(bin)) >> w;
      visit(bin, static_cast<uint32_t>(count_bits(alike & left)));
      left &= ~alike;
    }
  }

 private:
  static constexpr int kBits = 8 * sizeof(Bin);
  static constexpr int kPerWord = parts_per_word<Bin>();
  static constexpr int kWords = static_cast<int>(kSmallCell) / kPerWord;

  uint32_t words_[kWords];  // pixel i in part i % kPerWord of word i / kPerWord
  uint32_t left_ = 0;       // its bit: of that part the highest but i / kPerWord
};

// Calls visit(bin, count) for every bin of a cell, spread over the lanes.
template <class Lanes, class State, class Visit>
CAST_HOST_DEVICE inline void visit_bins(const Lanes& lanes, const ParallelPlan& plan, const State& state,
                                        const SeedsCells<typename State::Label>& cells, int grid, int column, int row,
                                        Visit visit) {
  const int cell = row * cells.columns + column;
  if constexpr (std::is_same_v<Lanes, OneThread>) {
    SmallCell<typename State::Bin>(pixels_of(plan, state, cells, column, row)).visit(visit);
  } else if (plan.is_dense(grid)) {
    const uint32_t num_bins = *state.num_bins;
    const uint32_t* const counts = state.dense + static_cast<size_t>(cell) * num_bins;
    for (uint32_t bin = lanes.rank(); bin < num_bins; bin += lanes.size()) {
      if (counts[bin] != 0) visit(bin, counts[bin]);
    }
  } else {
    const uint32_t* const entries = entries_of(plan, state, cells, column, row);
    const uint32_t length = state.num_entries[cell];
    for (uint32_t i = lanes.rank(); i < length; i += lanes.size()) visit(entry_bin(entries[i]), entry_count(entries[i]));
  }
}

// Calls work(lanes, i) for i below count: small cells have one thread each, others the lanes.
template <class Team, class Work>
CAST_HOST_DEVICE inline void for_each_cell(const Team& team, const ParallelPlan& plan, int grid, int count, Work work) {
  if (plan.max_size[grid] <= kSmallCell) {
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
// Lists the cells that may move, with the directions to compare.
template <class Team, class State>
CAST_HOST_DEVICE inline void find_cells(const Team& team, const ParallelPlan& plan, const State& state,
                                        const Phase& phase) {
  const auto group = team.group();
  const ParallelPlan::Sweep& sweep = plan.sweeps[phase.sweep];
  const auto cells = cells_of(plan, state, sweep.kind);
  const SeedsRules rules{sweep.min_total, sweep.max_total, nullptr};
  SeedsState<typename State::Label, typename State::Bin, typename State::Count> sizes{};
  sizes.totals = state.totals;
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
    const uint32_t candidates = i < count ? cell_candidates(sizes, rules, cells, cell_x, cell_y) : 0;
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

#include "seeds_team.h"

#include <limits>
#include <new>

namespace cast_kernels {
namespace {

// The window that PixelPhase counts in, for each direction: see decide_pixel. Pixels (row, column) of 4 x 4.
constexpr uint32_t kAllButPair[4] = {
    0x0f9f,  // east: rows -1..1, columns -1..2; without (1, 1) and (1, 2)
    0x7557,  // north: rows -2..1, columns -1..1; without (1, 1) and (2, 1)
    0x0f9f,  // west: as east, from column -2
    0x7557,  // south: as north, from row -1
};
constexpr uint32_t kRing = 0x0757;  // rows and columns -1..1 without the pixel

template <class Add>
inline void for_each_pixel(const CellGrid& grid, int column, int row, Add add) {
  for (int y = grid.y_edges[row]; y < grid.y_edges[row + 1]; ++y) {
    for (int x = grid.x_edges[column]; x < grid.x_edges[column + 1]; ++x) add(x, y);
  }
}

}  // namespace

template <class Label, class Count>
SeedsTeam<Label, Count>::SeedsTeam(const SeedsSchedule& schedule, const SeedsColours& colours,
                                   const SweepFunctions<Label, Count>& functions, int team)
    : schedule_(schedule),
      bins_of_(colours),
      functions_(functions),
      stride_(schedule.width + kFrameColumns),
      own_(team),
      bin_index_(bins_of_.count()),
      totals_(schedule.num_labels),
      stay_(schedule.num_labels),
      enter_(schedule.num_labels) {
  pixels_.data.assign(pixels_.size(schedule.width, schedule.height), kOutside<Label>);
  pixels_.shape(schedule.width);
  bins_.resize(pixels_.data.size());
  const CellGrid& finest = schedule.cells.back();
  for (LabelPlane<Label>& plane : cell_planes_) plane.data.resize(plane.size(finest.columns, finest.rows));
  for (Own& own : own_) own.used.resize(bins_of_.count());
}

// What depends on the bins in use and on how many members share the work.
template <class Label, class Count>
void SeedsTeam<Label, Count>::allocate(int team) {
  const size_t size = static_cast<size_t>(schedule_.num_labels) * num_bins_;
  if (size > histogram_size_) {
    histogram_size_ = 0;
    histogram_.reset(new Count[size]);
    histogram_size_ = size;
  }
  const auto sites = [team](int columns, int rows) {  // of a phase, most for one member
    return (static_cast<size_t>(rows / 2 + 1) / team + 1) * (columns / 2 + 1) + 1;
  };
  const CellGrid& finest = schedule_.cells.back();
  const size_t longest = static_cast<size_t>(std::max(schedule_.width, finest.columns)) + kSweepPadding;
  for (int rank = 0; rank < team; ++rank) {
    Own& own = own_[rank];
    own.directions.resize(longest);
    own.sites.resize(longest);
    own.cell_moves.reserve(sites(finest.columns, finest.rows));
    own.pixel_moves.resize(sites(schedule_.width, schedule_.height));
    own.counts.assign(num_bins_, 0);
    own.entries.resize(std::min(num_bins_, schedule_.cells[0].max_size) + 1);
  }
}

template <class Label, class Count>
bool SeedsTeam<Label, Count>::run(const Member& member, const SeedsImage& image, int32_t* labels, int64_t stride) {
  if (!prepare(member, image)) return false;
  count_initial(member);
  size_t level = 0;
  auto sweep = schedule_.sweeps.begin();
  for (; sweep != schedule_.sweeps.end() && !sweep->of_pixels(); ++sweep) {
    for (; level < static_cast<size_t>(sweep->kind); ++level) refine(member, level);
    sweep_cells(member, *sweep, level);
  }
  spread_to_pixels(member, schedule_.cells[level]);
  for (; sweep != schedule_.sweeps.end(); ++sweep) sweep_pixels(member, *sweep);

  const LabelGrid grid(schedule_.height, schedule_.width, stride);
  const Range rows = member.share(grid.rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Label* const from = pixels_.origin + row * stride * stride_;
    int32_t* const to = labels + row * grid.columns;
    if (stride == 1) {
      std::copy_n(from, grid.columns, to);
    } else {
      for (int64_t column = 0; column < grid.columns; ++column) to[column] = from[column * stride];
    }
  }
  barrier_.wait(member.size);  // the next image may overwrite the labels
  return true;
}

// Bins, renumbered to those in use, and empty histograms.
template <class Label, class Count>
bool SeedsTeam<Label, Count>::prepare(const Member& member, const SeedsImage& image) {
  Own& own = own_[member.rank];
  std::fill(own.used.begin(), own.used.end(), 0);
  const Range rows = member.share(schedule_.height);
  uint16_t* const bins = bins_.data() + stride_ + 1;
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    bins_of_.quantize_row(image, y, schedule_.width, bins + y * stride_, own.used.data());
  }
  barrier_.wait(member.size);
  if (member.rank == 0) {
    bin_index_ = own.used;
    for (int rank = 1; rank < member.size; ++rank) {
      for (size_t bin = 0; bin < bin_index_.size(); ++bin) bin_index_[bin] |= own_[rank].used[bin];
    }
    num_bins_ = static_cast<uint32_t>(number_used_bins(bin_index_));
    try {
      allocate(member.size);
    } catch (const std::bad_alloc&) {
      out_of_memory_ = true;  // the others wait: leave together
    }
    set_grid(0);
  }
  barrier_.wait(member.size);
  if (out_of_memory_) return false;
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    uint16_t* const row = bins + y * stride_;
    for (int x = 0; x < schedule_.width; ++x) row[x] = bin_index_[row[x]];
  }
  const Range labels = member.share(schedule_.num_labels);
  std::fill(histogram_.get() + labels.begin * num_bins_, histogram_.get() + labels.end * num_bins_, Count{0});
  std::fill(totals_.begin() + labels.begin, totals_.begin() + labels.end, 0);
  barrier_.wait(member.size);
  return true;
}

template <class Label, class Count>
void SeedsTeam<Label, Count>::count_initial(const Member& member) {
  const CellGrid& grid = schedule_.cells[0];
  const Range labels = member.share(schedule_.num_labels);
  const uint16_t* const bins = bins_.data() + stride_ + 1;
  for (int row = 0; row < grid.rows; ++row) {
    for (int column = 0; column < grid.columns; ++column) {
      const int32_t label = schedule_.initial_labels[static_cast<size_t>(row) * grid.columns + column];
      if (label < labels.begin || label >= labels.end) continue;
      cells_.labels[static_cast<int64_t>(row) * cells_.label_stride + column] = static_cast<Label>(label);
      Count* const histogram = histogram_.get() + static_cast<size_t>(label) * num_bins_;
      for_each_pixel(grid, column, row,
                     [&](int x, int y) { ++histogram[bins[static_cast<int64_t>(y) * stride_ + x]]; });
      totals_[label] += cell_size(cells_, column, row);
    }
  }
  barrier_.wait(member.size);
}

// Makes cells[level] the current grid; its labels, but for the frame, are still to come.
template <class Label, class Count>
void SeedsTeam<Label, Count>::set_grid(size_t level) {
  const CellGrid& grid = schedule_.cells[level];
  LabelPlane<Label>& plane = cell_planes_[level % 2];
  std::fill(plane.data.begin(), plane.data.begin() + plane.size(grid.columns, grid.rows), kOutside<Label>);
  plane.shape(grid.columns);
  cells_ = {grid.columns, grid.rows, grid.x_edges.data(), grid.y_edges.data(), plane.origin, plane.stride};
}

// Each cell of cells[level] hands its label to its four parts.
template <class Label, class Count>
void SeedsTeam<Label, Count>::refine(const Member& member, size_t level) {
  if (member.rank == 0) set_grid(level + 1);
  barrier_.wait(member.size);
  const LabelPlane<Label>& coarse = cell_planes_[level % 2];
  const Range rows = member.share(cells_.rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Label* const from = coarse.origin + row / 2 * coarse.stride;
    Label* const to = cells_.labels + row * cells_.label_stride;
    for (int column = 0; column < cells_.columns; ++column) to[column] = from[column / 2];
  }
  barrier_.wait(member.size);
}

template <class Label, class Count>
void SeedsTeam<Label, Count>::sweep_cells(const Member& member, const SeedsSweep& sweep, size_t level) {
  for (int phase = 0; phase < kPhases; ++phase) {
    decide_cells(member, sweep, phase);
    barrier_.wait(member.size);
    apply_cells(member, schedule_.cells[level]);
    barrier_.wait(member.size);
  }
}

template <class Label, class Count>
void SeedsTeam<Label, Count>::decide_cells(const Member& member, const SeedsSweep& sweep, int phase) {
  Own& own = own_[member.rank];
  const SeedsRules rules{sweep.min_total, sweep.max_total, nullptr};
  const Range rows = member.share(phase_count(cells_.rows, phase_row(phase)));
  own.cell_moves.clear();
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const int row = static_cast<int>(2 * i) + phase_row(phase);
    const Label* const labels = cells_.labels + static_cast<int64_t>(row) * cells_.label_stride;
    const uint32_t inside = (row > 0 ? 0xfu : 0xdu) & (row + 1 < cells_.rows ? 0xfu : 0x7u);
    const int count =
        functions_.find_sites(labels, cells_.label_stride, cells_.columns, phase_column(phase), inside, own.scratch());
    for (int k = 0; k < count; ++k) {
      const int column = static_cast<int>(own.sites[k]);
      const int direction = decide_cell_at(own, rules, column, row);
      if (direction == kStay) continue;
      const Label* const site = labels + column;
      own.cell_moves.push_back({column, row, *site, site[direction_offset(direction, cells_.label_stride)]});
    }
  }
}

template <class Label, class Count>
int SeedsTeam<Label, Count>::decide_cell_at(Own& own, const SeedsRules& rules, int column, int row) {
  const State state{schedule_.width, schedule_.height, pixels_.origin, stride_,        bins_.data() + stride_ + 1,
                    stride_,         histogram_.get(), num_bins_,      totals_.data(), nullptr};
  const uint32_t candidates = cell_candidates(state, rules, cells_, column, row);
  if (candidates == 0) return kStay;
  // Bins in the order in which they appear, as sums of integers do not mind; a list without a branch on the colours.
  CellEntry* const begin = own.entries.data();
  CellEntry* end = begin;
  for (int y = cells_.y_edges[row]; y < cells_.y_edges[row + 1]; ++y) {
    const uint16_t* const bins = state.bins + static_cast<int64_t>(y) * stride_;
    for (int x = cells_.x_edges[column]; x < cells_.x_edges[column + 1]; ++x) {
      end->bin = bins[x];
      end += own.counts[bins[x]]++ == 0;
    }
  }
  for (CellEntry* entry = begin; entry != end; ++entry) {
    entry->count = own.counts[entry->bin];
    own.counts[entry->bin] = 0;
  }
  return schedule_.wide_sums ? choose_cell<uint64_t>(state, cells_, column, row, candidates, begin, end)
                             : choose_cell<uint32_t>(state, cells_, column, row, candidates, begin, end);
}

// Every member changes the histograms of its share of the labels alone, whoever made the move.
template <class Label, class Count>
void SeedsTeam<Label, Count>::apply_cells(const Member& member, const CellGrid& grid) {
  const Range labels = member.share(schedule_.num_labels);
  const auto mine = [&](uint32_t label) { return label >= labels.begin && label < labels.end; };
  const uint16_t* const bins = bins_.data() + stride_ + 1;
  for (int rank = 0; rank < member.size; ++rank) {
    for (const CellMove& move : own_[rank].cell_moves) {
      const uint32_t size = cell_size(cells_, move.column, move.row);
      const auto add = [&](uint32_t label, int sign) {
        Count* const histogram = histogram_.get() + static_cast<size_t>(label) * num_bins_;
        for_each_pixel(grid, move.column, move.row, [&](int x, int y) {
          histogram[bins[static_cast<int64_t>(y) * stride_ + x]] += static_cast<Count>(sign);
        });
        totals_[label] += sign * size;
      };
      if (mine(move.from)) add(move.from, -1);
      if (mine(move.to)) add(move.to, 1);
    }
  }
  for (const CellMove& move : own_[member.rank].cell_moves) {
    cells_.labels[static_cast<int64_t>(move.row) * cells_.label_stride + move.column] = static_cast<Label>(move.to);
  }
}

template <class Label, class Count>
void SeedsTeam<Label, Count>::spread_to_pixels(const Member& member, const CellGrid& grid) {
  const Range rows = member.share(grid.rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Label* const from = cells_.labels + row * cells_.label_stride;
    Label* const first = pixels_.origin + static_cast<int64_t>(grid.y_edges[row]) * stride_;
    for (int column = 0; column < grid.columns; ++column) {
      for (int x = grid.x_edges[column]; x < grid.x_edges[column + 1]; ++x) first[x] = from[column];
    }
    for (int y = grid.y_edges[row] + 1; y < grid.y_edges[row + 1]; ++y) {
      std::copy_n(first, schedule_.width, pixels_.origin + static_cast<int64_t>(y) * stride_);
    }
  }
  barrier_.wait(member.size);
}

template <class Label, class Count>
void SeedsTeam<Label, Count>::sweep_pixels(const Member& member, const SeedsSweep& sweep) {
  Own& own = own_[member.rank];
  PixelPhase<Label, Count> phase{};
  phase.labels = pixels_.origin;
  phase.bins = bins_.data() + stride_ + 1;
  phase.stride = stride_;
  phase.width = schedule_.width;
  phase.height = schedule_.height;
  phase.histogram = histogram_.get();
  phase.num_bins = num_bins_;
  phase.stay = stay_.data();
  phase.enter = enter_.data();
  const bool wide = sweep.kind == SweepKind::wide;
  phase.factors = wide ? schedule_.wide_factors : schedule_.narrow_factors;
  for (int d = 0; d < 4; ++d) {
    const int rows_up = wide && d == 1 ? 2 : 1;
    const int columns_left = wide && d == 2 ? 2 : 1;
    phase.corner[d] = -rows_up * static_cast<int64_t>(stride_) - columns_left;
    phase.counted[d] = wide ? kAllButPair[d] : kRing;
  }
  weigh_sizes(member, sweep);
  barrier_.wait(member.size);
  for (int number = 0; number < kPhases; ++number) {
    const int first = phase_row(number);
    const Range rows = member.share(phase_count(schedule_.height, first));
    phase.first_column = phase_column(number);
    own.moved = functions_.decide_rows(phase, static_cast<int>(2 * rows.begin) + first, static_cast<int>(2 * rows.end),
                                       own.scratch(), own.pixel_moves.data());
    barrier_.wait(member.size);
    member.size == 1 ? apply_pixels<true>(member) : apply_pixels<false>(member);
    weigh_sizes(member, sweep);
    barrier_.wait(member.size);
  }
}

// The sizes of a member's share of the labels, as PixelPhase wants them.
template <class Label, class Count>
void SeedsTeam<Label, Count>::weigh_sizes(const Member& member, const SeedsSweep& sweep) {
  const Range labels = member.share(schedule_.num_labels);
  for (int64_t label = labels.begin; label < labels.end; ++label) {
    const uint32_t total = totals_[label];
    const float weight = inverse_square(total);
    stay_[label] = total <= sweep.min_total ? std::numeric_limits<float>::infinity() : weight;
    enter_[label] = total > sweep.max_total ? 0.0f : weight;
  }
}

// As apply_cells. Alone, a member owns every label.
template <class Label, class Count>
template <bool kAlone>
void SeedsTeam<Label, Count>::apply_pixels(const Member& member) {
  const Range labels = member.share(schedule_.num_labels);
  const auto mine = [&](uint32_t label) { return kAlone || (label >= labels.begin && label < labels.end); };
  const uint16_t* const bins = bins_.data() + stride_ + 1;
  for (int rank = 0; rank < member.size; ++rank) {
    const PixelMove* const moves = own_[rank].pixel_moves.data();
    for (int64_t i = 0; i < own_[rank].moved; ++i) {
      const PixelMove move = moves[i];
      const uint32_t bin = bins[move.pixel];
      if (mine(move.from)) {
        --histogram_[move.from * num_bins_ + bin];
        --totals_[move.from];
      }
      if (mine(move.to)) {
        ++histogram_[move.to * num_bins_ + bin];
        ++totals_[move.to];
      }
    }
  }
  const Own& own = own_[member.rank];
  for (int64_t i = 0; i < own.moved; ++i) {
    pixels_.origin[own.pixel_moves[i].pixel] = static_cast<Label>(own.pixel_moves[i].to);
  }
}

template class SeedsTeam<uint8_t, uint16_t>;
template class SeedsTeam<uint16_t, uint16_t>;
template class SeedsTeam<uint16_t, uint32_t>;

}  // namespace cast_kernels

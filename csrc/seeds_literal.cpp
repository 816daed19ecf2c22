#include "seeds_literal.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "seeds_bins.h"
#include "seeds_phases.h"
#include "sparse_counter.h"

namespace cast_kernels {
namespace {

using State = SeedsState<uint16_t, uint16_t, uint32_t>;
using Label = State::Label;

struct Move {
  int x, y, direction;
};

// The bins of all cells of a grid, ascending in each cell.
struct CellLists {
  std::vector<CellEntry> entries;
  std::vector<size_t> offset;  // [cells + 1]

  const CellEntry* begin(size_t cell) const { return entries.data() + offset[cell]; }
  const CellEntry* end(size_t cell) const { return entries.data() + offset[cell + 1]; }
};

class Literal {
 public:
  Literal(const SeedsSchedule& schedule, uint64_t shuffle)
      : schedule_(schedule),
        shuffle_(shuffle),
        random_(shuffle),
        labels_(static_cast<size_t>(schedule.width + 2) * (schedule.height + 2), kOutside<Label>),
        totals_(schedule.num_labels),
        inverse_(schedule.num_labels) {}

  void run(const SeedsImage& image, const SeedsColours& colours, int32_t* labels, int64_t stride) {
    quantize(image, colours);
    start_labels();
    size_t level = 0;
    for (const SeedsSweep& sweep : schedule_.sweeps) {
      if (sweep.of_pixels()) break;
      for (; level < static_cast<size_t>(sweep.kind); ++level) refine(level);
      schedule_.wide_sums ? sweep_cells<uint64_t>(sweep) : sweep_cells<uint32_t>(sweep);
    }
    spread_to_pixels(schedule_.cells[level]);
    for (const SeedsSweep& sweep : schedule_.sweeps) {
      if (sweep.of_pixels()) sweep_pixels(sweep);
    }
    for (int y = 0; y < schedule_.height; y += static_cast<int>(stride)) {
      for (int x = 0; x < schedule_.width; x += static_cast<int>(stride)) *labels++ = *pixel_label(x, y);
    }
  }

 private:
  Label* pixel_label(int x, int y) {
    return labels_.data() + static_cast<int64_t>(y + 1) * (schedule_.width + 2) + x + 1;
  }

  void quantize(const SeedsImage& image, const SeedsColours& colours) {
    const JointBins joint(colours);
    std::vector<uint16_t> index(joint.count(), 0);
    bins_.resize(static_cast<size_t>(schedule_.height) * schedule_.width);
    for (int y = 0; y < schedule_.height; ++y) {
      joint.quantize_row(image, y, schedule_.width, bins_.data() + static_cast<size_t>(y) * schedule_.width,
                         index.data());
    }
    num_bins_ = static_cast<uint32_t>(number_used_bins(index));
    for (uint16_t& bin : bins_) bin = index[bin];
  }

  void start_labels() {
    const CellGrid& grid = schedule_.cells[0];
    set_grid(grid);
    histogram_.assign(static_cast<size_t>(schedule_.num_labels) * num_bins_, 0);
    for (int row = 0; row < grid.rows; ++row) {
      for (int column = 0; column < grid.columns; ++column) {
        const size_t cell = static_cast<size_t>(row) * grid.columns + column;
        const int32_t label = schedule_.initial_labels[cell];
        cells_.labels[static_cast<int64_t>(row) * cells_.label_stride + column] = static_cast<Label>(label);
        totals_[label] += cell_size(cells_, column, row);
        for (const CellEntry* entry = lists_.begin(cell); entry != lists_.end(cell); ++entry) {
          histogram_[static_cast<size_t>(label) * num_bins_ + entry->bin] += entry->count;
        }
      }
    }
  }

  // Makes `grid` the current one, with lists of bins and no labels yet.
  void set_grid(const CellGrid& grid) {
    cell_labels_.assign(static_cast<size_t>(grid.columns + 2) * (grid.rows + 2), kOutside<Label>);
    cells_ = {
        grid.columns,    grid.rows, grid.x_edges.data(), grid.y_edges.data(), cell_labels_.data() + grid.columns + 3,
        grid.columns + 2};
    SparseCounter counter(static_cast<int>(num_bins_));
    lists_.entries.clear();
    lists_.offset.assign(1, 0);
    for (int row = 0; row < grid.rows; ++row) {
      for (int column = 0; column < grid.columns; ++column) {
        for (int y = grid.y_edges[row]; y < grid.y_edges[row + 1]; ++y) {
          for (int x = grid.x_edges[column]; x < grid.x_edges[column + 1]; ++x) {
            counter.add(bins_[static_cast<size_t>(y) * schedule_.width + x], 1);
          }
        }
        counter.drain([&](int32_t bin, int32_t count) {
          lists_.entries.push_back({static_cast<uint32_t>(bin), static_cast<uint32_t>(count)});
        });
        lists_.offset.push_back(lists_.entries.size());
      }
    }
  }

  // From cells[level] to the next finer grid: each cell hands its label to its four parts.
  void refine(size_t level) {
    const std::vector<Label> coarse = std::move(cell_labels_);
    const int coarse_stride = cells_.label_stride;
    const CellGrid& grid = schedule_.cells[level + 1];
    set_grid(grid);
    for (int row = 0; row < grid.rows; ++row) {
      for (int column = 0; column < grid.columns; ++column) {
        cells_.labels[static_cast<int64_t>(row) * cells_.label_stride + column] =
            coarse[static_cast<size_t>(row / 2 + 1) * coarse_stride + column / 2 + 1];
      }
    }
  }

  void spread_to_pixels(const CellGrid& grid) {
    for (int row = 0; row < grid.rows; ++row) {
      for (int column = 0; column < grid.columns; ++column) {
        const Label label = cells_.labels[static_cast<int64_t>(row) * cells_.label_stride + column];
        const int x = grid.x_edges[column];
        for (int y = grid.y_edges[row]; y < grid.y_edges[row + 1]; ++y) {
          std::fill_n(pixel_label(x, y), grid.x_edges[column + 1] - x, label);
        }
      }
    }
  }

  State state() {
    return {schedule_.width, schedule_.height,  pixel_label(0, 0), schedule_.width + 2, bins_.data(),
            schedule_.width, histogram_.data(), num_bins_,         totals_.data(),      inverse_.data()};
  }

  // Calls decide(x, y) for every site of the phase, then apply(move) for every one that wants to move.
  template <class Decide, class Apply>
  void phase(int number, int columns, int rows, Decide decide, Apply apply) {
    std::vector<std::pair<int, int>> sites;
    for (int y = phase_row(number); y < rows; y += 2) {
      for (int x = phase_column(number); x < columns; x += 2) sites.emplace_back(x, y);
    }
    if (shuffle_ != 0) std::shuffle(sites.begin(), sites.end(), random_);
    std::vector<Move> moves;
    for (const auto& [x, y] : sites) {
      const int direction = decide(x, y);
      if (direction != kStay) moves.push_back({x, y, direction});
    }
    if (shuffle_ != 0) std::shuffle(moves.begin(), moves.end(), random_);
    for (const Move& move : moves) apply(move);
  }

  static constexpr auto kAdd = [](uint32_t* to, int change) { *to += static_cast<uint32_t>(change); };

  template <class Sum>
  void sweep_cells(const SeedsSweep& sweep) {
    const State now = state();
    const SeedsRules rules{sweep.min_total, sweep.max_total, nullptr};
    const auto index = [&](int x, int y) { return static_cast<size_t>(y) * cells_.columns + x; };
    for (int number = 0; number < kPhases; ++number) {
      phase(
          number, cells_.columns, cells_.rows,
          [&](int x, int y) {
            const size_t cell = index(x, y);
            return decide_cell<Sum>(now, rules, cells_, x, y, lists_.begin(cell), lists_.end(cell));
          },
          [&](const Move& m) {
            const size_t cell = index(m.x, m.y);
            move_cell(now, cells_, m.x, m.y, m.direction, lists_.begin(cell), lists_.end(cell), kAdd);
          });
    }
  }

  void sweep_pixels(const SeedsSweep& sweep) {
    const State now = state();
    const bool wide = sweep.kind == SweepKind::wide;
    const SeedsRules rules{sweep.min_total, sweep.max_total, wide ? schedule_.wide_factors : schedule_.narrow_factors};
    for (int number = 0; number < kPhases; ++number) {
      std::transform(totals_.begin(), totals_.end(), inverse_.begin(), inverse_square);
      phase(
          number, schedule_.width, schedule_.height,
          [&](int x, int y) {
            return wide ? decide_pixel<true>(now, rules, x, y) : decide_pixel<false>(now, rules, x, y);
          },
          [&](const Move& m) { move_pixel(now, m.x, m.y, m.direction, kAdd); });
    }
  }

  const SeedsSchedule& schedule_;
  const uint64_t shuffle_;
  std::mt19937_64 random_;
  uint32_t num_bins_ = 0;  // used by this image
  std::vector<uint16_t> bins_;
  std::vector<Label> labels_;  // of pixels, framed
  std::vector<Label> cell_labels_;
  SeedsCells<Label> cells_{};
  CellLists lists_;
  std::vector<uint32_t> histogram_;
  std::vector<uint32_t> totals_;
  std::vector<float> inverse_;
};

}  // namespace

void seeds_literal(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule,
                   const SeedsColours& colours, int64_t stride, uint64_t shuffle) {
  const int64_t size = LabelGrid(images.height, images.width, stride).size();
  for (int64_t i = 0; i < images.batch; ++i) {
    Literal(schedule, shuffle).run(images.image(i), colours, labels + i * size, stride);
  }
}

}  // namespace cast_kernels

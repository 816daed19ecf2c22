#include "seeds_schedule.h"

#include <algorithm>
#include <stdexcept>

namespace cast_kernels {
namespace {

constexpr int kMaxPercent = 10000;
constexpr int kWidePower = 5;  // of the prior; larger is smoother
constexpr int kNarrowPower = 8;

// Joint Lab bins that the 2^24 colours of sRGB reach, by bins per channel (the test counts them).
constexpr int kLabBins[] = {0,    1,    8,    22,   36,   61,   81,   120,  159,  210,  269,  338,  413,  509,
                            608,  734,  855,  1014, 1160, 1327, 1522, 1736, 1957, 2205, 2463, 2757, 3050, 3376,
                            3732, 4095, 4500, 4934, 5387, 5855, 6348, 6883, 7433, 8018, 8623, 9296, 9955};

uint32_t max_cell_size(const CellGrid& grid) {
  const auto longest = [](const std::vector<int32_t>& edges) {
    int32_t most = 0;
    for (size_t i = 1; i < edges.size(); ++i) most = std::max(most, edges[i] - edges[i - 1]);
    return static_cast<uint32_t>(most);
  };
  return longest(grid.x_edges) * longest(grid.y_edges);
}

int32_t shortest(const std::vector<int32_t>& edges) {
  int32_t least = INT32_MAX;
  for (size_t i = 1; i < edges.size(); ++i) least = std::min(least, edges[i] - edges[i - 1]);
  return least;
}

std::vector<int32_t> halved(const std::vector<int32_t>& edges) {
  std::vector<int32_t> finer;
  for (size_t i = 1; i < edges.size(); ++i) {
    finer.push_back(edges[i - 1]);
    finer.push_back((edges[i - 1] + edges[i]) / 2);
  }
  finer.push_back(edges.back());
  return finer;
}

// (other / own) ^ power in float64, by products alone, rounded once; a count of 0 says nothing.
void fill_factors(float* factors, int power) {
  for (int own = 0; own < 16; ++own) {
    for (int other = 0; other < 16; ++other) {
      const double ratio = own == 0 || other == 0 ? 1.0 : static_cast<double>(other) / own;
      double product = 1.0;
      for (int i = 0; i < power; ++i) product *= ratio;
      factors[own * 16 + other] = static_cast<float>(product);
    }
  }
}

void check_steps(const std::vector<SeedsStep>& steps) {
  int before = 0;
  for (const SeedsStep& step : steps) {
    const int kind = static_cast<int>(step.kind);
    if (kind < 0 || kind > static_cast<int>(SweepKind::narrow)) throw std::invalid_argument("unknown kind of sweep");
    const int stage = std::min(kind, static_cast<int>(SweepKind::wide));  // wide and narrow sweeps mix freely
    if (stage < before) throw std::invalid_argument("expected sweeps from coarse to fine");
    before = stage;
    if (step.repeats < 0 || step.min_percent < 0 || step.min_percent > 100 || step.max_percent < 100 ||
        step.max_percent > kMaxPercent) {
      throw std::invalid_argument("expected repeats >= 0 and limits 0..100 and 100..10000 percent");
    }
  }
}

std::vector<int32_t> initial_labels(const SeedsGrid& grid, const CellGrid& blocks) {
  std::vector<int32_t> labels;
  // A block belongs to the superpixel of its last pixel.
  for (int row = 0; row < blocks.rows; ++row) {
    const int64_t label_row = static_cast<int64_t>(blocks.y_edges[row + 1] - 1) * grid.top().rows / grid.height;
    for (int column = 0; column < blocks.columns; ++column) {
      const int64_t label_column =
          static_cast<int64_t>(blocks.x_edges[column + 1] - 1) * grid.top().columns / grid.width;
      labels.push_back(static_cast<int32_t>(label_row * grid.top().columns + label_column));
    }
  }
  return labels;
}

// In a phase each site of a superpixel lets in at most two others: of its four neighbours two share a colour. A
// superpixel that has passed its limit grows no more.
uint32_t most_pixels(const SeedsSchedule& schedule) {
  std::vector<int64_t> totals(schedule.num_labels, 0);
  const CellGrid& blocks = schedule.cells[0];
  for (size_t i = 0; i < schedule.initial_labels.size(); ++i) {
    const int column = static_cast<int>(i) % blocks.columns;
    const int row = static_cast<int>(i) / blocks.columns;
    totals[schedule.initial_labels[i]] += static_cast<int64_t>(blocks.x_edges[column + 1] - blocks.x_edges[column]) *
                                          (blocks.y_edges[row + 1] - blocks.y_edges[row]);
  }
  int64_t most = *std::max_element(totals.begin(), totals.end());
  for (const SeedsSweep& sweep : schedule.sweeps) {
    int64_t ratio = 1;  // of the largest site to the smallest, rounded up
    if (!sweep.of_pixels()) {
      const CellGrid& grid = schedule.cells[static_cast<int>(sweep.kind)];
      const int64_t least = static_cast<int64_t>(shortest(grid.x_edges)) * shortest(grid.y_edges);
      ratio = (grid.max_size + least - 1) / least;
    }
    most = std::max(most, sweep.max_total * (1 + 2 * ratio));
  }
  return static_cast<uint32_t>(std::min(most, static_cast<int64_t>(schedule.width) * schedule.height));
}

}  // namespace

std::vector<SeedsStep> seeds_steps(const std::string& quality) {
  const bool best = quality == "best";
  if (!best && quality != "fast") throw std::invalid_argument("expected quality to be best or fast, got " + quality);
  constexpr int kMin = 36, kMax = 170;
  return {{SweepKind::blocks, best ? 3 : 2, kMin, kMax},
          {SweepKind::halves, 2, kMin, kMax},
          {SweepKind::quarters, 1, kMin, kMax},
          {SweepKind::wide, best ? 9 : 4, kMin, kMax},
          {SweepKind::narrow, best ? 4 : 2, kMin, kMax}};
}

SeedsSchedule seeds_schedule(int64_t height, int64_t width, int64_t num_superpixels,
                             const std::vector<SeedsStep>& steps) {
  check_steps(steps);
  const SeedsGrid grid = seeds_grid(height, width, num_superpixels, 1);
  SeedsSchedule schedule{};
  schedule.width = grid.width;
  schedule.height = grid.height;
  schedule.num_labels = grid.num_labels();
  fill_factors(schedule.wide_factors, kWidePower);
  fill_factors(schedule.narrow_factors, kNarrowPower);

  CellGrid cells{grid.levels[0].columns, grid.levels[0].rows, cell_edges(grid.width, grid.levels[0].columns),
                 cell_edges(grid.height, grid.levels[0].rows), 0};
  for (int kind = 0; kind <= static_cast<int>(SweepKind::quarters); ++kind) {
    cells.max_size = max_cell_size(cells);
    schedule.cells.push_back(cells);
    if (shortest(cells.x_edges) < 2 || shortest(cells.y_edges) < 2) break;  // an empty cell would link what is apart
    cells = {2 * cells.columns, 2 * cells.rows, halved(cells.x_edges), halved(cells.y_edges), 0};
  }
  schedule.initial_labels = initial_labels(grid, schedule.cells[0]);

  const int64_t mean = height * width / schedule.num_labels;
  for (const SeedsStep& step : steps) {
    const SeedsSweep sweep{step.kind, static_cast<uint32_t>(mean * step.min_percent / 100),
                           static_cast<uint32_t>(std::min(mean * step.max_percent / 100, height * width))};
    if (!sweep.of_pixels() && static_cast<size_t>(step.kind) >= schedule.cells.size()) continue;
    schedule.sweeps.insert(schedule.sweeps.end(), step.repeats, sweep);
  }
  schedule.most_pixels = most_pixels(schedule);
  schedule.wide_sums = static_cast<uint64_t>(schedule.most_pixels) * schedule.cells[0].max_size > UINT32_MAX;
  return schedule;
}

int64_t seeds_max_bins(int64_t height, int64_t width, int64_t bins, bool lab) {
  const int64_t joint = lab ? kLabBins[bins] : bins * bins * bins;
  return std::min(joint, height * width);
}

}  // namespace cast_kernels

#include "seeds_plans.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace cast_kernels {
namespace {

#include "seeds_window.inl"

void check_size(const SeedsGrid& grid) {
  const int side = std::max(grid.width, grid.height);
  if (side > kMaxTeamSide || static_cast<int64_t>(grid.width) * grid.height > kMaxTeamPixels) {
    throw std::invalid_argument("expected an image of at most " + std::to_string(kMaxTeamSide) + " pixels a side and " +
                                std::to_string(kMaxTeamPixels) + " in all, got " + std::to_string(grid.height) + " x " +
                                std::to_string(grid.width));
  }
}

}  // namespace

SequentialPlan sequential_plan(const SeedsGrid& grid, const SeedsOptions& options) {
  check_size(grid);
  SequentialPlan plan{};
  plan.width = grid.width;
  plan.height = grid.height;
  plan.num_labels = grid.num_labels();
  plan.depth = static_cast<int>(grid.levels.size());
  for (int i = 0; i < plan.depth; ++i) {
    plan.columns[i] = grid.levels[i].columns;
    plan.rows[i] = grid.levels[i].rows;
  }
  plan.bins = static_cast<int>(options.bins);
  plan.max_bins = static_cast<uint32_t>(seeds_max_bins(grid.height, grid.width, options.bins, options.lab));
  plan.prior = static_cast<int>(options.prior);
  plan.iterations = static_cast<int>(options.iterations);
  plan.double_step = options.double_step;
  plan.lab = options.lab;
  const PowerTable table(plan.prior);
  for (int own = 0; own < 16; ++own) std::copy_n(table.power[own], 16, plan.power + 16 * own);
  return plan;
}

ParallelPlan parallel_plan(const SeedsGrid& grid, const SeedsSchedule& schedule, const SeedsColours& colours) {
  check_size(grid);
  if (schedule.sweeps.size() > kMaxSweeps) {
    throw std::invalid_argument("expected at most " + std::to_string(kMaxSweeps) + " sweeps, got " +
                                std::to_string(schedule.sweeps.size()));
  }
  ParallelPlan plan{};
  plan.width = grid.width;
  plan.height = grid.height;
  plan.num_labels = schedule.num_labels;
  plan.label_columns = grid.top().columns;
  plan.label_rows = grid.top().rows;
  plan.columns = schedule.cells[0].columns;
  plan.rows = schedule.cells[0].rows;
  plan.grids = static_cast<int>(schedule.cells.size());
  for (int i = 0; i < plan.grids; ++i) plan.max_size[i] = schedule.cells[i].max_size;
  plan.num_sweeps = static_cast<int>(schedule.sweeps.size());
  for (int i = 0; i < plan.num_sweeps; ++i) {
    const SeedsSweep& sweep = schedule.sweeps[i];
    plan.sweeps[i] = {static_cast<uint8_t>(sweep.kind), sweep.min_total, sweep.max_total};
  }
  while (kWindow << plan.window_bits < grid.width) ++plan.window_bits;
  plan.bins = static_cast<int>(colours.bins);
  plan.max_bins = static_cast<uint32_t>(seeds_max_bins(grid.height, grid.width, colours.bins, colours.lab));
  plan.lab = colours.lab;
  std::copy_n(schedule.wide_factors, 256, plan.factors);
  std::copy_n(schedule.narrow_factors, 256, plan.factors + 256);
  return plan;
}

}  // namespace cast_kernels

// The parallel order of SEEDS as a list of launches: one for each step, over all images of a batch, for teams that have
// no barrier but the end of a launch.
#pragma once

#include "seeds_parallel_steps.h"

namespace cast_kernels {

enum class GridStep {
  reset,
  quantise,
  number_bins,  // by a team with a barrier for each image
  index_bins,
  clear_dense,
  count_dense,
  list_bins,
  start_labels,
  refine,
  find_cells,
  decide_cells,
  move_cells,
  spread_labels,
  mark_border,
  find_pixels,
  decide_pixels,
  decide_corners,
  move_pixels,
  write_labels,
};

template <GridStep step>
struct GridStepTag {
  static constexpr GridStep value = step;
};

// What else a step needs to know; what it does not need is zero.
struct GridArguments {
  Phase phase;
  int grid;
  int stride;
};

// Calls launch(GridStepTag, GridArguments) for every step in order.
template <class Launch>
inline void launch_grid_steps(const ParallelPlan& plan, int stride, Launch launch) {
  const auto prepare_cells = [&](int grid) {
    if (plan.is_dense(grid)) {
      launch(GridStepTag<GridStep::clear_dense>{}, GridArguments{{}, grid, 0});
      launch(GridStepTag<GridStep::count_dense>{}, GridArguments{{}, grid, 0});
    } else if (plan.is_listed(grid)) {
      launch(GridStepTag<GridStep::list_bins>{}, GridArguments{{}, grid, 0});
    }
  };
  launch(GridStepTag<GridStep::reset>{}, GridArguments{});
  launch(GridStepTag<GridStep::quantise>{}, GridArguments{});
  launch(GridStepTag<GridStep::number_bins>{}, GridArguments{});
  launch(GridStepTag<GridStep::index_bins>{}, GridArguments{});
  prepare_cells(0);
  launch(GridStepTag<GridStep::start_labels>{}, GridArguments{});
  int grid = 0;
  int i = 0;
  for (; i < plan.num_phases() && !plan.of_pixels(i / kPhases); ++i) {
    const Phase phase{i / kPhases, i % kPhases};
    while (grid < plan.sweeps[phase.sweep].kind) {
      launch(GridStepTag<GridStep::refine>{}, GridArguments{{}, ++grid, 0});
      prepare_cells(grid);
    }
    const GridArguments arguments{phase, grid, 0};
    launch(GridStepTag<GridStep::find_cells>{}, arguments);
    launch(GridStepTag<GridStep::decide_cells>{}, arguments);
    launch(GridStepTag<GridStep::move_cells>{}, arguments);
  }
  launch(GridStepTag<GridStep::spread_labels>{}, GridArguments{{}, grid, 0});
  launch(GridStepTag<GridStep::mark_border>{}, GridArguments{});
  for (; i < plan.num_phases(); ++i) {
    const GridArguments arguments{{i / kPhases, i % kPhases}, 0, 0};
    launch(GridStepTag<GridStep::find_pixels>{}, arguments);
    launch(GridStepTag<GridStep::decide_pixels>{}, arguments);
    launch(GridStepTag<GridStep::decide_corners>{}, arguments);
    launch(GridStepTag<GridStep::move_pixels>{}, arguments);
  }
  launch(GridStepTag<GridStep::write_labels>{}, GridArguments{{}, 0, stride});
}

// One step on one image; all but number_bins.
template <GridStep step, class Team, class State>
CAST_HOST_DEVICE inline void run_grid_step(const Team& team, const ParallelPlan& plan, const State& state,
                                           const LabTables& tables, const SeedsImage& image, int32_t* labels,
                                           const GridArguments& arguments) {
  (void)tables, (void)image, (void)labels, (void)arguments;  // most steps need none of them
  if constexpr (step == GridStep::reset) reset(team, plan, state);
  if constexpr (step == GridStep::quantise) {
    quantise_fours(team, tables, image, plan.width, plan.height, plan.bins, plan.lab, state.used, state.joint,
                   label_stride<typename State::Label>(plan));
  }
  if constexpr (step == GridStep::index_bins) index_bins(team, plan, state);
  if constexpr (step == GridStep::clear_dense) clear_dense(team, plan, state, arguments.grid);
  if constexpr (step == GridStep::count_dense) count_dense(team, plan, state, arguments.grid);
  if constexpr (step == GridStep::list_bins) list_bins(team, plan, state, arguments.grid);
  if constexpr (step == GridStep::start_labels) start_labels(team, plan, state);
  if constexpr (step == GridStep::refine) refine(team, plan, state, arguments.grid);
  if constexpr (step == GridStep::find_cells) find_cells(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::decide_cells) decide_cells(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::move_cells) move_cells(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::spread_labels) spread_labels(team, plan, state, arguments.grid);
  if constexpr (step == GridStep::mark_border) mark_border(team, plan, state);
  if constexpr (step == GridStep::find_pixels) find_pixels(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::decide_pixels) decide_pixels<kSiteList>(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::decide_corners) decide_pixels<kCornerList>(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::move_pixels) move_pixels(team, plan, state, arguments.phase);
  if constexpr (step == GridStep::write_labels) write_labels(team, plan, state, arguments.stride, labels);
}

}  // namespace cast_kernels

// The parallel order of SEEDS by a team that has a barrier: one image from pixels to labels.
#pragma once

#include "seeds_parallel_steps.h"

namespace cast_kernels {

// Joint bins of all pixels; returns how many different ones there are.
template <class Team, class State>
CAST_HOST_DEVICE inline uint32_t start_image(Team& team, const ParallelPlan& plan, const State& state,
                                             const LabTables& tables, const SeedsImage& image) {
  reset(team, plan, state);
  team.barrier();
  quantise(team, tables, image, plan.width, plan.height, plan.bins, plan.lab, state.used, state.joint);
  team.barrier();
  const uint32_t num_bins = number_bins(team, state.used, plan.bins, state.partial);
  if (team.rank() == 0) *state.num_bins = num_bins;
  team.barrier();
  return num_bins;
}

template <class Team, class State>
CAST_HOST_DEVICE inline void fill_dense(Team& team, const ParallelPlan& plan, const State& state, int grid) {
  if (!plan.is_dense(grid)) return;
  clear_dense(team, plan, state, grid);
  team.barrier();
  count_dense(team, plan, state, grid);
  team.barrier();
}

// After start_image: the labels of all pixels, in state.labels.
template <class Team, class State>
CAST_HOST_DEVICE inline void label_image(Team& team, const ParallelPlan& plan, const State& state) {
  index_bins(team, plan, state);
  team.barrier();
  fill_dense(team, plan, state, 0);
  start_labels(team, plan, state);
  team.barrier();
  int grid = 0;
  int sweep = 0;
  for (; sweep < plan.num_sweeps && !plan.of_pixels(sweep); ++sweep) {
    while (grid < plan.sweeps[sweep].kind) {
      refine(team, plan, state, ++grid);
      team.barrier();
      fill_dense(team, plan, state, grid);
    }
    for (int number = 0; number < kPhases; ++number) {
      const Phase phase{sweep, number};
      find_cells(team, plan, state, phase);
      team.barrier();
      decide_cells(team, plan, state, phase);
      team.barrier();
      move_cells(team, plan, state, phase);
      team.barrier();
    }
  }
  spread_labels(team, plan, state, grid);
  team.barrier();
  for (; sweep < plan.num_sweeps; ++sweep) {
    for (int number = 0; number < kPhases; ++number) {
      const Phase phase{sweep, number};
      find_pixels(team, plan, state, phase);
      team.barrier();
      decide_pixels(team, plan, state, phase);
      team.barrier();
      move_pixels(team, plan, state, phase);
      team.barrier();
    }
  }
}

}  // namespace cast_kernels

// The parallel order of SEEDS by a team that has a barrier: one image from pixels to labels.
#pragma once

#include "seeds_launch.h"
#include "seeds_parallel_steps.h"

namespace cast_kernels {

// Joint bins of all pixels; returns how many different ones there are.
template <class Team, class State>
CAST_HOST_DEVICE inline uint32_t start_image(Team& team, const ParallelPlan& plan, const State& state,
                                             const LabTables& tables, const SeedsImage& image) {
  reset(team, plan, state);
  team.barrier();
  quantise_fours(team, tables, image, plan.width, plan.height, plan.bins, plan.lab, state.used, state.joint,
                 label_stride<typename State::Label>(plan));
  team.barrier();
  const uint32_t num_bins = number_bins(team, state.used, plan.bins, state.partial);
  if (team.rank() == 0) *state.num_bins = num_bins;
  team.barrier();
  return num_bins;
}

// What visit_bins reads of the cells of a grid.
template <class Team, class State>
CAST_HOST_DEVICE inline void prepare_cells(Team& team, const ParallelPlan& plan, const State& state, int grid) {
  if (plan.is_dense(grid)) {
    clear_dense(team, plan, state, grid);
    team.barrier();
    count_dense(team, plan, state, grid);
    team.barrier();
  } else if (plan.is_listed(grid)) {
    list_bins(team, plan, state, grid);
    team.barrier();
  }
}

// After start_image: the labels of all pixels, in state.labels.
template <class Team, class State>
CAST_HOST_DEVICE inline void label_image(Team& team, const ParallelPlan& plan, const State& state) {
  index_bins(team, plan, state);
  team.barrier();
  prepare_cells(team, plan, state, 0);
  start_labels(team, plan, state);
  team.barrier();
  int grid = 0;
  int i = 0;
  for (; i < plan.num_phases() && !plan.of_pixels(i / kPhases); ++i) {
    const Phase phase{i / kPhases, i % kPhases};
    while (grid < plan.sweeps[phase.sweep].kind) {
      refine(team, plan, state, ++grid);
      team.barrier();
      prepare_cells(team, plan, state, grid);
    }
    find_cells(team, plan, state, phase);
    team.group().barrier();
    decide_cells(team, plan, state, phase);
    team.barrier();
    move_cells(team, plan, state, phase);
    team.barrier();
  }
  spread_labels(team, plan, state, grid);
  team.barrier();
  mark_border(team, plan, state);
  team.barrier();
  for (; i < plan.num_phases(); ++i) {
    const Phase phase{i / kPhases, i % kPhases};
    find_pixels(team, plan, state, phase);
    team.group().barrier();
    decide_pixels<kSiteList>(team, plan, state, phase);
    team.group().barrier();
    decide_pixels<kCornerList>(team, plan, state, phase);
    team.barrier();
    move_pixels(team, plan, state, phase);
    team.barrier();
  }
}

// One image by the team of a block, from the memory that `launch` asks for: shared memory and a piece of the workspace.
template <bool kNearBins, class Team>
CAST_HOST_DEVICE inline void label_by_block(Team& team, const ParallelPlan& plan, const ParallelLaunch& launch,
                                            const LabTables& tables, const SeedsImage& image, char* shared, char* slot,
                                            int stride, int32_t* labels) {
  BlockState state;
  uint16_t* far_histogram;
  Replay far(slot, launch.far);
  Replay near(shared, launch.near);
  lay_out_block_far(plan, kNearBins, launch.list_words, far, &state, &far_histogram);
  lay_out_block_near(plan, kNearBins, near, &state);
  const uint32_t used = start_image(team, plan, state, tables, image);
  const bool is_near = used <= launch.near_used;
  const size_t lists = static_cast<size_t>(reinterpret_cast<char*>(state.histogram) - shared) +
                       (is_near ? block_histogram_bytes(plan, used) : 0);
  state.near_lists = reinterpret_cast<uint32_t*>(shared + lists);
  state.near_words = static_cast<uint32_t>((launch.shared_bytes - lists) / sizeof(uint32_t));
  if (is_near) {
    label_image(team, plan, state);
  } else {
    label_image(team, plan, BlockManyBins{state, state.joint, far_histogram});
  }
  write_labels(team, plan, state, stride, labels);
}

// The same by the team of a cluster; `shared` is that of the calling thread's block.
template <class Count, class Team>
CAST_HOST_DEVICE inline void label_by_cluster(Team& team, const ParallelPlan& plan, const ParallelLaunch& launch,
                                              const LabTables& tables, const SeedsImage& image, char* shared,
                                              char* slot, int stride, int32_t* labels) {
  ParallelState<uint16_t, uint16_t, Count> state;
  Replay far(slot, launch.far);
  Replay near(shared, launch.near);
  lay_out_cluster_far(plan, launch.list_words, team.group_index(), far, &state);
  lay_out_cluster_near(plan, near, &state);
  const auto lists = static_cast<size_t>(reinterpret_cast<char*>(state.near_lists) - shared);
  state.near_words = static_cast<uint32_t>((launch.shared_bytes - lists) / sizeof(uint32_t));
  start_image(team, plan, state, tables, image);
  label_image(team, plan, state);
  write_labels(team, plan, state, stride, labels);
}

}  // namespace cast_kernels

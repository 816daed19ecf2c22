// From a request to what the teams of the GPU follow.
#pragma once

#include "seeds_grid.h"
#include "seeds_parallel_state.h"
#include "seeds_schedule.h"
#include "seeds_sequential.h"
#include "seeds_sequential_state.h"

namespace cast_kernels {

// Throw std::invalid_argument where an image is larger than the teams can hold.
SequentialPlan sequential_plan(const SeedsGrid& grid, const SeedsOptions& options);
ParallelPlan parallel_plan(const SeedsGrid& grid, const SeedsSchedule& schedule, const SeedsColours& colours);

}  // namespace cast_kernels

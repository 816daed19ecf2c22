// Parallel SEEDS word by word: one thread, the functions of seeds_phases.h in the order in which they are defined to
// happen. The oracle of every other driver.
#pragma once

#include <cstdint>

#include "seeds_image.h"
#include "seeds_schedule.h"

namespace cast_kernels {

// Writes labels [B, ceil(H / stride), ceil(W / stride)]: those of the top left pixels of all stride x stride squares.
// A `shuffle` other than 0 seeds a random order of the decisions and of the moves within each phase.
void seeds_literal(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule,
                   const SeedsColours& colours, int64_t stride, uint64_t shuffle);

}  // namespace cast_kernels

// Parallel SEEDS on CPU threads, as fast as we know how; label for label equal to seeds_literal.
#pragma once

#include <cstdint>

#include "seeds_image.h"
#include "seeds_schedule.h"

namespace cast_kernels {

// Writes labels [B, ceil(H / stride), ceil(W / stride)]: those of the top left pixels of all stride x stride squares.
// The images are shared out over at most `threads` threads, or all threads work on one image where there are fewer
// large images than threads. Neither the threads nor the instruction set (simd.h) change a label.
// Throws std::invalid_argument before anything is written.
void seeds_parallel(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule,
                    const SeedsColours& colours, int64_t stride, int64_t threads);

}  // namespace cast_kernels

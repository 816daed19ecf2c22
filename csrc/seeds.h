// SEEDS superpixels of a batch of images on CPU threads.
#pragma once

#include <cstdint>
#include <vector>

#include "seeds_image.h"
#include "seeds_schedule.h"
#include "seeds_sequential.h"

namespace cast_kernels {

// Both write labels [B, LabelGrid(H, W, stride)], contiguous, which do not depend on the number of threads, and throw
// std::invalid_argument before anything is written.

// The order of OpenCV. The images are shared out over at most `threads` threads.
void seeds_sequential(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels, int64_t num_levels,
                      const SeedsOptions& options, int64_t stride, int64_t threads);

// The parallel order, label for label equal to seeds_literal. Images are shared out over the threads, unless more of
// them find work in one image, which then is shared out, too.
void seeds_parallel(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels,
                    const std::vector<SeedsStep>& steps, const SeedsColours& colours, int64_t stride, int64_t threads);

}  // namespace cast_kernels

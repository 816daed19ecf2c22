// SEEDS superpixels of a batch of images on CPU threads.
#pragma once

#include <cstdint>

#include "seeds_image.h"
#include "seeds_sequential.h"

namespace cast_kernels {

// Writes labels [B, H, W], contiguous. The images are shared out over at most `threads` threads; the labels do not
// depend on how many. Throws std::invalid_argument before anything is written.
void seeds_sequential(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels, int64_t num_levels,
                      const SeedsOptions& options, int64_t threads);

}  // namespace cast_kernels

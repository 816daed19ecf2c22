// SEEDS superpixels of a batch of images on CPU threads.
#pragma once

#include <cstdint>

#include "seeds_sequential.h"

namespace cast_kernels {

struct SeedsBatch {
  const uint8_t* pixels;  // [B, H, W, 3], strides in bytes
  int64_t batch, height, width;
  int64_t image_stride, row_stride, column_stride, channel_stride;
};

// Writes labels [B, H, W], contiguous. The images are shared out over at most `threads` threads; the labels do not
// depend on how many. Throws std::invalid_argument before anything is written.
void seeds_sequential(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels, int64_t num_levels,
                      const SeedsOptions& options, int64_t threads);

}  // namespace cast_kernels

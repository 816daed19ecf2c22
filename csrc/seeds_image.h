// Where the pixels of images lie, and how they become bins: common to all orders of SEEDS.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cast_kernels {

struct SeedsImage {
  const uint8_t* pixels;  // [H, W, 3]
  int64_t row_stride;     // bytes
  int64_t column_stride;
  int64_t channel_stride;
};

struct SeedsBatch {
  const uint8_t* pixels;  // [B, H, W, 3], strides in bytes
  int64_t batch, height, width;
  int64_t image_stride, row_stride, column_stride, channel_stride;

  CAST_HOST_DEVICE SeedsImage image(int64_t i) const {
    return {pixels + i * image_stride, row_stride, column_stride, channel_stride};
  }
};

// Labels are written for the top left pixels of all stride x stride squares of an image: [rows, columns] of them.
struct LabelGrid {
  int64_t stride, rows, columns;

  CAST_HOST_DEVICE LabelGrid(int64_t height, int64_t width, int64_t step)
      : stride(step), rows((height + step - 1) / step), columns((width + step - 1) / step) {}
  CAST_HOST_DEVICE int64_t size() const { return rows * columns; }
};

struct SeedsColours {
  int64_t bins;  // per channel, 1..kMaxBins
  bool lab;      // convert RGB to Lab first
};

constexpr int kMaxBins = 40;  // 40 ^ 3 joint bins fit 16 bits

}  // namespace cast_kernels

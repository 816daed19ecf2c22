// The pixel stage of sequential SEEDS: single pixels move between neighbouring superpixels.
// Plain data only: seeds_pixels_<level>.cpp are compiled with different instruction sets, and an inline function of
// the standard library in one of them could be the copy that the linker keeps for all.
#pragma once

#include <cstdint>

namespace cast_kernels {

// One orientation of the image. The columns of the image are the rows of the other plane, so that the vertical pass
// reads memory in order, too.
struct PixelPlane {
  uint16_t* labels;
  const uint16_t* bins;
  int64_t stride;  // pixels, both arrays
  int rows;
  int columns;
};

// A row, and the list of its pairs, may be read or written this many elements past its end.
constexpr int kPlanePadding = 64;

struct PixelState {
  PixelPlane image;       // [H, W]
  PixelPlane transposed;  // [W, H]; both with one more row of labels, see vertical_wrap
  float* histogram;       // [bins, labels], so that neighbours share cache lines
  float* totals;          // [labels], pixels of each
  int num_labels;
  uint32_t* pairs;    // scratch of one row, max(H, W) + kPlanePadding
  uint32_t* windows;  // likewise
};

using PixelStage = void (*)(const PixelState& state, int prior, int iterations);

void seeds_pixels_scalar(const PixelState& state, int prior, int iterations);
void seeds_pixels_avx2(const PixelState& state, int prior, int iterations);
void seeds_pixels_avx512(const PixelState& state, int prior, int iterations);

}  // namespace cast_kernels

// 8-bit RGB -> Lab of whole tensors.
#pragma once

#include <cstdint>

namespace cast_kernels {

// Channel c of a colour lies at group * group_stride + pixel * pixel_stride + c * channel_stride, the same in input
// and output: one group of all pixels where the channels come last, one group per image where they come first.
struct ColourLayout {
  int64_t groups, pixels;
  int64_t group_stride, pixel_stride, channel_stride;
};

void rgb_to_lab(const uint8_t* rgb, uint8_t* lab, const ColourLayout& layout);

#if defined(CAST_CUDA)
// On device pointers, queued on the given stream of the current device.
void rgb_to_lab_cuda(const uint8_t* rgb, uint8_t* lab, const ColourLayout& layout, uintptr_t stream);
#endif

}  // namespace cast_kernels

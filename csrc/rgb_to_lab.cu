#include <algorithm>

#include "common.cuh"
#include "lab.h"
#include "rgb_to_lab.h"

namespace cast_kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;  // the loop takes the rest

__device__ const LabTables device_tables;

__global__ void rgb_to_lab_kernel(const uint8_t* __restrict__ rgb,  // layout
                                  uint8_t* __restrict__ lab,        // layout
                                  ColourLayout layout) {
  const int64_t count = layout.groups * layout.pixels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t at = i / layout.pixels * layout.group_stride + i % layout.pixels * layout.pixel_stride;
    const int64_t next = layout.channel_stride;
    const Lab8 colour = lab_from_rgb(device_tables, rgb[at], rgb[at + next], rgb[at + 2 * next]);
    lab[at] = colour.l;
    lab[at + next] = colour.a;
    lab[at + 2 * next] = colour.b;
  }
}

}  // namespace

void rgb_to_lab_cuda(const uint8_t* rgb, uint8_t* lab, const ColourLayout& layout, uintptr_t stream) {
  const int64_t count = layout.groups * layout.pixels;
  if (count == 0) return;  // an empty grid is a launch error
  const auto blocks = static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
  rgb_to_lab_kernel<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(rgb, lab, layout);
  check_launch("rgb_to_lab");
}

}  // namespace cast_kernels

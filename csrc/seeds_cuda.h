// SEEDS on a GPU: batches of images on device pointers, queued on a stream of the current device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "seeds_image.h"
#include "seeds_launch.h"
#include "seeds_plans.h"

namespace cast_kernels {

DeviceLimits device_limits();  // of the current device

// Labels are [B, LabelGrid(H, W, stride)], contiguous. The workspace, of workspace_bytes(launch) or
// seeds_sequential_cuda_bytes, holds nothing before or after. Nothing waits for the device, and everything can be
// captured in a graph.
void seeds_parallel_cuda(const SeedsBatch& images, int32_t* labels, const ParallelPlan& plan,
                         const ParallelLaunch& launch, int64_t stride, char* workspace, uintptr_t stream);

size_t seeds_sequential_cuda_bytes(const SequentialPlan& plan, int64_t batch, const DeviceLimits& limits);
void seeds_sequential_cuda(const SeedsBatch& images, int32_t* labels, const SequentialPlan& plan,
                           const DeviceLimits& limits, int64_t stride, char* workspace, uintptr_t stream);

}  // namespace cast_kernels

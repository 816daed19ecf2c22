#include <algorithm>

#include "common.cuh"
#include "lab.h"
#include "seeds_cuda.h"
#include "seeds_sequential_team.h"
#include "team.cuh"

namespace cast_kernels {
namespace {

// One warp decides; the others list pairs, and start and end the image with it. Deciding waits for memory most of the
// time: two blocks share a multiprocessor, for which 256 threads would spill.
constexpr int kThreads = 224;
constexpr int kResidentBlocks = 2;              // of a multiprocessor
constexpr size_t kWorkspace = size_t{2} << 30;  // bytes, unless a single image needs more

__device__ const LabTables device_tables;

__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    seeds_sequential_kernel(const __grid_constant__ SequentialPlan plan, const __grid_constant__ SeedsBatch images,
                            int32_t* labels, int stride, char* workspace, size_t slot_bytes) {
  __shared__ SequentialScratch scratch;
  BlockTeam<kThreads> team;
  SequentialState state;
  lay_out(plan, workspace + blockIdx.x * slot_bytes, &state);
  const int64_t size = LabelGrid(plan.height, plan.width, stride).size();
  for (int64_t i = blockIdx.x; i < images.batch; i += gridDim.x) {
    seeds_sequential_image(team, plan, state, scratch, device_tables, images.image(i), labels + i * size, stride);
  }
}

size_t slot_bytes(const SequentialPlan& plan) {
  SequentialState state;
  return lay_out(plan, nullptr, &state);
}

int slots(const SequentialPlan& plan, int64_t batch, const DeviceLimits& limits) {
  const auto room = static_cast<int64_t>(std::max<size_t>(kWorkspace / slot_bytes(plan), 1));
  const int64_t resident = static_cast<int64_t>(limits.multiprocessors) * kResidentBlocks;
  return static_cast<int>(std::clamp<int64_t>(batch, 1, std::min(room, resident)));
}

}  // namespace

size_t seeds_sequential_cuda_bytes(const SequentialPlan& plan, int64_t batch, const DeviceLimits& limits) {
  return slots(plan, batch, limits) * slot_bytes(plan);
}

void seeds_sequential_cuda(const SeedsBatch& images, int32_t* labels, const SequentialPlan& plan,
                           const DeviceLimits& limits, int64_t stride, char* workspace, uintptr_t stream) {
  if (images.batch == 0) return;  // nothing to queue
  seeds_sequential_kernel<<<slots(plan, images.batch, limits), kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
      plan, images, labels, static_cast<int>(std::min<int64_t>(stride, kMaxTeamSide)), workspace, slot_bytes(plan));
  check_launch("seeds");
}

}  // namespace cast_kernels

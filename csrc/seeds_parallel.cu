#include <algorithm>

#include "seeds_parallel.cuh"

namespace cast_kernels {
namespace {

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "seeds");
  return value;
}

}  // namespace

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "seeds");
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          attribute(cudaDevAttrClusterLaunch, device) != 0 && has_cluster_code()};
}

void seeds_parallel_cuda(const SeedsBatch& images, int32_t* labels, const ParallelPlan& plan,
                         const ParallelLaunch& launch, int64_t stride, char* workspace, uintptr_t stream_handle) {
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  const SeedsOutput output{labels, static_cast<int>(std::min<int64_t>(stride, kMaxTeamSide))};
  const auto run = launch.driver == SeedsDriver::block     ? launch_block
                   : launch.driver == SeedsDriver::cluster ? launch_cluster
                                                           : launch_grid;
  for (int64_t first = 0; first < images.batch; first += launch.slots) {
    SeedsBatch some = images;
    some.pixels = images.pixels + first * images.image_stride;
    some.batch = std::min<int64_t>(images.batch - first, launch.slots);
    run(some, {output.image(plan, first), output.stride}, plan, launch, workspace, stream);
  }
}

}  // namespace cast_kernels

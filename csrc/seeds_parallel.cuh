// What the CUDA drivers of parallel SEEDS have in common, and where the launch hands over to each.
#pragma once

#include "common.cuh"
#include "lab.h"
#include "seeds_cuda.h"
#include "team.cuh"

namespace cast_kernels {

struct SeedsOutput {
  int32_t* labels;
  int stride;

  __host__ __device__ int32_t* image(const ParallelPlan& plan, int64_t i) const {
    return labels + i * LabelGrid(plan.height, plan.width, stride).size();
  }
};

// Each for 1 to launch.slots images.
void launch_block(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                  const ParallelLaunch& launch, char* workspace, cudaStream_t stream);
void launch_cluster(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                    const ParallelLaunch& launch, char* workspace, cudaStream_t stream);
void launch_grid(const SeedsBatch& images, const SeedsOutput& output, const ParallelPlan& plan,
                 const ParallelLaunch& launch, char* workspace, cudaStream_t stream);

// Is the code of the cluster driver there? It is empty for devices without clusters.
bool has_cluster_code();

}  // namespace cast_kernels

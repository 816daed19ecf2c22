// The Python face of csrc: pointers, sizes and flags, no tensors. The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "rgb_to_lab.h"
#include "seeds.h"
#include "seeds_grid.h"
#include "seeds_launch.h"
#include "seeds_literal.h"
#include "seeds_schedule.h"
#include "simd.h"
#if defined(CAST_CUDA)
#include "seeds_cuda.h"
#endif

namespace py = pybind11;
namespace ck = cast_kernels;

namespace {

using Address = uintptr_t;

void seeds_sequential(Address pixels, Address labels, int64_t batch, int64_t height, int64_t width,
                      int64_t image_stride, int64_t row_stride, int64_t column_stride, int64_t channel_stride,
                      int64_t num_superpixels, int64_t bins, int64_t prior, int64_t iterations, int64_t num_levels,
                      bool double_step, bool lab, int64_t stride, int64_t threads) {
  const auto* const data = reinterpret_cast<const uint8_t*>(pixels);
  ck::seeds_sequential({data, batch, height, width, image_stride, row_stride, column_stride, channel_stride},
                       reinterpret_cast<int32_t*>(labels), num_superpixels, num_levels,
                       {bins, prior, iterations, double_step, lab}, stride, threads);
}

// Parallel SEEDS takes its schedule as steps: (kind of sweep, repeats, least and most percent of the mean size).
using Steps = std::vector<std::tuple<int, int, int, int>>;

Steps seeds_steps(const std::string& quality) {
  Steps steps;
  for (const ck::SeedsStep& step : ck::seeds_steps(quality)) {
    steps.emplace_back(static_cast<int>(step.kind), step.repeats, step.min_percent, step.max_percent);
  }
  return steps;
}

std::vector<ck::SeedsStep> as_steps(const Steps& steps) {
  std::vector<ck::SeedsStep> list;
  for (const auto& [kind, repeats, least, most] : steps) {
    list.push_back({static_cast<ck::SweepKind>(kind), repeats, least, most});
  }
  return list;
}

void seeds_parallel(Address pixels, Address labels, int64_t batch, int64_t height, int64_t width, int64_t image_stride,
                    int64_t row_stride, int64_t column_stride, int64_t channel_stride, int64_t num_superpixels,
                    const Steps& steps, int64_t bins, bool lab, int64_t stride, int64_t threads) {
  const auto* const data = reinterpret_cast<const uint8_t*>(pixels);
  ck::seeds_parallel({data, batch, height, width, image_stride, row_stride, column_stride, channel_stride},
                     reinterpret_cast<int32_t*>(labels), num_superpixels, as_steps(steps), {bins, lab}, stride,
                     threads);
}

void seeds_literal(Address pixels, Address labels, int64_t batch, int64_t height, int64_t width, int64_t image_stride,
                   int64_t row_stride, int64_t column_stride, int64_t channel_stride, int64_t num_superpixels,
                   const Steps& steps, int64_t bins, bool lab, int64_t stride, uint64_t shuffle) {
  const auto* const data = reinterpret_cast<const uint8_t*>(pixels);
  ck::seeds_literal({data, batch, height, width, image_stride, row_stride, column_stride, channel_stride},
                    reinterpret_cast<int32_t*>(labels),
                    ck::seeds_schedule(height, width, num_superpixels, as_steps(steps)), {bins, lab}, stride, shuffle);
}

py::dict seeds_schedule_facts(int64_t height, int64_t width, int64_t num_superpixels, const Steps& steps) {
  const ck::SeedsSchedule schedule = ck::seeds_schedule(height, width, num_superpixels, as_steps(steps));
  py::dict facts;
  facts["grids"] = schedule.cells.size();
  facts["sweeps"] = schedule.sweeps.size();
  facts["most_pixels"] = schedule.most_pixels;
  facts["wide_sums"] = schedule.wide_sums;
  return facts;
}

int seeds_count(int64_t height, int64_t width, int64_t num_superpixels, int64_t num_levels) {
  return ck::seeds_grid(height, width, num_superpixels, num_levels).num_labels();
}

void rgb_to_lab(Address rgb, Address lab, int64_t groups, int64_t pixels, int64_t group_stride, int64_t pixel_stride,
                int64_t channel_stride) {
  ck::rgb_to_lab(reinterpret_cast<const uint8_t*>(rgb), reinterpret_cast<uint8_t*>(lab),
                 {groups, pixels, group_stride, pixel_stride, channel_stride});
}

// What the GPU follows for the parallel order, and how a device runs it.
struct ParallelRequest {
  ck::ParallelPlan plan;
  ck::ParallelLaunch launch;

  ParallelRequest(int64_t batch, int64_t height, int64_t width, int64_t num_superpixels, const Steps& steps,
                  int64_t bins, bool lab, int driver, const ck::DeviceLimits& limits) {
    const ck::SeedsSchedule schedule = ck::seeds_schedule(height, width, num_superpixels, as_steps(steps));
    plan = ck::parallel_plan(ck::seeds_grid(height, width, num_superpixels, 1), schedule, {bins, lab});
    launch = ck::parallel_launch(plan, schedule, batch, static_cast<ck::SeedsDriver>(driver), limits);
  }
};

py::dict seeds_parallel_launch(int64_t batch, int64_t height, int64_t width, int64_t num_superpixels,
                               const Steps& steps, int64_t bins, bool lab, int driver, int multiprocessors,
                               size_t block_memory, bool clusters) {
  const ParallelRequest request(batch, height, width, num_superpixels, steps, bins, lab, driver,
                                {multiprocessors, block_memory, clusters});
  py::dict facts;
  facts["driver"] = static_cast<int>(request.launch.driver);
  facts["slots"] = request.launch.slots;
  facts["workspace_bytes"] = ck::workspace_bytes(request.launch);
  facts["shared_bytes"] = request.launch.shared_bytes;
  facts["near_bins"] = request.launch.near_bins;
  facts["near_used"] = request.launch.near_used;
  return facts;
}

#if defined(CAST_CUDA)
void check_workspace(size_t needed, size_t given) {
  if (given < needed) {
    throw std::invalid_argument("expected a workspace of " + std::to_string(needed) + " bytes, got " +
                                std::to_string(given));
  }
}

size_t seeds_parallel_cuda_bytes(int64_t batch, int64_t height, int64_t width, int64_t num_superpixels,
                                 const Steps& steps, int64_t bins, bool lab, int driver) {
  return ck::workspace_bytes(
      ParallelRequest(batch, height, width, num_superpixels, steps, bins, lab, driver, ck::device_limits()).launch);
}

void seeds_parallel_cuda(Address pixels, Address labels, int64_t batch, int64_t height, int64_t width,
                         int64_t image_stride, int64_t row_stride, int64_t column_stride, int64_t channel_stride,
                         int64_t num_superpixels, const Steps& steps, int64_t bins, bool lab, int64_t stride,
                         int driver, Address workspace, size_t workspace_size, uintptr_t stream) {
  const ParallelRequest request(batch, height, width, num_superpixels, steps, bins, lab, driver, ck::device_limits());
  check_workspace(ck::workspace_bytes(request.launch), workspace_size);
  const auto* const data = reinterpret_cast<const uint8_t*>(pixels);
  ck::seeds_parallel_cuda({data, batch, height, width, image_stride, row_stride, column_stride, channel_stride},
                          reinterpret_cast<int32_t*>(labels), request.plan, request.launch, stride,
                          reinterpret_cast<char*>(workspace), stream);
}

size_t seeds_sequential_cuda_bytes(int64_t batch, int64_t height, int64_t width, int64_t num_superpixels, int64_t bins,
                                   int64_t num_levels, bool lab) {
  const ck::SequentialPlan plan =
      ck::sequential_plan(ck::seeds_grid(height, width, num_superpixels, num_levels), {bins, 0, 0, false, lab});
  return ck::seeds_sequential_cuda_bytes(plan, batch, ck::device_limits());
}

void seeds_sequential_cuda(Address pixels, Address labels, int64_t batch, int64_t height, int64_t width,
                           int64_t image_stride, int64_t row_stride, int64_t column_stride, int64_t channel_stride,
                           int64_t num_superpixels, int64_t bins, int64_t prior, int64_t iterations, int64_t num_levels,
                           bool double_step, bool lab, int64_t stride, Address workspace, size_t workspace_size,
                           uintptr_t stream) {
  const ck::SequentialPlan plan = ck::sequential_plan(ck::seeds_grid(height, width, num_superpixels, num_levels),
                                                      {bins, prior, iterations, double_step, lab});
  const ck::DeviceLimits limits = ck::device_limits();
  check_workspace(ck::seeds_sequential_cuda_bytes(plan, batch, limits), workspace_size);
  const auto* const data = reinterpret_cast<const uint8_t*>(pixels);
  ck::seeds_sequential_cuda({data, batch, height, width, image_stride, row_stride, column_stride, channel_stride},
                            reinterpret_cast<int32_t*>(labels), plan, limits, stride,
                            reinterpret_cast<char*>(workspace), stream);
}

void rgb_to_lab_cuda(Address rgb, Address lab, int64_t groups, int64_t pixels, int64_t group_stride,
                     int64_t pixel_stride, int64_t channel_stride, uintptr_t stream) {
  ck::rgb_to_lab_cuda(reinterpret_cast<const uint8_t*>(rgb), reinterpret_cast<uint8_t*>(lab),
                      {groups, pixels, group_stride, pixel_stride, channel_stride}, stream);
}
#endif

py::dict build_info() {
  py::list simd;
  for (const ck::Simd level : ck::simd_compiled()) simd.append(ck::simd_name(level));
  py::dict info;
#if defined(CAST_CUDA)
  info["cuda"] = CAST_CUDA;
#else
  info["cuda"] = py::none();
#endif
  info["cuda_archs"] = py::str(CAST_CUDA_ARCHS).attr("split")();
  info["compiler"] = CAST_COMPILER;
  info["simd"] = simd;
  info["simd_used"] = ck::simd_name(ck::simd_level());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native code of cast_kernels; called through its public functions only.";
  m.def("build_info", &build_info);

  using release = py::call_guard<py::gil_scoped_release>;
  m.def("seeds_sequential", &seeds_sequential, release(), py::arg("pixels"), py::arg("labels"), py::kw_only(),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("image_stride"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("channel_stride"), py::arg("num_superpixels"), py::arg("bins"),
        py::arg("prior"), py::arg("iterations"), py::arg("num_levels"), py::arg("double_step"), py::arg("lab"),
        py::arg("stride"), py::arg("threads"));
  m.def("seeds_literal", &seeds_literal, release(), py::arg("pixels"), py::arg("labels"), py::kw_only(),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("image_stride"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("channel_stride"), py::arg("num_superpixels"), py::arg("steps"),
        py::arg("bins"), py::arg("lab"), py::arg("stride"), py::arg("shuffle"));
  m.def("seeds_parallel", &seeds_parallel, release(), py::arg("pixels"), py::arg("labels"), py::kw_only(),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("image_stride"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("channel_stride"), py::arg("num_superpixels"), py::arg("steps"),
        py::arg("bins"), py::arg("lab"), py::arg("stride"), py::arg("threads"));
  m.def("seeds_steps", &seeds_steps, py::arg("quality"));
  m.def("seeds_schedule_facts", &seeds_schedule_facts, py::arg("height"), py::arg("width"), py::arg("num_superpixels"),
        py::arg("steps"));
  m.def("seeds_max_bins", &ck::seeds_max_bins, py::arg("height"), py::arg("width"), py::arg("bins"), py::arg("lab"));
  m.def("seeds_count", &seeds_count, py::arg("height"), py::arg("width"), py::arg("num_superpixels"),
        py::arg("num_levels"));
  m.def("rgb_to_lab", &rgb_to_lab, release(), py::arg("rgb"), py::arg("lab"), py::kw_only(), py::arg("groups"),
        py::arg("pixels"), py::arg("group_stride"), py::arg("pixel_stride"), py::arg("channel_stride"));
  m.def("seeds_parallel_launch", &seeds_parallel_launch, py::kw_only(), py::arg("batch"), py::arg("height"),
        py::arg("width"), py::arg("num_superpixels"), py::arg("steps"), py::arg("bins"), py::arg("lab"),
        py::arg("driver"), py::arg("multiprocessors"), py::arg("block_memory"), py::arg("clusters"));
#if defined(CAST_CUDA)
  m.def("seeds_parallel_cuda_bytes", &seeds_parallel_cuda_bytes, py::kw_only(), py::arg("batch"), py::arg("height"),
        py::arg("width"), py::arg("num_superpixels"), py::arg("steps"), py::arg("bins"), py::arg("lab"),
        py::arg("driver"));
  m.def("seeds_parallel_cuda", &seeds_parallel_cuda, release(), py::arg("pixels"), py::arg("labels"), py::kw_only(),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("image_stride"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("channel_stride"), py::arg("num_superpixels"), py::arg("steps"),
        py::arg("bins"), py::arg("lab"), py::arg("stride"), py::arg("driver"), py::arg("workspace"),
        py::arg("workspace_size"), py::arg("stream"));
  m.def("seeds_sequential_cuda_bytes", &seeds_sequential_cuda_bytes, py::kw_only(), py::arg("batch"), py::arg("height"),
        py::arg("width"), py::arg("num_superpixels"), py::arg("bins"), py::arg("num_levels"), py::arg("lab"));
  m.def("seeds_sequential_cuda", &seeds_sequential_cuda, release(), py::arg("pixels"), py::arg("labels"), py::kw_only(),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("image_stride"), py::arg("row_stride"),
        py::arg("column_stride"), py::arg("channel_stride"), py::arg("num_superpixels"), py::arg("bins"),
        py::arg("prior"), py::arg("iterations"), py::arg("num_levels"), py::arg("double_step"), py::arg("lab"),
        py::arg("stride"), py::arg("workspace"), py::arg("workspace_size"), py::arg("stream"));
  m.def("rgb_to_lab_cuda", &rgb_to_lab_cuda, release(), py::arg("rgb"), py::arg("lab"), py::kw_only(),
        py::arg("groups"), py::arg("pixels"), py::arg("group_stride"), py::arg("pixel_stride"),
        py::arg("channel_stride"), py::arg("stream"));
#endif
}

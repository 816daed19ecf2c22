// The Python face of csrc: pointers, sizes and flags, no tensors. The only file that knows pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "rgb_to_lab.h"
#include "seeds.h"
#include "seeds_grid.h"
#include "seeds_literal.h"
#include "seeds_schedule.h"
#include "simd.h"

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

#if defined(CAST_CUDA)
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
#if defined(CAST_CUDA)
  m.def("rgb_to_lab_cuda", &rgb_to_lab_cuda, release(), py::arg("rgb"), py::arg("lab"), py::kw_only(),
        py::arg("groups"), py::arg("pixels"), py::arg("group_stride"), py::arg("pixel_stride"),
        py::arg("channel_stride"), py::arg("stream"));
#endif
}

#include "seeds.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>
#include <string>

#include "seeds_team.h"
#include "simd.h"
#include "threads.h"

namespace cast_kernels {
namespace {

constexpr int64_t kPixelsPerThread = 1 << 15;  // of one image; below, waiting for the others costs more than it gains

void check(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    throw std::invalid_argument(std::string("expected ") + name + " in " + std::to_string(least) + ".." +
                                std::to_string(most) + ", got " + std::to_string(value));
  }
}

PixelStage pixel_stage(Simd level) {
#if defined(CAST_X86_SIMD)
  if (level == Simd::avx512) return seeds_pixels_avx512;
  if (level == Simd::avx2) return seeds_pixels_avx2;
#endif
  (void)level;  // the only one of this build
  return seeds_pixels_scalar;
}

template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions(Simd level) {
#if defined(CAST_X86_SIMD)
  if (level != Simd::scalar) return sweep_functions_avx2<Label, Count>();  // serves AVX-512, too
#endif
  (void)level;
  return sweep_functions_scalar<Label, Count>();
}

template <class Label, class Count>
void share_out(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule, const SeedsColours& colours,
               int64_t stride, int64_t threads, Simd level) {
  const SweepFunctions<Label, Count> functions = sweep_functions<Label, Count>(level);
  const int64_t size = LabelGrid(images.height, images.width, stride).size();
  const int64_t team = std::min(threads, images.height * images.width / kPixelsPerThread);
  if (images.batch >= team) {  // as many busy as in a team, and none waits for another
    std::atomic<int64_t> next{0};
    on_threads(std::min(threads, images.batch), [&](int, int) {
      SeedsTeam<Label, Count> alone(schedule, colours, functions, 1);
      for (int64_t i = next++; i < images.batch; i = next++) {
        if (!alone.run({0, 1}, images.image(i), labels + i * size, stride)) throw std::bad_alloc();
      }
    });
    return;
  }
  SeedsTeam<Label, Count> together(schedule, colours, functions, static_cast<int>(team));
  on_threads(team, [&](int rank, int members) {
    for (int64_t i = 0; i < images.batch; ++i) {
      if (!together.run({rank, members}, images.image(i), labels + i * size, stride)) throw std::bad_alloc();
    }
  });
}

}  // namespace

void seeds_sequential(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels, int64_t num_levels,
                      const SeedsOptions& options, int64_t stride, int64_t threads) {
  check("bins", options.bins, 1, kMaxBins);
  check("prior", options.prior, 0, 5);
  check("iterations", options.iterations, 0, INT32_MAX);
  check("stride", stride, 1, INT32_MAX);
  check("threads", threads, 1, INT32_MAX);
  const SeedsGrid grid = seeds_grid(images.height, images.width, num_superpixels, num_levels);
  const PixelStage stage = pixel_stage(simd_level());
  const int64_t size = LabelGrid(images.height, images.width, stride).size();
  if (images.batch == 0) return;
  std::atomic<int64_t> next{0};
  on_threads(std::min(threads, images.batch), [&](int, int) {
    SeedsSequential segmenter(grid, options, stage);
    for (int64_t i = next++; i < images.batch; i = next++) segmenter.run(images.image(i), labels + i * size, stride);
  });
}

void seeds_parallel(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels,
                    const std::vector<SeedsStep>& steps, const SeedsColours& colours, int64_t stride, int64_t threads) {
  check("bins", colours.bins, 1, kMaxBins);
  check("stride", stride, 1, INT32_MAX);
  check("threads", threads, 1, INT32_MAX);
  const SeedsSchedule schedule = seeds_schedule(images.height, images.width, num_superpixels, steps);
  if ((images.height + kFrameRows) * (images.width + kFrameColumns) > UINT32_MAX) {
    throw std::invalid_argument("expected an image that is less narrow, got " + std::to_string(images.height) + " x " +
                                std::to_string(images.width) + " pixels");
  }
  const Simd level = simd_level();
  if (images.batch == 0) return;
  if (schedule.most_pixels > UINT16_MAX) {
    share_out<uint16_t, uint32_t>(images, labels, schedule, colours, stride, threads, level);
  } else if (schedule.num_labels > UINT8_MAX) {
    share_out<uint16_t, uint16_t>(images, labels, schedule, colours, stride, threads, level);
  } else {
    share_out<uint8_t, uint16_t>(images, labels, schedule, colours, stride, threads, level);
  }
}

}  // namespace cast_kernels

#include "seeds.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "simd.h"

namespace cast_kernels {
namespace {

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

}  // namespace

void seeds_sequential(const SeedsBatch& images, int32_t* labels, int64_t num_superpixels, int64_t num_levels,
                      const SeedsOptions& options, int64_t threads) {
  check("bins", options.bins, 1, kMaxBins);
  check("prior", options.prior, 0, 5);
  check("iterations", options.iterations, 0, INT32_MAX);
  check("threads", threads, 1, INT32_MAX);
  const SeedsGrid grid = seeds_grid(images.height, images.width, num_superpixels, num_levels);
  const PixelStage stage = pixel_stage(simd_level());

  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto work = [&] {
    try {
      SeedsSequential segmenter(grid, options, stage);
      for (int64_t i = next++; i < images.batch; i = next++) {
        segmenter.run(images.image(i), labels + i * images.height * images.width);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_lock);
      failure = std::current_exception();
    }
  };

  const int64_t helpers = std::min(threads, images.batch) - 1;
  std::vector<std::thread> pool;
  try {
    for (int64_t i = 0; i < helpers; ++i) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run share out the images.
  }
  if (images.batch > 0) work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cast_kernels

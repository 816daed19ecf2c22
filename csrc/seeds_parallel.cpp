#include "seeds_parallel.h"

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

template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions() {
#if defined(CAST_X86_SIMD)
  if (simd_level() != Simd::scalar) return sweep_functions_avx2<Label, Count>();
#endif
  return sweep_functions_scalar<Label, Count>();
}

template <class Label, class Count>
void segment(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule, const SeedsColours& colours,
             int64_t stride, int64_t threads) {
  const SweepFunctions<Label, Count> functions = sweep_functions<Label, Count>();
  const int64_t size = ((images.height + stride - 1) / stride) * ((images.width + stride - 1) / stride);
  const int64_t team = std::min(threads, images.height * images.width / kPixelsPerThread);
  if (images.batch >= threads || team < 2) {
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

void seeds_parallel(const SeedsBatch& images, int32_t* labels, const SeedsSchedule& schedule,
                    const SeedsColours& colours, int64_t stride, int64_t threads) {
  if (images.batch == 0) return;
  if (schedule.most_pixels > UINT16_MAX) {
    segment<uint16_t, uint32_t>(images, labels, schedule, colours, stride, threads);
  } else if (schedule.num_labels > UINT8_MAX) {
    segment<uint16_t, uint16_t>(images, labels, schedule, colours, stride, threads);
  } else {
    segment<uint8_t, uint16_t>(images, labels, schedule, colours, stride, threads);
  }
}

}  // namespace cast_kernels

// The hot loops of parallel SEEDS on the CPU: which sites may move, and where pixels want to go. The same decisions as
// in seeds_phases.h, for whole rows.
// Plain data only, for the reason given in seeds_pixels.h.
#pragma once

#include <cstdint>

namespace cast_kernels {

// Rows of labels may be read, and lists written, this many elements past their end.
constexpr int kSweepPadding = 64;

struct PixelMove {
  uint32_t pixel;  // y * stride + x
  uint16_t from;
  uint16_t to;
};

template <class Label, class Count>
struct PixelPhase {
  const Label* labels;   // of pixel (0, 0), with a frame and kSweepPadding as in SeedsState
  const uint16_t* bins;  // likewise
  int64_t stride;        // of both
  int width;
  int height;
  int first_column;  // of the phase, 0 or 1
  const Count* histogram;
  uint32_t num_bins;
  const float* stay;   // [labels] 1 / size^2; infinite for those too small to lose a pixel
  const float* enter;  // [labels] 1 / size^2; zero for those too large to gain one
  // The window of 4 x 4 pixels in which own and other labels are counted, for each direction: its top left pixel
  // relative to the site, and its pixels that count, bit 4 * row + column.
  int64_t corner[4];
  uint32_t counted[4];
  const float* factors;  // SeedsRules::factors
};

struct SweepScratch {
  uint8_t* directions;  // [width + kSweepPadding]
  uint32_t* sites;      // [width + kSweepPadding]
};

// The functions of one instruction set.
template <class Label, class Count>
struct SweepFunctions {
  // Finds the columns first_column, first_column + 2, ... of a row of sites that may leave their superpixel and have
  // another beside them; returns how many. `sites` holds them in ascending order, `directions` the directions to take
  // into account, bit d for direction d. `labels` is column 0 of a plane framed as in SeedsState; the directions that
  // lead out of the plane are those of its first and last column, and those missing in `inside`.
  int (*find_sites)(const Label* labels, int64_t stride, int width, int first_column, uint32_t inside,
                    const SweepScratch& scratch);
  // Decides on the pixels of the phase in rows row, row + 2, ... below end; returns the number of moves.
  // At most one for each of them is written, and one more place is used.
  int64_t (*decide_rows)(const PixelPhase<Label, Count>& phase, int row, int end, const SweepScratch& scratch,
                         PixelMove* moves);
};

// Instantiated for <uint8_t, uint16_t>, <uint16_t, uint16_t> and <uint16_t, uint32_t>.
template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions_scalar();
template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions_avx2();

}  // namespace cast_kernels

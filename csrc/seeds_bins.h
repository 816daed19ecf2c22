// From colours to joint histogram bins.
#pragma once

#include <cstdint>
#include <vector>

#include "seeds_image.h"

namespace cast_kernels {

class JointBins {
 public:
  explicit JointBins(const SeedsColours& colours);

  int64_t count() const { return count_; }

  // Writes the joint bins of one row of pixels, and 1 to used[bin] for each of them.
  void quantize_row(const SeedsImage& image, int64_t row, int width, uint16_t* out, uint16_t* used) const;

 private:
  bool lab_;
  int64_t count_;
  uint16_t part_[3][256];  // share of a channel's value in the joint bin
};

// Replaces the flags of used bins by their numbers among the used ones, order kept; returns how many there are.
int number_used_bins(std::vector<uint16_t>& used);

}  // namespace cast_kernels

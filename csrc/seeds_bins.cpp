#include "seeds_bins.h"

#include "lab.h"

namespace cast_kernels {

JointBins::JointBins(const SeedsColours& colours)
    : lab_(colours.lab), count_(colours.bins * colours.bins * colours.bins), part_() {
  for (int64_t v = 0; v < 256; ++v) {
    const int64_t q = v * colours.bins / 256;
    part_[0][v] = static_cast<uint16_t>(q * colours.bins * colours.bins);
    part_[1][v] = static_cast<uint16_t>(q * colours.bins);
    part_[2][v] = static_cast<uint16_t>(q);
  }
}

void JointBins::quantize_row(const SeedsImage& image, int64_t row, int width, uint16_t* out, uint16_t* used) const {
  const uint8_t* pixel = image.pixels + row * image.row_stride;
  for (int x = 0; x < width; ++x, pixel += image.column_stride) {
    Lab8 colour{pixel[0], pixel[image.channel_stride], pixel[2 * image.channel_stride]};
    if (lab_) colour = lab_from_rgb(kLabTables, colour.l, colour.a, colour.b);
    out[x] = static_cast<uint16_t>(part_[0][colour.l] + part_[1][colour.a] + part_[2][colour.b]);
    used[out[x]] = 1;
  }
}

int number_used_bins(std::vector<uint16_t>& used) {
  int count = 0;
  for (uint16_t& entry : used) entry = entry != 0 ? static_cast<uint16_t>(count++) : 0;
  return count;
}

}  // namespace cast_kernels

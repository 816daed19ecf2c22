// From pixels to joint colour bins, and to those alone that an image uses, for a team of threads.
#pragma once

#include <cstdint>

#include "lab.h"
#include "seeds_image.h"
#include "seeds_phases.h"
#include "team.h"

namespace cast_kernels {

// Which joint bins occur: one bit each, and for each word how many bits are set before it.
struct UsedBins {
  uint32_t* words;   // [bins ^ 3 / 32 + 1]
  uint32_t* before;  // likewise
};

CAST_HOST_DEVICE inline int used_bins_words(int bins) { return bins * bins * bins / 32 + 1; }

CAST_HOST_DEVICE inline uint32_t used_bin_index(const UsedBins& used, uint32_t bin) {
  return used.before[bin >> 5] + static_cast<uint32_t>(count_bits(used.words[bin >> 5] & ((1u << (bin & 31)) - 1)));
}

// Writes the joint bin of every pixel [H, stride] and sets its bit; the words must be zero.
template <class Team>
CAST_HOST_DEVICE inline void quantise(const Team& team, const LabTables& tables, const SeedsImage& image, int width,
                                      int height, int bins, bool lab, const UsedBins& used, uint16_t* joint,
                                      int stride) {
  for_each_place(team, height, width, [&](int y, int x) {
    const uint8_t* const pixel = image.pixels + y * image.row_stride + x * image.column_stride;
    Lab8 colour{pixel[0], pixel[image.channel_stride], pixel[2 * image.channel_stride]};
    if (lab) colour = lab_from_rgb(tables, colour.l, colour.a, colour.b);
    const uint32_t bin = joint_bin(colour.l, colour.a, colour.b, static_cast<uint32_t>(bins));
    joint[y * stride + x] = static_cast<uint16_t>(bin);
    const uint32_t bit = 1u << (bin & 31);
    if ((read_shared_word(used.words + (bin >> 5)) & bit) == 0) atomic_or(used.words + (bin >> 5), bit);
  });
}

// Numbers the bins that occur; returns how many. `partial` as for exclusive_sum, with barriers like it.
template <class Team>
CAST_HOST_DEVICE inline uint32_t number_bins(Team& team, const UsedBins& used, int bins, uint32_t* partial) {
  const int words = used_bins_words(bins);
  for (int i = team.rank(); i < words; i += team.size()) {
    used.before[i] = static_cast<uint32_t>(count_bits(used.words[i]));
  }
  return exclusive_sum(team, used.before, words, partial);
}

}  // namespace cast_kernels

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

CAST_HOST_DEVICE inline uint32_t colour_bin(const LabTables& tables, Lab8 colour, int bins, bool lab) {
  if (lab) colour = lab_from_rgb(tables, colour.l, colour.a, colour.b);
  return joint_bin(colour.l, colour.a, colour.b, static_cast<uint32_t>(bins));
}

CAST_HOST_DEVICE inline void mark_used(const UsedBins& used, uint32_t bin) {
  const uint32_t bit = 1u << (bin & 31);
  if ((read_shared_word(used.words + (bin >> 5)) & bit) == 0) atomic_or(used.words + (bin >> 5), bit);
}

// Writes the joint bin of every pixel [H, W] and sets its bit; the words must be zero.
template <class Team>
CAST_HOST_DEVICE inline void quantise(const Team& team, const LabTables& tables, const SeedsImage& image, int width,
                                      int height, int bins, bool lab, const UsedBins& used, uint16_t* joint) {
  for_each_place(team, height, width, [&](int y, int x) {
    const uint8_t* const pixel = image.pixels + y * image.row_stride + x * image.column_stride;
    const uint32_t bin =
        colour_bin(tables, {pixel[0], pixel[image.channel_stride], pixel[2 * image.channel_stride]}, bins, lab);
    joint[y * width + x] = static_cast<uint16_t>(bin);
    mark_used(used, bin);
  });
}

// Four pixels in a row: byte i of a word is a channel of pixel i.
struct FourColours {
  uint32_t channels[3];
};

// Of the pixels from `pixel` on; those beyond the `left` that are still in the row repeat the last one.
CAST_HOST_DEVICE inline FourColours load_four(const SeedsImage& image, const uint8_t* pixel, int left) {
  const auto is_aligned = [](const uint8_t* at) { return (reinterpret_cast<uintptr_t>(at) & 3) == 0; };
  const auto word = [](const uint8_t* at) { return *reinterpret_cast<const Word*>(at); };
  if (left >= 4 && image.channel_stride == 1 && image.column_stride == 3 && is_aligned(pixel)) {
    const uint32_t first = word(pixel);       // r g b r
    const uint32_t second = word(pixel + 4);  // g b r g
    const uint32_t third = word(pixel + 8);   // b r g b
    return {{permute_bytes(permute_bytes(first, second, 0x0630), third, 0x5210),
             permute_bytes(permute_bytes(first, second, 0x0741), third, 0x6210),
             permute_bytes(permute_bytes(first, second, 0x0052), third, 0x7410)}};
  }
  FourColours colours{};
  CAST_UNROLL
  for (int channel = 0; channel < 3; ++channel) {
    const uint8_t* const at = pixel + channel * image.channel_stride;
    if (left >= 4 && image.column_stride == 1 && is_aligned(at)) {
      colours.channels[channel] = word(at);
      continue;
    }
    CAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int column = i < left ? i : left - 1;
      colours.channels[channel] |= static_cast<uint32_t>(at[column * image.column_stride]) << 8 * i;
    }
  }
  return colours;
}

// As quantise, four pixels at a time. The joint bins are [H, stride], with room for a multiple of four in each row.
template <class Team>
CAST_HOST_DEVICE inline void quantise_fours(const Team& team, const LabTables& tables, const SeedsImage& image,
                                            int width, int height, int bins, bool lab, const UsedBins& used,
                                            uint16_t* joint, int stride) {
  for_each_place(team, height, (width + 3) / 4, [&](int y, int four) {
    const int x = 4 * four;
    const FourColours colours =
        load_four(image, image.pixels + y * image.row_stride + x * image.column_stride, width - x);
    uint32_t found[4];
    CAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto channel = [&](int c) { return static_cast<uint8_t>(colours.channels[c] >> 8 * i); };
      found[i] = colour_bin(tables, {channel(0), channel(1), channel(2)}, bins, lab);
      mark_used(used, found[i]);
    }
    auto* const pairs = reinterpret_cast<Word*>(joint + y * stride + x);
    pairs[0] = found[0] | found[1] << 16;
    pairs[1] = found[2] | found[3] << 16;
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

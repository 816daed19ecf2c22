// The eight labels around a pixel, compared four or two at a time: what Ring of seeds_phases.h says, in fewer
// instructions.
#pragma once

#include <cstdint>

#include "packed.h"
#include "seeds_phases.h"
#include "team.h"

namespace cast_kernels {

// A mask has bit 8 d + 7 for direction d, and for the corner between d and the next direction.
constexpr uint32_t kAllSides = 0x80808080u;

template <class Label>
class Around;

template <>
class Around<uint8_t> {
 public:
  // `labels` begins a word, and so does every row; a site at an edge has labels of the frame around it.
  CAST_HOST_DEVICE Around(const uint8_t* labels, int stride, int site) {
    const int first = site - 2;
    const Word* const words = reinterpret_cast<const Word*>(labels) + (first >> 2);
    const int shift = 8 * (first & 3);
    const auto row = [&](const Word* at) { return funnel_shift(at[0], at[1], shift); };  // columns -2 to 1
    const uint32_t north = row(words - stride / 4);
    const uint32_t here = row(words);
    const uint32_t south = row(words + stride / 4);
    sides_ = permute_bytes(permute_bytes(here, north, 0x0163), south, 0x6210);
    corners_ = permute_bytes(north, south, 0x7513);
    own_ = here >> 16 & 0xff;
  }

  CAST_HOST_DEVICE uint32_t own() const { return own_; }
  CAST_HOST_DEVICE uint32_t side(int direction) const { return sides_ >> 8 * direction & 0xff; }
  CAST_HOST_DEVICE uint32_t sides_like(uint32_t label) const {
    return zero_parts<uint8_t>(sides_ ^ repeat<uint8_t>(label));
  }
  CAST_HOST_DEVICE uint32_t corners_like(uint32_t label) const {
    return zero_parts<uint8_t>(corners_ ^ repeat<uint8_t>(label));
  }

 private:
  uint32_t sides_, corners_, own_;
};

template <>
class Around<uint16_t> {
 public:
  CAST_HOST_DEVICE Around(const uint16_t* labels, int stride, int site) {
    const int first = site - 1;
    const Word* const words = reinterpret_cast<const Word*>(labels) + (first >> 1);
    const int shift = 16 * (first & 1);
    struct Row {
      uint32_t before;  // columns -1 and 0
      uint32_t after;   // column 1, and something
    };
    const auto row = [&](const Word* at) -> Row { return {funnel_shift(at[0], at[1], shift), at[1] >> shift}; };
    const Row north = row(words - stride / 2);
    const Row here = row(words);
    const Row south = row(words + stride / 2);
    sides_[0] = permute_bytes(here.after, north.before, 0x7610);
    sides_[1] = permute_bytes(here.before, south.before, 0x7610);
    corners_[0] = permute_bytes(north.after, north.before, 0x5410);
    corners_[1] = permute_bytes(south.before, south.after, 0x5410);
    own_ = here.before >> 16;
  }

  CAST_HOST_DEVICE uint32_t own() const { return own_; }
  CAST_HOST_DEVICE uint32_t side(int direction) const {
    return (direction < 2 ? sides_[0] : sides_[1]) >> 16 * (direction & 1) & 0xffff;
  }
  CAST_HOST_DEVICE uint32_t sides_like(uint32_t label) const { return like(sides_, label); }
  CAST_HOST_DEVICE uint32_t corners_like(uint32_t label) const { return like(corners_, label); }

 private:
  CAST_HOST_DEVICE static uint32_t like(const uint32_t (&pairs)[2], uint32_t label) {
    const uint32_t twice = repeat<uint16_t>(label);
    return permute_bytes(zero_parts<uint16_t>(pairs[0] ^ twice), zero_parts<uint16_t>(pairs[1] ^ twice), 0x7531);
  }

  uint32_t sides_[2], corners_[2], own_;
};

// may_leave of seeds_phases.h.
CAST_HOST_DEVICE inline bool may_leave(uint32_t own_sides, uint32_t own_corners) {
  return count_bits(own_sides & ~(own_corners & (own_sides >> 8 | own_sides << 24))) == 1;
}

// Three labels in a line.
template <class Label>
class Line {
 public:
  CAST_HOST_DEVICE Line(const Label* middle, int step) : labels_{middle[-step], middle[0], middle[step]} {}
  // A mask with a bit for each.
  CAST_HOST_DEVICE uint32_t like(uint32_t label) const {
    if constexpr (sizeof(Label) == 1) {
      const uint32_t word = labels_[0] | labels_[1] << 8 | labels_[2] << 16 | 0xff000000u;  // the frame's: no label
      return zero_parts<uint8_t>(word ^ repeat<uint8_t>(label));
    } else {
      return (labels_[0] == label ? 0x80u : 0) | (labels_[1] == label ? 0x8000u : 0) |
             (labels_[2] == label ? 0x800000u : 0);
    }
  }

 private:
  uint32_t labels_[3];
};

}  // namespace cast_kernels

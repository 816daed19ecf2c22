// The bins of a cell of few pixels, in the registers of one thread.
#pragma once

#include <cstdint>

#include "packed.h"

namespace cast_kernels {

// Where the pixels of a cell lie.
template <class Bin>
struct CellPixels {
  const Bin* corner;
  int width, count, stride;

  CAST_HOST_DEVICE uint32_t bin(int i) const {
    const int y = i / width;
    return corner[y * stride + i - y * width];
  }
};

// Of at most kPixels. No index of an array is left for the run, else it would not stay in registers.
template <class Bin, int kPixels>
class PackedCell {
 public:
  CAST_HOST_DEVICE explicit PackedCell(const CellPixels<Bin>& pixels) {
    CAST_UNROLL
    for (int word = 0; word < kWords; ++word) words_[word] = 0;
    CAST_UNROLL
    for (int mask = 0; mask < kMasks; ++mask) pixels_[mask] = 0;
    const Bin* row = pixels.corner;
    int x = 0;
    CAST_UNROLL
    for (int word = 0; word < kWords; ++word) {
      if (word * kPerWord >= pixels.count) break;
      // No exit here, so that loads do not wait for each other: beyond the end the last pixel again.
      CAST_UNROLL
      for (int part = 0; part < kPerWord; ++part) {
        const int i = word * kPerWord + part;
        words_[word] |= static_cast<uint32_t>(row[x]) << (kBits * part);
        if (i < pixels.count) pixels_[word / kBits] |= 1u << (kBits * (part + 1) - 1 - word % kBits);
        if (i + 1 < pixels.count && ++x == pixels.width) {
          x = 0;
          row += pixels.stride;
        }
      }
    }
  }

  // Calls visit(bin, count) for every bin that occurs.
  template <class Visit>
  CAST_HOST_DEVICE void visit(Visit visit) const {
    uint32_t left[kMasks];
    CAST_UNROLL
    for (int mask = 0; mask < kMasks; ++mask) left[mask] = pixels_[mask];
    while (true) {
      // The bin of some pixel that is left
      uint32_t bits = left[0];
      int first_word = 0;
      CAST_UNROLL
      for (int mask = 1; mask < kMasks; ++mask) {
        first_word = bits == 0 ? mask * kBits : first_word;
        bits = bits == 0 ? left[mask] : bits;
      }
      if (bits == 0) return;
      const int bit = lowest_bit(bits);
      const int at = first_word + kBits - 1 - bit % kBits;
      uint32_t value = words_[0];
      CAST_UNROLL
      for (int word = 1; word < kWords; ++word) value = word == at ? words_[word] : value;
      const uint32_t bin = value >> (bit / kBits * kBits) & static_cast<Bin>(-1);
      // All pixels that have it
      uint32_t count = 0;
      CAST_UNROLL
      for (int mask = 0; mask < kMasks; ++mask) {
        uint32_t alike = 0;
        CAST_UNROLL
        for (int word = mask * kBits; word < kWords && word < (mask + 1) * kBits; ++word) {
          alike |= zero_parts<Bin>(words_[word] ^ repeat<Bin>(bin)) >> (word % kBits);
        }
        count += static_cast<uint32_t>(count_bits(alike & left[mask]));
        left[mask] &= ~alike;
      }
      visit(bin, count);
    }
  }

 private:
  static constexpr int kBits = 8 * sizeof(Bin);
  static constexpr int kPerWord = parts_per_word<Bin>();
  static constexpr int kWords = kPixels / kPerWord;
  static constexpr int kMasks = (kWords + kBits - 1) / kBits;

  // Pixel i is in part i % kPerWord of word i / kPerWord. In a mask its bit is, of the bits of that part, the highest
  // but i / kPerWord: so the masks of zero_parts are shifted into one.
  uint32_t words_[kWords];
  uint32_t pixels_[kMasks];
};

}  // namespace cast_kernels

// The positions of the set bits of every byte, one per byte of the entry, the rest zero.
#pragma once

#include <cstdint>

namespace cast_kernels {

struct BitTable {
  uint64_t positions[256];

  constexpr BitTable() : positions() {
    for (unsigned byte = 0; byte < 256; ++byte) {
      int count = 0;
      for (unsigned bit = 0; bit < 8; ++bit) {
        if ((byte >> bit & 1) != 0) positions[byte] |= static_cast<uint64_t>(bit) << (8 * count++);
      }
    }
  }
};

}  // namespace cast_kernels

// Bits of a word, and several small numbers in one: bytes or half words, the first in the lowest bits.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cast_kernels {

// Byte i of the result is byte `selector >> 4 i & 7` of the eight: 0 to 3 those of low, 4 to 7 those of high.
CAST_HOST_DEVICE inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, selector);
#else
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(both >> (8 * (selector >> 4 * i & 7)) & 0xff) << 8 * i;
  return word;
#endif
}

// The 32 bits from `shift`, 0 to 31, on.
CAST_HOST_DEVICE inline uint32_t funnel_shift(uint32_t low, uint32_t high, int shift) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_r(low, high, static_cast<unsigned>(shift));
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> shift);
#endif
}

CAST_HOST_DEVICE inline int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  bits = bits - (bits >> 1 & 0x55555555u);
  bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
  return static_cast<int>((((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
#endif
}

CAST_HOST_DEVICE inline int lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

template <class Part>
CAST_HOST_DEVICE constexpr int parts_per_word() {
  return static_cast<int>(4 / sizeof(Part));
}

template <class Part>
CAST_HOST_DEVICE inline uint32_t repeat(uint32_t value) {
  return value * (sizeof(Part) == 1 ? 0x01010101u : 0x00010001u);
}

// The highest bit of each part that is zero; all other bits are.
template <class Part>
CAST_HOST_DEVICE inline uint32_t zero_parts(uint32_t word) {
  constexpr uint32_t kLow = sizeof(Part) == 1 ? 0x7f7f7f7fu : 0x7fff7fffu;
  return ~(((word & kLow) + kLow) | word) & ~kLow;
}

}  // namespace cast_kernels

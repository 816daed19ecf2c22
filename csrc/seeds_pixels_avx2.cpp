#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "bit_table.h"
#include "host_device.h"
#include "seeds_pixels.h"

namespace cast_kernels {
namespace {

#include "seeds_pair.inl"

constexpr BitTable kBits;

inline int boundaries(const uint16_t* row, const uint16_t* other, int begin, int end, uint32_t* positions) {
  const auto load = [](const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  int count = 0;
  for (int x = begin; x < end; x += 16) {
    const __m256i equal = _mm256_cmpeq_epi16(load(row + x), load(other + x));
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(equal), _mm256_extracti128_si256(equal, 1));
    uint32_t bits = ~static_cast<uint32_t>(_mm_movemask_epi8(bytes)) & 0xffffu;
    if (end - x < 16) bits &= (1u << (end - x)) - 1;
    for (int part = 0; part < 16; part += 8, bits >>= 8) {  // without a branch on the bits: they are random
      const __m128i found = _mm_cvtsi64_si128(static_cast<long long>(kBits.positions[bits & 0xff]));
      const __m256i here = _mm256_add_epi32(_mm256_cvtepu8_epi32(found), _mm256_set1_epi32(x + part));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions + count), here);
      count += _mm_popcnt_u32(bits & 0xffu);
    }
  }
  return count;
}

#include "seeds_pixels_x86.inl"

#include "seeds_pixels.inl"

}  // namespace

void seeds_pixels_avx2(const PixelState& state, int prior, int iterations) { pixel_stage(state, prior, iterations); }

}  // namespace cast_kernels

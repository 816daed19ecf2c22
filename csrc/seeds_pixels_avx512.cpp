#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "host_device.h"
#include "seeds_pixels.h"

// The search for boundaries alone gains by AVX-512, so it alone is compiled for it: with the flags for the whole file
// the compiler would put the decisions into mask registers, too.
#if defined(_MSC_VER) && !defined(__clang__)
#define CAST_TARGET_AVX512
#else
#define CAST_TARGET_AVX512 __attribute__((target("avx512f,avx512bw")))
#endif

namespace cast_kernels {
namespace {

#include "seeds_pair.inl"

CAST_TARGET_AVX512 int boundaries(const uint16_t* row, const uint16_t* other, int begin, int end, uint32_t* positions) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int count = 0;
  for (int x = begin; x < end; x += 32) {
    const __m512i labels = _mm512_loadu_si512(row + x);
    uint32_t bits = _cvtmask32_u32(_mm512_cmpneq_epi16_mask(labels, _mm512_loadu_si512(other + x)));
    if (end - x < 32) bits &= (1u << (end - x)) - 1;
    for (int part = 0; part < 32; part += 16, bits >>= 16) {
      const __mmask16 found = _cvtu32_mask16(bits & 0xffffu);
      const __m512i here = _mm512_add_epi32(lanes, _mm512_set1_epi32(x + part));
      // To a register first: compressing to memory is slow on some processors. What is too much lies in the padding.
      _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(found, here));
      count += _mm_popcnt_u32(bits & 0xffffu);
    }
  }
  return count;
}

#include "seeds_pixels_x86.inl"

#include "seeds_pixels.inl"

}  // namespace

void seeds_pixels_avx512(const PixelState& state, int prior, int iterations) {
  pixel_stage(state, prior, iterations);
}

}  // namespace cast_kernels

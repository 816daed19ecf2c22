#include <immintrin.h>

#include <cstring>

#include "bit_table.h"
#include "seeds_sweep.h"

namespace cast_kernels {
namespace {

constexpr BitTable kBits;

template <class Label>
struct Lanes {
  static constexpr bool kBytes = sizeof(Label) == 1;
  static constexpr int kCount = kBytes ? 32 : 16;
  __m256i value;

  static Lanes load(const Label* at) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))}; }
  static Lanes all(Label value) {
    return {kBytes ? _mm256_set1_epi8(static_cast<char>(value)) : _mm256_set1_epi16(static_cast<short>(value))};
  }
  friend Lanes equal(Lanes a, Lanes b) {
    return {kBytes ? _mm256_cmpeq_epi8(a.value, b.value) : _mm256_cmpeq_epi16(a.value, b.value)};
  }
  friend Lanes operator&(Lanes a, Lanes b) { return {_mm256_and_si256(a.value, b.value)}; }
  friend Lanes operator|(Lanes a, Lanes b) { return {_mm256_or_si256(a.value, b.value)}; }
  friend Lanes operator+(Lanes a, Lanes b) {
    return {kBytes ? _mm256_add_epi8(a.value, b.value) : _mm256_add_epi16(a.value, b.value)};
  }
  friend Lanes without(Lanes a, Lanes b) { return {_mm256_andnot_si256(b.value, a.value)}; }
  friend void store_bytes(Lanes a, uint8_t* to) {
    if (kBytes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a.value);
    } else {
      const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(a.value), _mm256_extracti128_si256(a.value, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    }
  }
};

inline int list_sites(const uint8_t* directions, int width, int first_column, uint32_t* sites) {
  int count = 0;
  for (int x = first_column; x < width; x += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(directions + x));
    const __m256i empty = _mm256_cmpeq_epi8(bytes, _mm256_setzero_si256());
    uint32_t bits = _pext_u32(~static_cast<uint32_t>(_mm256_movemask_epi8(empty)), 0x55555555u);
    if (width - x < 32) bits &= (1u << ((width - x + 1) / 2)) - 1;
    for (int part = 0; part < 32; part += 16, bits >>= 8) {  // without a branch on the bits: they are random
      const __m128i found = _mm_cvtsi64_si128(static_cast<long long>(kBits.positions[bits & 0xff]));
      const __m256i columns = _mm256_slli_epi32(_mm256_cvtepu8_epi32(found), 1);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sites + count),
                          _mm256_add_epi32(columns, _mm256_set1_epi32(x + part)));
      count += _mm_popcnt_u32(bits & 0xffu);
    }
  }
  return count;
}

inline int lowest_direction(uint32_t directions) { return static_cast<int>(_tzcnt_u32(directions)); }

inline uint32_t counts_of(uint32_t own, uint32_t other, uint32_t counted) {
  return static_cast<uint32_t>(_mm_popcnt_u32(own & counted) << 4 | _mm_popcnt_u32(other & counted));
}

inline uint32_t count_window(const uint8_t* corner, int64_t stride, uint8_t own, uint8_t other, uint32_t counted) {
  const auto row = [&](int i) {
    int32_t four;
    std::memcpy(&four, corner + i * stride, sizeof four);
    return four;
  };
  const __m128i window = _mm_setr_epi32(row(0), row(1), row(2), row(3));
  const auto same = [&](uint8_t label) {
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(label));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(window, wanted)));
  };
  return counts_of(same(own), same(other), counted);
}

inline uint32_t count_window(const uint16_t* corner, int64_t stride, uint16_t own, uint16_t other, uint32_t counted) {
  const auto row = [&](int i) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(corner + i * stride)); };
  const __m128i upper = _mm_unpacklo_epi64(row(0), row(1));
  const __m128i lower = _mm_unpacklo_epi64(row(2), row(3));
  const auto same = [&](uint16_t label) {
    const __m128i wanted = _mm_set1_epi16(static_cast<short>(label));
    const __m128i equal = _mm_packs_epi16(_mm_cmpeq_epi16(upper, wanted), _mm_cmpeq_epi16(lower, wanted));
    return static_cast<uint32_t>(_mm_movemask_epi8(equal));
  };
  return counts_of(same(own), same(other), counted);
}

#include "seeds_sweep.inl"

}  // namespace

template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions_avx2() {
  return functions<Label, Count>();
}

template SweepFunctions<uint8_t, uint16_t> sweep_functions_avx2();
template SweepFunctions<uint16_t, uint16_t> sweep_functions_avx2();
template SweepFunctions<uint16_t, uint32_t> sweep_functions_avx2();

}  // namespace cast_kernels

// Windows and decisions in AVX2, included in an anonymous namespace by the levels that have it. They take no more than
// four lanes, and are chains of latencies that the mask registers of AVX-512 would only lengthen.

inline uint32_t same(const uint16_t* corner, int64_t stride, uint16_t label) {
  const auto load = [&](int row) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(corner + row * stride)); };
  const __m128i wanted = _mm_set1_epi16(static_cast<short>(label));
  const __m128i upper = _mm_cmpeq_epi16(_mm_unpacklo_epi64(load(0), load(1)), wanted);
  const __m128i lower = _mm_cmpeq_epi16(_mm_unpacklo_epi64(load(2), load(3)), wanted);
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(upper, lower)));
}

inline uint32_t popcount(uint32_t bits) { return static_cast<uint32_t>(_mm_popcnt_u32(bits)); }

inline __m128 lanes(const float* a, const float* b) { return _mm_unpacklo_ps(_mm_load_ss(a), _mm_load_ss(b)); }

inline void store_lanes(__m128 v, float* a, float* b) {
  _mm_store_ss(a, v);
  _mm_store_ss(b, _mm_movehdup_ps(v));
}

// The same arithmetic as in seeds_pixels_scalar.cpp, without a branch: half of the decisions are moves, and no branch
// predictor foresees them. Successive pairs share a label, so the time of a decision is the way from the totals it
// reads to those it writes. To keep that short all lanes hold the same up to the comparison, whose result then selects
// among changed values that are ready before it.
template <bool kForward, bool kSquareTotals>
inline int decide(const Pair& pair) {
  const uint32_t a = pair.labels[0];
  const uint32_t b = pair.labels[1];
  const __m128 total_a = _mm_broadcast_ss(pair.totals + a);
  const __m128 total_b = _mm_broadcast_ss(pair.totals + b);
  const auto gains = [](const float* own, __m128 total_own, const float* there, __m128 total_there,
                        const float* factor) {
    __m128 stay = _mm_mul_ps(_mm_broadcast_ss(own), total_there);
    __m128 leave = _mm_mul_ps(_mm_broadcast_ss(there), total_own);
    if (kSquareTotals) {
      stay = _mm_mul_ps(stay, total_there);
      leave = _mm_mul_ps(leave, total_own);
    }
    return _mm_cmpgt_ps(leave, _mm_mul_ps(stay, _mm_broadcast_ss(factor)));
  };
  const __m128 p_gains = gains(pair.bin_p + a, total_a, pair.bin_p + b, total_b, pair.factor);
  const __m128 q_gains = gains(pair.bin_q + b, total_b, pair.bin_q + a, total_a, pair.factor + 1);
  const auto select = [&](__m128 none, __m128 p, __m128 q) {
    return kForward ? _mm_blendv_ps(_mm_blendv_ps(none, q, q_gains), p, p_gains)
                    : _mm_blendv_ps(_mm_blendv_ps(none, p, p_gains), q, q_gains);
  };

  // Lanes 0 and 1: a and b. Where p moves, a loses one pixel to b; where q moves, b to a.
  const __m128 p_change = _mm_setr_ps(-1.0f, 1.0f, 0.0f, 0.0f);
  const __m128 q_change = _mm_setr_ps(1.0f, -1.0f, 0.0f, 0.0f);
  const __m128 totals = _mm_blend_ps(total_a, total_b, 2);
  store_lanes(select(totals, _mm_add_ps(totals, p_change), _mm_add_ps(totals, q_change)), pair.totals + a,
              pair.totals + b);

  // Each of the two histogram rows sees the move of the other pixel only where both are the same row.
  const __m128 same_row = _mm_castsi128_ps(_mm_set1_epi32(pair.bin_p == pair.bin_q ? -1 : 0));
  const __m128 bin_p = lanes(pair.bin_p + a, pair.bin_p + b);
  const __m128 bin_q = lanes(pair.bin_q + a, pair.bin_q + b);
  const __m128 new_p = select(bin_p, _mm_add_ps(bin_p, p_change), _mm_add_ps(bin_p, _mm_and_ps(q_change, same_row)));
  const __m128 new_q = select(bin_q, _mm_add_ps(bin_q, _mm_and_ps(p_change, same_row)), _mm_add_ps(bin_q, q_change));
  store_lanes(new_p, pair.bin_p + a, pair.bin_p + b);
  store_lanes(new_q, pair.bin_q + a, pair.bin_q + b);

  const auto both = [](uint32_t p, uint32_t q) {
    return _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(p | q << 16)));
  };
  const int labels = _mm_cvtsi128_si32(_mm_castps_si128(select(both(a, b), both(b, b), both(a, a))));
  std::memcpy(pair.labels, &labels, sizeof labels);
  pair.other[0] = static_cast<uint16_t>(labels);
  pair.other[pair.other_stride] = static_cast<uint16_t>(labels >> 16);

  // Indexed, as the compiler would branch on it. Both bits set: the pixel tried first moved.
  static constexpr int kMoved[4] = {kNone, 0, 1, kForward ? 0 : 1};
  return kMoved[_mm_movemask_ps(_mm_unpacklo_ps(p_gains, q_gains)) & 3];
}

#include <cmath>
#include <cstring>

#include "host_device.h"
#include "seeds_pixels.h"

namespace cast_kernels {
namespace {

#include "seeds_pair.inl"

inline int boundaries(const uint16_t* row, const uint16_t* other, int begin, int end, uint32_t* positions) {
  int count = 0;
  for (int x = begin; x < end; ++x) {
    positions[count] = static_cast<uint32_t>(x);
    count += row[x] != other[x];
  }
  return count;
}

inline uint32_t same(const uint16_t* corner, int64_t stride, uint16_t label) {
  constexpr uint64_t kOnes = 0x0001000100010001;  // one bit in each of four 16-bit lanes
  uint32_t bits = 0;
  for (int row = 0; row < 4; ++row) {
    uint64_t lanes;
    std::memcpy(&lanes, corner + row * stride, sizeof lanes);
    lanes ^= label * kOnes;
    const uint64_t different = ((lanes & 0x7fff * kOnes) + 0x7fff * kOnes) | lanes;  // top bit of each lane
    const uint64_t equal = ~different >> 15 & kOnes;
    bits |= static_cast<uint32_t>(equal * 0x0001000200040008 >> 48 & 15) << (4 * row);  // bits 0, 16, 32, 48 to 48..51
  }
  return bits;
}

inline uint32_t popcount(uint32_t bits) {  // of 16 bits
  bits = bits - (bits >> 1 & 0x5555u);
  bits = (bits & 0x3333u) + (bits >> 2 & 0x3333u);
  return (((bits + (bits >> 4)) & 0x0f0fu) * 0x0101u >> 8) & 31u;
}

// A pixel changes its label where it is more likely in the other one: the share of its colour there is greater, with
// kSquareTotals divided by the size once more, and times the prior.
template <bool kForward, bool kSquareTotals>
inline int decide(const Pair& pair) {
  const int a = pair.labels[0];
  const int b = pair.labels[1];
  const float total_a = pair.totals[a];
  const float total_b = pair.totals[b];
  const auto gains = [](float own, float total_own, float there, float total_there, float factor) {
    float stay = own * total_there;
    float leave = there * total_own;
    if (kSquareTotals) {
      stay *= total_there;
      leave *= total_own;
    }
    return leave > stay * factor;
  };
  const auto p_gains = [&] { return gains(pair.bin_p[a], total_a, pair.bin_p[b], total_b, pair.factor[0]); };
  const auto q_gains = [&] { return gains(pair.bin_q[b], total_b, pair.bin_q[a], total_a, pair.factor[1]); };

  int move = kNone;
  if (kForward) {
    move = p_gains() ? 0 : q_gains() ? 1 : kNone;
  } else {
    move = q_gains() ? 1 : p_gains() ? 0 : kNone;
  }
  if (move == kNone) return move;

  const bool is_p = move == 0;
  float* const bin = is_p ? pair.bin_p : pair.bin_q;
  const float change = is_p ? 1.0f : -1.0f;
  bin[a] -= change;
  bin[b] += change;
  pair.totals[a] = total_a - change;
  pair.totals[b] = total_b + change;
  const auto label = static_cast<uint16_t>(is_p ? b : a);
  pair.labels[move] = label;
  pair.other[move * pair.other_stride] = label;
  return move;
}

#include "seeds_pixels.inl"

}  // namespace

void seeds_pixels_scalar(const PixelState& state, int prior, int iterations) { pixel_stage(state, prior, iterations); }

}  // namespace cast_kernels

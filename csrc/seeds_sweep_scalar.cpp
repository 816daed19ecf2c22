#include <cstring>

#include "seeds_sweep.h"

namespace cast_kernels {
namespace {

// One at a time; compilers make vectors of it where they can.
template <class Label>
struct Lanes {
  static constexpr int kCount = 1;
  Label value;

  static Lanes load(const Label* at) { return {*at}; }
  static Lanes all(Label value) { return {value}; }
  friend Lanes equal(Lanes a, Lanes b) { return {static_cast<Label>(a.value == b.value ? -1 : 0)}; }
  friend Lanes operator&(Lanes a, Lanes b) { return {static_cast<Label>(a.value & b.value)}; }
  friend Lanes operator|(Lanes a, Lanes b) { return {static_cast<Label>(a.value | b.value)}; }
  friend Lanes operator+(Lanes a, Lanes b) { return {static_cast<Label>(a.value + b.value)}; }
  friend Lanes without(Lanes a, Lanes b) { return {static_cast<Label>(a.value & ~b.value)}; }
  friend void store_bytes(Lanes a, uint8_t* to) { *to = static_cast<uint8_t>(a.value); }
};

inline int list_sites(const uint8_t* directions, int width, int first_column, uint32_t* sites) {
  int count = 0;
  for (int x = first_column; x < width; x += 2) {
    sites[count] = static_cast<uint32_t>(x);
    count += directions[x] != 0;
  }
  return count;
}

inline int lowest_direction(uint32_t directions) {  // of four bits, one set
  return (directions & 1) != 0 ? 0 : (directions & 2) != 0 ? 1 : (directions & 4) != 0 ? 2 : 3;
}

// The lowest bit of each 8-bit or 16-bit lane that equals the label; the others zero.
template <class Label>
inline uint64_t equal_lanes(uint64_t lanes, Label label) {
  constexpr uint64_t kOnes = ~uint64_t{0} / static_cast<Label>(-1);
  constexpr uint64_t kLow = kOnes * (static_cast<Label>(-1) >> 1);  // all but the top bit of each lane
  lanes ^= label * kOnes;
  const uint64_t different = ((lanes & kLow) + kLow) | lanes;
  return ~different >> (8 * sizeof(Label) - 1) & kOnes;
}

// Four bits to the lowest bits of four lanes.
template <class Label>
inline uint64_t spread(uint32_t bits) {
  constexpr int kLane = 8 * sizeof(Label);
  const uint64_t b = bits;
  return (b & 1) | (b & 2) << (kLane - 1) | (b & 4) << (2 * kLane - 2) | (b & 8) << (3 * kLane - 3);
}

// Rows of four labels fill a word, or two of them do. Lanes of all words are added up, 16 times the own count and the
// other one in each, and the lanes by a product: no more than 170, so nothing is carried from lane to lane.
template <class Label>
inline uint32_t count_window(const Label* corner, int64_t stride, Label own, Label other, uint32_t counted) {
  constexpr uint64_t kOnes = ~uint64_t{0} / static_cast<Label>(-1);
  constexpr int kRows = 2 / static_cast<int>(sizeof(Label));  // in a word
  uint64_t sum = 0;
  for (int row = 0; row < 4; row += kRows) {
    uint64_t lanes = 0, mask = 0;
    for (int i = 0; i < kRows; ++i) {
      std::memcpy(reinterpret_cast<unsigned char*>(&lanes) + 4 * i, corner + (row + i) * stride, 4 * sizeof(Label));
      mask |= spread<Label>(counted >> (4 * (row + i)) & 15) << (32 * i);
    }
    sum += ((equal_lanes(lanes, own) << 4) + equal_lanes(lanes, other)) & (mask | mask << 4);
  }
  return static_cast<uint32_t>(sum * kOnes >> (64 - 8 * sizeof(Label)));
}

#include "seeds_sweep.inl"

}  // namespace

template <class Label, class Count>
SweepFunctions<Label, Count> sweep_functions_scalar() {
  return functions<Label, Count>();
}

template SweepFunctions<uint8_t, uint16_t> sweep_functions_scalar();
template SweepFunctions<uint16_t, uint16_t> sweep_functions_scalar();
template SweepFunctions<uint16_t, uint32_t> sweep_functions_scalar();

}  // namespace cast_kernels

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

template <class Label>
inline uint32_t count_window(const Label* corner, int64_t stride, Label own, Label other, uint32_t counted) {
  uint32_t counts = 0;
  for (int row = 0; row < 4; ++row, corner += stride) {
    for (int column = 0; column < 4; ++column, counted >>= 1) {
      const uint32_t is_own = corner[column] == own;
      const uint32_t is_other = corner[column] == other;
      counts += (counted & 1) * (16 * is_own + is_other);
    }
  }
  return counts;
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

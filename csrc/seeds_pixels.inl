// The pixel stage, included once per instruction set inside an anonymous namespace, after these functions:
//
//   int boundaries(const uint16_t* row, const uint16_t* other, int begin, int end, uint32_t* positions)
//     writes the positions x in [begin, end) with row[x] != other[x] in ascending order, returns how many;
//   uint32_t same(const uint16_t* corner, int64_t stride, uint16_t label)
//     16 bits of a window of 4 x 4 pixels, bit 4 * i + k set when row i, column k carries the label;
//   uint32_t popcount(uint32_t bits);
//   template <bool kForward, bool kSquareTotals> int decide(const Pair& pair)
//     decides on a pair and applies its move, see there..

#include "seeds_window.inl"

struct LinkTable {
  uint8_t may_leave[4096];

  constexpr LinkTable() : may_leave() {
    for (uint32_t window = 0; window < 4096; ++window) {
      may_leave[window] = static_cast<uint8_t>(window_may_leave(window));
    }
  }
};

constexpr LinkTable kLinks;

// What decide() has to know of a window: bits 0-3 count of b, 4-7 count of a, 8 p may leave a, 9 q may leave b.
inline uint32_t describe_window(const uint16_t* p, int64_t stride, uint32_t counted) {
  const uint16_t* const corner = p - stride - 1;
  const uint32_t a = same(corner, stride, p[0]);
  const uint32_t b = same(corner, stride, p[1]);
  const uint32_t may_leave = (kLinks.may_leave[a & 0xfff] & 1u) | (kLinks.may_leave[b & 0xfff] & 2u);
  return may_leave << 8 | popcount(a & counted) << 4 | popcount(b & counted);
}

// For each description of a window the factor by which staying is more likely than moving, for p and for q. NaN, with
// which no comparison holds, where the move is forbidden: the pixel may not leave, or the one tried first may not.
struct PriorTable {
  float factor[1024][2];

  PriorTable(const PowerTable& table, bool forward) {
    for (uint32_t window = 0; window < 1024; ++window) {
      const bool p = (window & 0x100) != 0;
      const bool q = (window & 0x200) != 0;
      const uint32_t count_a = window >> 4 & 15;
      const uint32_t count_b = window & 15;
      factor[window][0] = p && (forward || q) ? table.power[count_a][count_b] : NAN;
      factor[window][1] = q && (!forward || p) ? table.power[count_b][count_a] : NAN;
    }
  }
};

// One sequential sweep over all pairs (p, q) of neighbours in a row that carry different labels.
template <bool kForward, bool kSquareTotals, bool kVertical>
void sweep(const PixelState& state, const PriorTable& prior) {
  const PixelPlane& plane = kVertical ? state.transposed : state.image;
  const PixelPlane& other = kVertical ? state.image : state.transposed;
  const uint32_t counted = kVertical ? kCountedVertical : kCounted;
  for (int64_t row = 1; row < plane.rows - 1; ++row) {
    uint16_t* const labels = plane.labels + row * plane.stride;
    const uint16_t* const bins = plane.bins + row * plane.stride;
    // All pairs of the row and their windows are found first: independent work, which the processor overlaps, while
    // each decision waits for the one before. A move changes the windows of the next pixels alone.
    const int count = boundaries(labels, labels + 1, 1, plane.columns - 2, state.pairs);
    for (int i = 0; i < count; ++i) {
      state.windows[i] = describe_window(labels + state.pairs[i], plane.stride, counted);
    }
    int64_t moved = kNone;  // pixel that the last decision changed
    for (int i = 0; i < count; ++i) {
      const int64_t p = state.pairs[i];
      uint32_t window = state.windows[i];
      if (moved >= p - 1) {
        if (moved == p) continue;  // it was q of the last pair: this pair is passed over
        window = describe_window(labels + p, plane.stride, counted);
      }
      const int move = decide<kForward, kSquareTotals>(
          {state.histogram + static_cast<int64_t>(bins[p]) * state.num_labels,
           state.histogram + static_cast<int64_t>(bins[p + 1]) * state.num_labels, state.totals, labels + p,
           other.labels + p * other.stride + row, other.stride, prior.factor[window]});
      moved = p + move;
    }
  }
}

// The frame is never decided on: each of its pixels follows its inner neighbour.
inline void copy_row(const PixelState& state, const PixelPlane& plane, const PixelPlane& other, int64_t from,
                     int64_t to) {
  uint16_t* const target = plane.labels + to * plane.stride;
  const uint16_t* const source = plane.labels + from * plane.stride;
  const int count = boundaries(target, source, 0, plane.columns, state.pairs);
  for (int i = 0; i < count; ++i) {
    const int64_t x = state.pairs[i];
    const int before = target[x];
    const int after = source[x];
    float* const bin = state.histogram + static_cast<int64_t>(plane.bins[to * plane.stride + x]) * state.num_labels;
    bin[before] -= 1.0f;
    bin[after] += 1.0f;
    state.totals[before] -= 1.0f;
    state.totals[after] += 1.0f;
    target[x] = static_cast<uint16_t>(after);
    other.labels[x * other.stride + to] = static_cast<uint16_t>(after);
  }
}

// OpenCV counts the column two to the right of a vertical pair, not the next one; in the last inner column that is
// pixel 0 of the next row. The row after the last of the transposed plane holds these pixels.
inline void vertical_wrap(const PixelPlane& transposed) {
  uint16_t* const extra = transposed.labels + transposed.rows * transposed.stride;
  for (int y = 0; y + 1 < transposed.columns; ++y) extra[y] = transposed.labels[y + 1];
}

template <bool kForward, bool kSquareTotals>
void iterate(const PixelState& state, const PriorTable& prior) {
  const PixelPlane& image = state.image;
  const PixelPlane& transposed = state.transposed;
  sweep<kForward, kSquareTotals, false>(state, prior);
  vertical_wrap(transposed);
  sweep<kForward, kSquareTotals, true>(state, prior);
  copy_row(state, image, transposed, 1, 0);
  copy_row(state, image, transposed, image.rows - 2, image.rows - 1);
  copy_row(state, transposed, image, 1, 0);
  copy_row(state, transposed, image, transposed.rows - 2, transposed.rows - 1);
}

inline void pixel_stage(const PixelState& state, int prior, int iterations) {
  const PowerTable power(prior);
  const PriorTable forward(power, true);
  const PriorTable backward(power, false);
  for (int i = 0; i < iterations; ++i) {
    if (prior >= 2) {
      i % 2 == 0 ? iterate<true, true>(state, forward) : iterate<false, true>(state, backward);
    } else {
      i % 2 == 0 ? iterate<true, false>(state, forward) : iterate<false, false>(state, backward);
    }
  }
}

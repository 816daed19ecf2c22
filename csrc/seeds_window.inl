// What the pixel stage of sequential SEEDS knows of the window around a pair, on the CPU and on the GPU. Included
// inside an anonymous namespace, like seeds_pixels.inl, whose functions are compiled for several instruction sets.

// The window of a pair (p, q) of neighbours in a row has 4 x 4 pixels: bit 4 * i + k is row i, column k, and p and q
// are its pixels (1, 1) and (1, 2).
constexpr uint32_t kCounted = 0x0f9f;          // horizontal sweep: the three rows around the pair, without the pair
constexpr uint32_t kCountedVertical = 0x699f;  // vertical sweep, transposed: OpenCV's window, see vertical_wrap

// Of the neighbours of a pixel or a cell on the side away from the other label: is each still linked to the rest
// without it?
CAST_HOST_DEVICE constexpr bool keeps_links(bool far, bool up, bool down, bool far_up, bool far_down) {
  return !((!far && up && down) || (!far_up && up && far) || (!far_down && down && far));
}

// Which of p (bit 0) and q (bit 1) may leave a label, by the 12 bits of that label in the first three window rows.
CAST_HOST_DEVICE constexpr uint32_t window_may_leave(uint32_t window) {
  const bool p = keeps_links(window >> 4 & 1, window >> 1 & 1, window >> 9 & 1, window & 1, window >> 8 & 1);
  const bool q = keeps_links(window >> 7 & 1, window >> 2 & 1, window >> 10 & 1, window >> 3 & 1, window >> 11 & 1);
  return (p ? 1u : 0u) | (q ? 2u : 0u);
}

// (count of the own label / count of the other one) ^ (2 ^ (prior - 1))
struct PowerTable {
  float power[16][16];

  explicit PowerTable(int prior) {
    for (int own = 0; own < 16; ++own) {
      for (int other = 0; other < 16; ++other) {
        float ratio = other == 0 ? 1.0f : static_cast<float>(own) / static_cast<float>(other);
        for (int i = 1; i < prior; ++i) ratio *= ratio;
        power[own][other] = prior == 0 ? 1.0f : ratio;
      }
    }
  }
};

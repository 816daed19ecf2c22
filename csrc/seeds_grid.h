// The grid of superpixels and blocks that SEEDS starts from. It depends on the image size and the request alone.
#pragma once

#include <cstdint>
#include <vector>

namespace cast_kernels {

struct GridLevel {
  int columns;
  int rows;
  int cells() const { return columns * rows; }
};

struct SeedsGrid {
  int width;
  int height;
  std::vector<GridLevel> levels;  // 0 = blocks of pixels, back() = superpixels; every level halves the one before

  const GridLevel& top() const { return levels.back(); }
  int num_labels() const { return top().cells(); }
};

// Throws std::invalid_argument where OpenCV hangs, crashes or loses labels, and above the limits of this
// implementation.
SeedsGrid seeds_grid(int64_t height, int64_t width, int64_t num_superpixels, int64_t num_levels);

// First pixel of every cell along one axis plus the end: pixel i lies in cell min(i * cells / size, cells - 1).
std::vector<int> cell_edges(int size, int cells);

}  // namespace cast_kernels

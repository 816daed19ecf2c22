#include "seeds_grid.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace cast_kernels {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // 32-bit pixel offsets
constexpr int64_t kMaxLabels = 65535;             // 16-bit labels, the last of them a mark
constexpr int64_t kMaxLevels = 30;                // more never fit
constexpr int64_t kMinRequest = 10;
constexpr int kMinEdge = 6;  // pixels; of OpenCV's superpixels that start smaller some end without a pixel

[[noreturn]] void refuse(int64_t height, int64_t width, int64_t request, const std::string& reason) {
  throw std::invalid_argument("SEEDS cannot divide an image of " + std::to_string(height) + " x " +
                              std::to_string(width) + " pixels into " + std::to_string(request) +
                              " superpixels: " + reason);
}

}  // namespace

SeedsGrid seeds_grid(int64_t height, int64_t width, int64_t num_superpixels, int64_t num_levels) {
  if (height < 1 || width < 1 || height > kMaxPixels / width) {
    refuse(height, width, num_superpixels, "expected 1 to " + std::to_string(kMaxPixels) + " pixels");
  }
  if (num_superpixels < 1 || num_superpixels > kMaxPixels) {
    refuse(height, width, num_superpixels, "expected num_superpixels >= 1, at most one for every 6 x 6 pixels");
  }
  if (num_levels < 1) {
    throw std::invalid_argument("expected num_levels >= 1, got " + std::to_string(num_levels));
  }
  const int64_t request = std::max(num_superpixels, kMinRequest);
  const float h = static_cast<float>(height);
  const float w = static_cast<float>(width);

  const int64_t wanted_rows = static_cast<int64_t>(std::sqrt(static_cast<float>(request) * h / w));
  const int64_t wanted_columns = wanted_rows * width / height;
  if (wanted_rows == 0 || wanted_columns == 0) {
    refuse(height, width, request,
           "the image is too narrow, a grid of that many cells has no row or no column "
           "(ask for more superpixels; requests below 10 count as 10)");
  }

  // The number of levels falls until a block is at least one pixel wide and high.
  int depth = static_cast<int>(std::min(std::max<int64_t>(num_levels, 2), kMaxLevels));
  float block_width = 0;
  float block_height = 0;
  for (;; --depth) {
    if (depth < 2) {
      refuse(height, width, request,
             "a superpixel must start as at least 6 x 6 pixels "
             "(ask for fewer superpixels; requests below 10 count as 10)");
    }
    const float blocks = static_cast<float>(1 << (depth - 1));
    block_width = w / static_cast<float>(wanted_columns) / blocks;
    block_height = h / static_cast<float>(wanted_rows) / blocks;
    if (block_width >= 1.0f && block_height >= 1.0f) break;
  }

  const int edge = static_cast<int>(std::ceil(std::min(block_width, block_height))) << (depth - 1);
  if (edge < kMinEdge) {
    refuse(height, width, request,
           "a superpixel must start as at least 6 x 6 pixels, got " + std::to_string(edge) +
               " on a side (ask for fewer superpixels; requests below 10 count as 10)");
  }

  SeedsGrid grid{static_cast<int>(width), static_cast<int>(height), {}};
  GridLevel level{grid.width / static_cast<int>(std::ceil(block_width)),
                  grid.height / static_cast<int>(std::ceil(block_height))};
  for (int i = 0; i < depth; ++i, level = {level.columns / 2, level.rows / 2}) grid.levels.push_back(level);

  if (grid.num_labels() == 0) {
    refuse(height, width, request,
           "rounding the block size up leaves no whole superpixel "
           "(ask for more superpixels or fewer levels)");
  }
  if (grid.num_labels() > kMaxLabels) {
    refuse(height, width, request,
           "the grid would have " + std::to_string(grid.num_labels()) + " superpixels, at most " +
               std::to_string(kMaxLabels) + " are supported");
  }
  return grid;
}

std::vector<int> cell_edges(int size, int cells) {
  std::vector<int> edges(cells + 1, size);
  for (int cell = 0; cell < cells; ++cell) {
    edges[cell] = static_cast<int>((static_cast<int64_t>(cell) * size + cells - 1) / cells);
  }
  return edges;
}

}  // namespace cast_kernels

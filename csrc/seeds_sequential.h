// SEEDS superpixels of one image, in the order of OpenCV's createSuperpixelSEEDS and label for label equal to it.
#pragma once

#include <cstdint>
#include <vector>

#include "seeds_bins.h"
#include "seeds_grid.h"
#include "seeds_image.h"
#include "seeds_pixels.h"

namespace cast_kernels {

struct SeedsOptions {
  int64_t bins;        // per channel
  int64_t prior;       // 0..5
  int64_t iterations;  // of the pixel stage
  bool double_step;
  bool lab;  // convert RGB to Lab first
};

// Everything one image needs; kept by a thread for its next image.
class SeedsSequential {
 public:
  SeedsSequential(const SeedsGrid& grid, const SeedsOptions& options, PixelStage pixel_stage);

  // Writes the labels of every `stride`th pixel of every `stride`th row, contiguous, each in [0, grid.num_labels()).
  void run(const SeedsImage& image, int32_t* labels, int64_t stride);

 private:
  // The bins of the pixels of one cell, ascending, each with its number of pixels.
  struct Entry {
    int32_t bin;
    float count;
  };
  struct Level {
    int columns;
    int rows;
    std::vector<int32_t> parent;  // [cells] cell of the next level
    std::vector<int32_t> label;   // [cells] superpixel
    std::vector<int64_t> offset;  // [cells + 1] into entries
    std::vector<Entry> entries;
    std::vector<float> total;  // [cells] pixels
  };

  void quantize(const SeedsImage& image);
  void count_blocks();
  void merge_cells(const Level& children, Level& parents);
  void start_superpixels();
  void block_stage();
  template <bool kVertical>
  void block_sweep(Level& level, float required);
  float confidence(const Level& level, int cell, int from, int to) const;
  void move_cell(Level& level, int cell, int from, int to);
  void start_pixels();

  const SeedsGrid& grid_;
  const SeedsOptions options_;
  const JointBins joint_bins_;
  const PixelStage pixel_stage_;
  const int64_t image_stride_;
  const int64_t transposed_stride_;
  std::vector<int> block_x_;  // first pixel of every block column, see cell_edges
  std::vector<int> block_y_;
  std::vector<Level> levels_;  // of blocks; the superpixels themselves are in histogram_, totals_ and parts_

  int num_bins_ = 0;                 // used by this image
  std::vector<uint8_t> bin_lanes_;   // [num_bins_] place of each in OpenCV's sum, see confidence
  std::vector<float> histogram_;     // [num_bins_, labels]
  std::vector<float> totals_;        // [labels]
  std::vector<int32_t> parts_;       // [labels] blocks of the current level
  std::vector<uint16_t> bin_index_;  // [bins ^ 3] index among the used ones
  std::vector<uint16_t> image_labels_, image_bins_, transposed_labels_, transposed_bins_;
  std::vector<uint32_t> pairs_, windows_;
};

}  // namespace cast_kernels

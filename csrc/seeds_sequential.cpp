#include "seeds_sequential.h"

#include <algorithm>

#include "sparse_counter.h"

namespace cast_kernels {
namespace {

size_t plane_size(int rows, int columns) {
  // One row more than the image for the pixel stage, and space to read past the end of each row.
  return static_cast<size_t>(rows + 1) * (columns + kPlanePadding) + kPlanePadding;
}

}  // namespace

SeedsSequential::SeedsSequential(const SeedsGrid& grid, const SeedsOptions& options, PixelStage pixel_stage)
    : grid_(grid),
      options_(options),
      joint_bins_({options.bins, options.lab}),
      pixel_stage_(pixel_stage),
      image_stride_(grid.width + kPlanePadding),
      transposed_stride_(grid.height + kPlanePadding),
      block_x_(cell_edges(grid.width, grid.levels[0].columns)),
      block_y_(cell_edges(grid.height, grid.levels[0].rows)),
      totals_(grid.num_labels()),
      parts_(grid.num_labels()),
      bin_index_(joint_bins_.count()),
      image_labels_(plane_size(grid.height, grid.width)),
      image_bins_(plane_size(grid.height, grid.width)),
      transposed_labels_(plane_size(grid.width, grid.height)),
      transposed_bins_(plane_size(grid.width, grid.height)),
      pairs_(std::max(grid.width, grid.height) + kPlanePadding),
      windows_(pairs_.size()) {
  for (size_t i = 0; i + 1 < grid.levels.size(); ++i) {
    const GridLevel& here = grid.levels[i];
    const GridLevel& above = grid.levels[i + 1];
    Level level;
    level.columns = here.columns;
    level.rows = here.rows;
    level.label.resize(here.cells());
    level.total.resize(here.cells());
    level.offset.resize(here.cells() + 1);
    // A cell belongs to the coarser cell of its last pixel.
    const std::vector<int> x = cell_edges(grid.width, here.columns);
    const std::vector<int> y = cell_edges(grid.height, here.rows);
    for (int row = 0; row < here.rows; ++row) {
      const int64_t parent_row = static_cast<int64_t>(y[row + 1] - 1) * above.rows / grid.height;
      for (int column = 0; column < here.columns; ++column) {
        const int64_t parent_column = static_cast<int64_t>(x[column + 1] - 1) * above.columns / grid.width;
        level.parent.push_back(static_cast<int32_t>(parent_row * above.columns + parent_column));
      }
    }
    levels_.push_back(std::move(level));
  }
}

void SeedsSequential::run(const SeedsImage& image, int32_t* labels, int64_t stride) {
  quantize(image);
  count_blocks();
  for (size_t i = 1; i < levels_.size(); ++i) merge_cells(levels_[i - 1], levels_[i]);
  start_superpixels();
  block_stage();
  start_pixels();

  PixelState state;
  state.image = {image_labels_.data(), image_bins_.data(), image_stride_, grid_.height, grid_.width};
  state.transposed = {transposed_labels_.data(), transposed_bins_.data(), transposed_stride_, grid_.width,
                      grid_.height};
  state.histogram = histogram_.data();
  state.totals = totals_.data();
  state.num_labels = grid_.num_labels();
  state.pairs = pairs_.data();
  state.windows = windows_.data();
  pixel_stage_(state, static_cast<int>(options_.prior), static_cast<int>(options_.iterations));

  for (int64_t y = 0; y < grid_.height; y += stride) {
    const uint16_t* const row = image_labels_.data() + y * image_stride_;
    for (int64_t x = 0; x < grid_.width; x += stride) *labels++ = row[x];
  }
}

// Joint colour bins of all pixels, renumbered to those that occur, order kept.
void SeedsSequential::quantize(const SeedsImage& image) {
  std::fill(bin_index_.begin(), bin_index_.end(), 0);
  for (int y = 0; y < grid_.height; ++y) {
    joint_bins_.quantize_row(image, y, grid_.width, image_bins_.data() + y * image_stride_, bin_index_.data());
  }
  bin_lanes_.clear();
  for (size_t bin = 0; bin < bin_index_.size(); ++bin) {
    if (bin_index_[bin] != 0) bin_lanes_.push_back(static_cast<uint8_t>(bin % 4));
  }
  num_bins_ = number_used_bins(bin_index_);

  constexpr int kTile = 32;  // of both planes stays in the first cache
  for (int top = 0; top < grid_.height; top += kTile) {
    const int bottom = std::min(top + kTile, grid_.height);
    for (int left = 0; left < grid_.width; left += kTile) {
      const int right = std::min(left + kTile, grid_.width);
      for (int y = top; y < bottom; ++y) {
        uint16_t* const row = image_bins_.data() + y * image_stride_;
        for (int x = left; x < right; ++x) {
          row[x] = bin_index_[row[x]];
          transposed_bins_[x * transposed_stride_ + y] = row[x];
        }
      }
    }
  }
}

void SeedsSequential::count_blocks() {
  Level& level = levels_[0];
  SparseCounter counter(num_bins_);
  level.entries.clear();
  for (int row = 0, block = 0; row < level.rows; ++row) {
    for (int column = 0; column < level.columns; ++column, ++block) {
      for (int y = block_y_[row]; y < block_y_[row + 1]; ++y) {
        const uint16_t* const bins = image_bins_.data() + y * image_stride_;
        for (int x = block_x_[column]; x < block_x_[column + 1]; ++x) counter.add(bins[x], 1);
      }
      level.total[block] =
          static_cast<float>((block_y_[row + 1] - block_y_[row]) * (block_x_[column + 1] - block_x_[column]));
      counter.drain([&](int32_t bin, int32_t count) { level.entries.push_back({bin, static_cast<float>(count)}); });
      level.offset[block + 1] = static_cast<int64_t>(level.entries.size());
    }
  }
}

void SeedsSequential::merge_cells(const Level& children, Level& parents) {
  const int cells = parents.columns * parents.rows;
  std::vector<std::vector<int>> members(cells);
  for (int child = 0; child < children.columns * children.rows; ++child)
    members[children.parent[child]].push_back(child);

  SparseCounter counter(num_bins_);
  parents.entries.clear();
  for (int cell = 0; cell < cells; ++cell) {
    parents.total[cell] = 0;
    for (const int child : members[cell]) {
      parents.total[cell] += children.total[child];
      for (int64_t e = children.offset[child]; e < children.offset[child + 1]; ++e) {
        counter.add(children.entries[e].bin, static_cast<int32_t>(children.entries[e].count));
      }
    }
    counter.drain([&](int32_t bin, int32_t count) { parents.entries.push_back({bin, static_cast<float>(count)}); });
    parents.offset[cell + 1] = static_cast<int64_t>(parents.entries.size());
  }
}

void SeedsSequential::start_superpixels() {
  const int num_labels = grid_.num_labels();
  const Level& level = levels_.back();
  histogram_.assign(static_cast<size_t>(num_bins_) * num_labels, 0.0f);
  std::fill(totals_.begin(), totals_.end(), 0.0f);
  for (int cell = 0; cell < level.columns * level.rows; ++cell) {
    const int label = level.parent[cell];
    totals_[label] += level.total[cell];
    for (int64_t e = level.offset[cell]; e < level.offset[cell + 1]; ++e) {
      histogram_[static_cast<size_t>(level.entries[e].bin) * num_labels + label] += level.entries[e].count;
    }
  }
}

void SeedsSequential::block_stage() {
  for (size_t i = levels_.size(); i-- > 0;) {
    Level& level = levels_[i];
    const int cells = level.columns * level.rows;
    if (i + 1 == levels_.size()) {
      level.label = level.parent;
      std::fill(parts_.begin(), parts_.end(), 4);  // also where an odd grid gave another number of blocks
    } else {
      std::fill(parts_.begin(), parts_.end(), 0);
      for (int cell = 0; cell < cells; ++cell) {
        level.label[cell] = levels_[i + 1].label[level.parent[cell]];
        parts_[level.label[cell]] += i == 0 ? 1 : 4;
      }
    }
    for (const float required : {0.1f, 0.0f}) {
      if (required > 0 && !options_.double_step) continue;
      block_sweep<false>(level, required);
      block_sweep<true>(level, required);
    }
  }
}

// One sequential sweep over the pairs (i, j) of neighbouring cells along rows, or along columns. The outer ring of
// cells never moves.
template <bool kVertical>
void SeedsSequential::block_sweep(Level& level, float required) {
  const int along = kVertical ? level.columns : 1;  // from i to j
  const int across = kVertical ? 1 : level.columns;
  const int length = kVertical ? level.rows : level.columns;
  const int lines = kVertical ? level.columns : level.rows;
  const std::vector<int32_t>& label = level.label;

  // The neighbours of a cell on the side away from the other label: are they still linked without it?
  const auto may_leave = [&](int cell, int away) {
    const int own = label[cell];
    const bool far = label[cell + away] == own;
    const bool up = label[cell - across] == own;
    const bool down = label[cell + across] == own;
    const bool far_up = label[cell + away - across] == own;
    const bool far_down = label[cell + away + across] == own;
    return !((!far && up && down) || (!far_up && up && far) || (!far_down && down && far));
  };

  for (int line = 1; line < lines - 1; ++line) {
    for (int position = 1; position < length - 2; ++position) {
      const int i = line * across + position * along;
      const int j = i + along;
      const int a = label[i];
      const int b = label[j];
      if (a == b) continue;
      if ((parts_[a] == 2 || (parts_[a] > 2 && may_leave(i, -along))) && confidence(level, i, a, b) > required) {
        move_cell(level, i, a, b);
      } else if (parts_[b] > 1 && (parts_[b] <= 2 || may_leave(j, along)) && confidence(level, j, b, a) > required) {
        move_cell(level, j, b, a);
        ++position;
      }
    }
  }
}

// How much better the cell's histogram intersects that of the other superpixel than the rest of its own.
float SeedsSequential::confidence(const Level& level, int cell, int from, int to) const {
  const int num_labels = grid_.num_labels();
  const float total = level.total[cell];
  const float total_from = totals_[from] - total;
  const float total_to = totals_[to];
  // The products are integers. Where they pass 2^24 the order of the sum matters: four lanes, as in OpenCV.
  float sum_from[4] = {};
  float sum_to[4] = {};
  for (int64_t e = level.offset[cell]; e < level.offset[cell + 1]; ++e) {
    const Entry entry = level.entries[e];
    const float* const bin = histogram_.data() + static_cast<size_t>(entry.bin) * num_labels;
    const int lane = bin_lanes_[entry.bin];
    sum_from[lane] += std::min((bin[from] - entry.count) * total, entry.count * total_from);
    sum_to[lane] += std::min(bin[to] * total, entry.count * total_to);
  }
  const auto share = [total](const float* sum, float other) {
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (other * total);
  };
  return share(sum_to, total_to) - share(sum_from, total_from);
}

void SeedsSequential::move_cell(Level& level, int cell, int from, int to) {
  const int num_labels = grid_.num_labels();
  for (int64_t e = level.offset[cell]; e < level.offset[cell + 1]; ++e) {
    float* const bin = histogram_.data() + static_cast<size_t>(level.entries[e].bin) * num_labels;
    bin[from] -= level.entries[e].count;
    bin[to] += level.entries[e].count;
  }
  totals_[from] -= level.total[cell];
  totals_[to] += level.total[cell];
  --parts_[from];
  ++parts_[to];
  level.label[cell] = to;
}

// Every pixel starts with the label of its block, in both planes.
void SeedsSequential::start_pixels() {
  const Level& level = levels_[0];
  for (int row = 0; row < level.rows; ++row) {
    for (int column = 0; column < level.columns; ++column) {
      const auto label = static_cast<uint16_t>(level.label[row * level.columns + column]);
      const int x = block_x_[column];
      const int y = block_y_[row];
      const int width = block_x_[column + 1] - x;
      const int height = block_y_[row + 1] - y;
      for (int i = 0; i < height; ++i) {
        std::fill_n(image_labels_.data() + (y + i) * image_stride_ + x, width, label);
      }
      for (int k = 0; k < width; ++k) {
        std::fill_n(transposed_labels_.data() + (x + k) * transposed_stride_ + y, height, label);
      }
    }
  }
}

}  // namespace cast_kernels

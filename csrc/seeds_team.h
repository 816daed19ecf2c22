// One image of parallel SEEDS, worked on by a team of threads that take the same steps side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "seeds_bins.h"
#include "seeds_phases.h"
#include "seeds_schedule.h"
#include "seeds_sweep.h"
#include "threads.h"

namespace cast_kernels {

struct Range {
  int64_t begin, end;
};

struct Member {  // of a team
  int rank;
  int size;
  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }
};

constexpr int kFrameColumns = 1 + kSweepPadding;  // the frame on the right lies in the padding
constexpr int kFrameRows = 3;                     // two below, as windows of 4 x 4 pixels reach there

// A plane of labels with a frame around it, and space to read past the end of each row.
template <class Label>
struct LabelPlane {
  std::vector<Label> data;
  int stride = 0;
  Label* origin = nullptr;

  static size_t size(int columns, int rows) {
    return static_cast<size_t>(columns + kFrameColumns) * (rows + kFrameRows) + kSweepPadding;
  }
  void shape(int columns) {
    stride = columns + kFrameColumns;
    origin = data.data() + stride + 1;
  }
};

// Everything one image needs; kept for the next image.
template <class Label, class Count>
class SeedsTeam {
 public:
  SeedsTeam(const SeedsSchedule& schedule, const SeedsColours& colours, const SweepFunctions<Label, Count>& functions,
            int team);

  // Called by each member. Writes the labels of every `stride`th pixel of every `stride`th row. False where memory ran
  // out.
  bool run(const Member& member, const SeedsImage& image, int32_t* labels, int64_t stride);

 private:
  using State = SeedsState<Label, uint16_t, Count>;
  struct CellMove {
    int column, row;
    uint32_t from, to;
  };
  struct Own {  // by one member alone, but for the moves: all read them once they are made
    std::vector<uint8_t> directions;
    std::vector<uint32_t> sites;
    std::vector<uint16_t> used;
    std::vector<uint32_t> counts;  // [bins] zeros between two cells
    std::vector<CellEntry> entries;
    std::vector<CellMove> cell_moves;
    std::vector<PixelMove> pixel_moves;
    int64_t moved = 0;

    SweepScratch scratch() { return {directions.data(), sites.data()}; }
  };

  void allocate(int team);
  bool prepare(const Member& member, const SeedsImage& image);
  void count_initial(const Member& member);
  void sweep_cells(const Member& member, const SeedsSweep& sweep, size_t level);
  void decide_cells(const Member& member, const SeedsSweep& sweep, int phase);
  int decide_cell_at(Own& own, const SeedsRules& rules, int column, int row);
  void apply_cells(const Member& member, const CellGrid& grid);
  void refine(const Member& member, size_t level);
  void spread_to_pixels(const Member& member, const CellGrid& grid);
  void sweep_pixels(const Member& member, const SeedsSweep& sweep);
  void weigh_sizes(const Member& member, const SeedsSweep& sweep);
  template <bool kAlone>
  void apply_pixels(const Member& member);
  void set_grid(size_t level);

  const SeedsSchedule& schedule_;
  const JointBins bins_of_;
  const SweepFunctions<Label, Count> functions_;
  const int stride_;  // of pixels: labels and bins
  Barrier barrier_;
  bool out_of_memory_ = false;

  std::vector<Own> own_;             // [team]
  std::vector<uint16_t> bin_index_;  // of used bins among them
  uint32_t num_bins_ = 0;
  std::vector<uint16_t> bins_;  // [H + 3, stride], placed like the labels
  LabelPlane<Label> pixels_;
  LabelPlane<Label> cell_planes_[2];  // of this grid and of the one before or after
  SeedsCells<Label> cells_{};
  std::unique_ptr<Count[]> histogram_;
  size_t histogram_size_ = 0;
  std::vector<uint32_t> totals_;
  std::vector<float> stay_, enter_;
};

}  // namespace cast_kernels

// What parallel SEEDS does to an image of a given size: the list of its sweeps, and all that they read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "seeds_grid.h"
#include "seeds_phases.h"

namespace cast_kernels {

enum class SweepKind : int32_t {
  blocks,    // cells: the finest grid of seeds_grid, 2 x 2 to a superpixel
  halves,    // cells of half that edge
  quarters,  // and of a quarter
  wide,      // pixels, prior from the window of 3 x 4 pixels
  narrow,    // pixels, prior from the ring of 8
};

// A number of equal sweeps in a row.
struct SeedsStep {
  SweepKind kind;
  int32_t repeats;
  int32_t min_percent;  // of the mean superpixel: limits to the size of those that a move leaves and enters
  int32_t max_percent;
};

// Cells come before pixels and from coarse to fine. Throws std::invalid_argument for an unknown quality.
std::vector<SeedsStep> seeds_steps(const std::string& quality);

// A grid of cells; the labels come later (SeedsCells).
struct CellGrid {
  int columns;
  int rows;
  std::vector<int32_t> x_edges;  // [columns + 1]
  std::vector<int32_t> y_edges;  // [rows + 1]
  uint32_t max_size;             // pixels of the largest cell
};

// One sweep: kPhases phases over the same sites.
struct SeedsSweep {
  SweepKind kind;  // wide or narrow: pixels; the others: SeedsSchedule::cells[int(kind)]
  uint32_t min_total;
  uint32_t max_total;

  bool of_pixels() const { return kind == SweepKind::wide || kind == SweepKind::narrow; }
};

struct SeedsSchedule {
  int width;
  int height;
  int num_labels;
  // By SweepKind; each halves the one before, cell (x, y) becoming (2 x .. 2 x + 1, 2 y .. 2 y + 1). Grids that would
  // have empty cells are left out, with their sweeps. The first is always there: the labels start on it.
  std::vector<CellGrid> cells;
  std::vector<int32_t> initial_labels;  // of cells[0], row by row
  std::vector<SeedsSweep> sweeps;
  float wide_factors[256];  // [own count, other count]
  float narrow_factors[256];
  uint32_t most_pixels;  // no superpixel ever holds more, nor a bin of it
  bool wide_sums;        // the sums of cell_sum may pass 32 bits
};

// Throws std::invalid_argument for what seeds_grid refuses, and for steps out of order or limits that are none.
SeedsSchedule seeds_schedule(int64_t height, int64_t width, int64_t num_superpixels,
                             const std::vector<SeedsStep>& steps);

// At most so many joint bins occur in one image, whatever it shows: no look at the data is needed to size a histogram.
int64_t seeds_max_bins(int64_t height, int64_t width, int64_t bins, bool lab);

}  // namespace cast_kernels

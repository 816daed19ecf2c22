// What a team of threads needs for the parallel order of one image: sizes, the schedule, and where its arrays lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "seeds_colours.h"
#include "seeds_phases.h"
#include "team.h"

namespace cast_kernels {

constexpr int kGrids = 3;       // of cells: blocks, halves, quarters
constexpr int kMaxSweeps = 64;  // more than any quality has

// The same for all images of a batch; small enough to be the argument of a kernel.
struct ParallelPlan {
  int width, height, num_labels;
  int label_columns, label_rows;  // the superpixels at the start
  int columns, rows;              // blocks; those of grid g are 2^g times as many
  int grids;                      // that have no empty cell
  int num_sweeps;
  struct Sweep {
    uint8_t kind;  // SweepKind
    uint32_t min_total, max_total;
  } sweeps[kMaxSweeps];
  uint32_t max_size[kGrids];  // pixels of the largest cell
  int bins;
  uint32_t max_bins;  // that an image can use
  bool lab;
  float factors[2][256];  // wide, narrow

  CAST_HOST_DEVICE int pixels() const { return width * height; }
  CAST_HOST_DEVICE bool of_pixels(int sweep) const { return sweeps[sweep].kind >= kGrids; }
  // Where the cells are so large that most bins occur in each, all their histograms together are small.
  CAST_HOST_DEVICE bool is_dense(int grid) const { return max_size[grid] > 64 && max_size[grid] >= max_bins / 4; }
  CAST_HOST_DEVICE int cells(int grid) const { return columns * rows << (2 * grid); }
};

// Sites to decide on, and what was decided: column and row, 13 bits each, and above them a code.
class SiteQueue {
 public:
  SiteQueue() = default;
  CAST_HOST_DEVICE SiteQueue(uint32_t* near, uint32_t near_size, uint32_t* far)
      : near_(near), far_(far), near_size_(near_size) {}
  CAST_HOST_DEVICE uint32_t get(uint32_t i) const { return i < near_size_ ? near_[i] : far_[i - near_size_]; }
  CAST_HOST_DEVICE void set(uint32_t i, uint32_t site) const {
    if (i < near_size_) {
      near_[i] = site;
    } else {
      far_[i - near_size_] = site;
    }
  }

 private:
  uint32_t* near_ = nullptr;  // the first of them, in shared memory
  uint32_t* far_ = nullptr;
  uint32_t near_size_ = 0;
};

CAST_HOST_DEVICE inline uint32_t site_of(int x, int y, uint32_t code) {
  return static_cast<uint32_t>(x) | static_cast<uint32_t>(y) << 13 | code << 26;
}
CAST_HOST_DEVICE inline int site_x(uint32_t site) { return static_cast<int>(site & 8191); }
CAST_HOST_DEVICE inline int site_y(uint32_t site) { return static_cast<int>(site >> 13 & 8191); }
CAST_HOST_DEVICE inline uint32_t site_code(uint32_t site) { return site >> 26; }
constexpr uint32_t kStays = 8;  // code of a site that does not move; else its direction

// Sums over a cell: at most the pixels of a superpixel times those of a cell, which is no larger.
template <class Count>
using SumOf = std::conditional_t<sizeof(Count) == sizeof(uint16_t), uint32_t, uint64_t>;

// The arrays of one image. Near ones may lie in shared memory.
template <class LabelType, class BinType, class CountType>
struct ParallelState {
  using Label = LabelType;
  using Bin = BinType;
  using Count = CountType;

  uint16_t* joint;     // [pixels] joint bins; the same array as `bins` where both have 16 bits
  Label* cell_labels;  // of all grids, one after the other, framed
  uint32_t* dense;     // [cells, num_bins] histograms of the cells of a dense grid

  // Near:
  UsedBins used;
  int32_t* edges;      // of all grids, one after the other: columns + 1, rows + 1
  Label* labels;       // of pixels, from the frame on
  Bin* bins;           // [pixels]
  Count* histogram;    // [num_labels, num_bins]
  uint32_t* totals;    // [num_labels]
  float* inverse;      // [num_labels]
  float* factors;      // [2, 256]
  uint32_t* lengths;   // [4 kMaxSweeps] of the queue in every phase
  uint32_t* partial;   // [kSummers] for sums over the team
  uint32_t* num_bins;  // one word
  SiteQueue queue;
};

// 1. Sizes of arrays, in elements
template <class Label>
CAST_HOST_DEVICE constexpr int labels_per_word() {
  return static_cast<int>(4 / sizeof(Label));
}

// A whole word of frame stands before each row, so that pixels (0, y) begin words.
template <class Label>
CAST_HOST_DEVICE inline int label_stride(const ParallelPlan& plan) {
  constexpr int kWord = labels_per_word<Label>();
  return (plan.width + kWord - 1) / kWord * kWord + kWord;
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_framed_labels(const ParallelPlan& plan) {
  return static_cast<size_t>(label_stride<Label>(plan)) * (plan.height + 2) + labels_per_word<Label>();
}

CAST_HOST_DEVICE inline int num_framed_cells(const ParallelPlan& plan, int grid) {
  return ((plan.columns << grid) + 2) * ((plan.rows << grid) + 2);
}

CAST_HOST_DEVICE inline int num_cell_labels(const ParallelPlan& plan) {
  int sum = 0;
  for (int grid = 0; grid < plan.grids; ++grid) sum += num_framed_cells(plan, grid);
  return sum;
}

CAST_HOST_DEVICE inline int num_edges(const ParallelPlan& plan) {
  int sum = 0;
  for (int grid = 0; grid < plan.grids; ++grid) sum += (plan.columns << grid) + (plan.rows << grid) + 2;
  return sum;
}

CAST_HOST_DEVICE inline size_t num_dense(const ParallelPlan& plan) {
  size_t most = 0;
  for (int grid = 0; grid < plan.grids; ++grid) {
    const size_t counts = plan.is_dense(grid) ? static_cast<size_t>(plan.cells(grid)) * plan.max_bins : 0;
    most = counts > most ? counts : most;
  }
  return most;
}

// No phase has more sites.
CAST_HOST_DEVICE inline size_t num_sites(const ParallelPlan& plan) {
  return static_cast<size_t>((plan.width + 1) / 2) * ((plan.height + 1) / 2);
}

// 2. Views
template <class State>
CAST_HOST_DEVICE inline SeedsState<typename State::Label, typename State::Bin, typename State::Count> pixel_state(
    const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  const int stride = label_stride<Label>(plan);
  return {plan.width,      plan.height,     state.labels + stride + labels_per_word<Label>(),
          stride,          state.bins,      plan.width,
          state.histogram, *state.num_bins, state.totals,
          state.inverse};
}

template <class State>
CAST_HOST_DEVICE inline SeedsCells<typename State::Label> cells_of(const ParallelPlan& plan, const State& state,
                                                                   int grid) {
  typename State::Label* labels = state.cell_labels;
  int32_t* edges = state.edges;
  for (int g = 0; g < grid; ++g) {
    labels += num_framed_cells(plan, g);
    edges += (plan.columns << g) + (plan.rows << g) + 2;
  }
  const int columns = plan.columns << grid;
  const int rows = plan.rows << grid;
  return {columns, rows, edges, edges + columns + 1, labels + columns + 3, columns + 2};
}

// 3. Memory
// Hands out pieces of a buffer; with no buffer it only counts.
class Arena {
 public:
  CAST_HOST_DEVICE explicit Arena(char* base) : base_(base) {}
  template <class T>
  CAST_HOST_DEVICE T* take(size_t count) {
    T* const at = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    return at;
  }
  CAST_HOST_DEVICE size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The small arrays, near wherever there is shared memory.
template <class State>
CAST_HOST_DEVICE inline void lay_out_small(const ParallelPlan& plan, Arena& arena, State* state) {
  const auto words = static_cast<size_t>(used_bins_words(plan.bins));
  const auto labels = static_cast<size_t>(plan.num_labels);
  state->used.words = arena.take<uint32_t>(words);
  state->used.before = arena.take<uint32_t>(words);
  state->edges = arena.take<int32_t>(num_edges(plan));
  state->totals = arena.take<uint32_t>(labels);
  state->inverse = arena.take<float>(labels);
  state->factors = arena.take<float>(512);
  state->lengths = arena.take<uint32_t>(4 * kMaxSweeps);
  state->partial = arena.take<uint32_t>(kSummers);
  state->num_bins = arena.take<uint32_t>(1);
}

// What is always far.
template <class State>
CAST_HOST_DEVICE inline uint32_t* lay_out_far(const ParallelPlan& plan, Arena& arena, State* state) {
  state->joint = arena.take<uint16_t>(plan.pixels());
  state->cell_labels = arena.take<typename State::Label>(num_cell_labels(plan));
  state->dense = arena.take<uint32_t>(num_dense(plan));
  return arena.take<uint32_t>(num_sites(plan));  // the queue
}

// Everything far: the state of clusters and grids.
template <class Label, class Count>
CAST_HOST_DEVICE inline size_t lay_out_all_far(const ParallelPlan& plan, char* base,
                                               ParallelState<Label, uint16_t, Count>* state) {
  Arena arena(base);
  lay_out_small(plan, arena, state);
  state->queue = SiteQueue(nullptr, 0, lay_out_far(plan, arena, state));
  state->bins = state->joint;
  state->labels = arena.take<Label>(num_framed_labels<Label>(plan));
  state->histogram = arena.take<Count>(static_cast<size_t>(plan.num_labels) * plan.max_bins + 1);  // whole words
  return arena.used();
}

}  // namespace cast_kernels

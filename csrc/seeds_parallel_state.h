// What a team of threads needs for the parallel order of one image: sizes, the schedule, and where its arrays lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "packed.h"
#include "seeds_colours.h"
#include "seeds_phases.h"
#include "team.h"

namespace cast_kernels {

constexpr int kGrids = 3;       // of cells: blocks, halves, quarters
constexpr int kWindow = 32;     // pixels of a row that a thread looks at together
constexpr int kMaxSweeps = 64;  // more than any quality has
// Pixels of cells
constexpr uint32_t kSmallCell = 4;    // their bins are looked at anew every time
constexpr uint32_t kThreadCell = 16;  // one thread decides on one of up to so many

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
  int window_bits;            // of a row, rounded up to a power of two: kWindow pixels each
  int bins;
  uint32_t max_bins;  // that an image can use
  bool lab;
  float factors[512];  // wide, then narrow

  CAST_HOST_DEVICE int pixels() const { return width * height; }
  CAST_HOST_DEVICE int num_phases() const { return kPhases * num_sweeps; }
  CAST_HOST_DEVICE bool of_pixels(int sweep) const { return sweeps[sweep].kind >= kGrids; }
  // Where the cells are so large that most bins occur in each, all their histograms together are small.
  CAST_HOST_DEVICE bool is_dense(int grid) const { return max_size[grid] > 64 && max_size[grid] >= max_bins / 4; }
  // Other cells have lists of their bins.
  CAST_HOST_DEVICE bool is_listed(int grid) const { return max_size[grid] > kSmallCell && !is_dense(grid); }
  CAST_HOST_DEVICE int cells(int grid) const { return columns * rows << (2 * grid); }
};

// A list of sites, of which the first lie in shared memory.
struct SiteList {
  uint32_t* near;
  uint32_t* far;
  uint32_t near_size;

  CAST_HOST_DEVICE uint32_t get(uint32_t i) const { return i < near_size ? near[i] : far[i - near_size]; }
  CAST_HOST_DEVICE void set(uint32_t i, uint32_t site) const {
    if (i < near_size) {
      near[i] = site;
    } else {
      far[i - near_size] = site;
    }
  }
};

// The lists of a phase, each as long as `lengths` says.
enum ListName {
  kSiteList,    // to decide on
  kCornerList,  // pixels that touch several other superpixels: they take longer
  kMoveList,    // what was decided
  kLists,
};

// A pixel in a list is its place in the plane of labels, a cell its column and row. Above them stands a code.
constexpr int kPlaceBits = 26;
constexpr uint32_t kStays = 8;  // code of a site that does not move; else its direction

CAST_HOST_DEVICE inline uint32_t with_code(uint32_t place, uint32_t code) { return place | code << kPlaceBits; }
CAST_HOST_DEVICE inline int place_of(uint32_t site) { return static_cast<int>(site & ((1u << kPlaceBits) - 1)); }
CAST_HOST_DEVICE inline uint32_t code_of(uint32_t site) { return site >> kPlaceBits; }
CAST_HOST_DEVICE inline uint32_t cell_place(int x, int y) {
  return static_cast<uint32_t>(x) | static_cast<uint32_t>(y) << 13;
}
CAST_HOST_DEVICE inline int cell_x(uint32_t site) { return static_cast<int>(site & 8191); }
CAST_HOST_DEVICE inline int cell_y(uint32_t site) { return static_cast<int>(site >> 13 & 8191); }

// Sums over a cell: at most the pixels of a superpixel times those of a cell, which is no larger.
template <class Count>
using SumOf = std::conditional_t<sizeof(Count) == sizeof(uint16_t), uint32_t, uint64_t>;

// The arrays of one image, and those that each group of its team has of its own. Planes of pixels are `label_stride`
// wide, so that one place serves them all.
template <class Label>
struct ParallelArrays {
  uint16_t* joint;        // [H, stride] joint bins
  Label* cell_labels;     // of all grids, one after the other, framed
  uint32_t* dense;        // [cells, num_bins] histograms of the cells of a dense grid
  uint32_t* entries;      // [pixels] the bins of the cells of a listed grid: bin, and count << 16
  uint32_t* num_entries;  // [cells]

  UsedBins used;
  int32_t* edges;       // of all grids, one after the other: columns + 1, rows + 1
  Label* labels;        // of pixels, from the frame on
  uint32_t* border;     // bits of [H, stride]; set for every pixel beside another label, and for some that once were
  uint32_t* totals;     // [num_labels]
  uint32_t* partial;    // [kSummers] for sums over the team
  uint32_t* num_bins;   // one word

  // Of a group:
  float* stay;        // [num_labels] inverse_square(total), infinite where no pixel may leave
  float* enter;       // [num_labels] the same, zero where none may enter
  float* factors;     // [2, 256]
  uint32_t* lengths;  // [2, kLists] of this phase and of the next
  uint32_t* near_lists;
  uint32_t near_words;
  uint32_t* far_lists;  // [kLists, far_words]
  uint32_t far_words;   // enough for num_sites
};

template <class LabelType, class BinType, class CountType>
struct ParallelState : ParallelArrays<LabelType> {
  using Label = LabelType;
  using Bin = BinType;
  using Count = CountType;

  Bin* bins;         // [H, stride] of those that the image uses; `joint` where both have 16 bits
  Count* histogram;  // [num_labels, num_bins]
};

// 1. Sizes of arrays, in elements
// Planes of labels have a frame around them: a whole word of it before each row, so that sites (0, y) begin words.
template <class Label>
CAST_HOST_DEVICE inline int framed_stride(int columns) {
  constexpr int kWord = parts_per_word<Label>();
  return (columns + kWord - 1) / kWord * kWord + kWord;
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_framed(int columns, int rows) {
  return static_cast<size_t>(framed_stride<Label>(columns)) * (rows + 2) + parts_per_word<Label>();
}

template <class Label>
CAST_HOST_DEVICE inline int label_stride(const ParallelPlan& plan) {
  return framed_stride<Label>(plan.width);
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_framed_labels(const ParallelPlan& plan) {
  return num_framed<Label>(plan.width, plan.height);
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_places(const ParallelPlan& plan) {
  return static_cast<size_t>(label_stride<Label>(plan)) * plan.height;
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_border_words(const ParallelPlan& plan) {
  return num_places<Label>(plan) / 32 + 2;  // the last window of a row may look one word beyond it
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_framed_cells(const ParallelPlan& plan, int grid) {
  return num_framed<Label>(plan.columns << grid, plan.rows << grid);
}

template <class Label>
CAST_HOST_DEVICE inline size_t num_cell_labels(const ParallelPlan& plan) {
  size_t sum = 0;
  for (int grid = 0; grid < plan.grids; ++grid) sum += num_framed_cells<Label>(plan, grid);
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

template <class State>
CAST_HOST_DEVICE inline int num_sizes(const ParallelPlan& plan) {
  return sizeof(typename State::Label) == 1 ? 256 : plan.num_labels;
}

CAST_HOST_DEVICE inline int num_listed_cells(const ParallelPlan& plan) {
  int most = 0;
  for (int grid = 0; grid < plan.grids; ++grid) most = plan.is_listed(grid) ? plan.cells(grid) : most;
  return most;
}

// No phase gives a group of so many more sites: of every second row of its band every second pixel, or cell.
CAST_HOST_DEVICE inline size_t num_sites(const ParallelPlan& plan, int groups) {
  const int finest = plan.grids - 1;
  const auto most = [&](int columns, int rows) {
    return static_cast<size_t>((columns + 1) / 2) * ((rows + 1) / 2 / groups + 1);
  };
  const size_t pixels = most(plan.width, plan.height);
  const size_t cells = most(plan.columns << finest, plan.rows << finest);
  return pixels > cells ? pixels : cells;
}

// 2. Views
template <class State>
CAST_HOST_DEVICE inline typename State::Label* pixel_labels(const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  return state.labels + label_stride<Label>(plan) + parts_per_word<Label>();
}

template <class State>
CAST_HOST_DEVICE inline SeedsCells<typename State::Label> cells_of(const ParallelPlan& plan, const State& state,
                                                                   int grid) {
  using Label = typename State::Label;
  Label* labels = state.cell_labels;
  int32_t* edges = state.edges;
  for (int g = 0; g < grid; ++g) {
    labels += num_framed_cells<Label>(plan, g);
    edges += (plan.columns << g) + (plan.rows << g) + 2;
  }
  const int columns = plan.columns << grid;
  const int rows = plan.rows << grid;
  const int stride = framed_stride<Label>(columns);
  return {columns, rows, edges, edges + columns + 1, labels + stride + parts_per_word<Label>(), stride};
}

struct Phase {
  int sweep;
  int number;  // 0..3
};

template <class State>
CAST_HOST_DEVICE inline uint32_t* length_of(const State& state, const Phase& phase, ListName list) {
  return state.lengths + kLists * (phase.number & 1) + list;
}

// A photo of 224 x 224 has some 3,500 sites in a phase, 700 moves and 200 corners.
template <class State>
CAST_HOST_DEVICE inline SiteList list_of(const State& state, ListName list) {
  const uint32_t moves = state.near_words / 4;
  const uint32_t corners = state.near_words / 16;
  const uint32_t before[] = {0, state.near_words - moves - corners, state.near_words - moves, state.near_words};
  return {state.near_lists + before[list], state.far_lists + list * state.far_words, before[list + 1] - before[list]};
}

// By one thread of a group, in a step between two barriers in which no list of that phase is in use.
template <class State>
CAST_HOST_DEVICE inline void empty_lists(const State& state, int number) {
  for (int list = 0; list < kLists; ++list) state.lengths[kLists * (number & 1) + list] = 0;
}

// 3. Memory
constexpr int kMostArrays = 20;  // in one memory

// Where each array begins, in bytes, in the order of the functions below.
struct Layout {
  size_t begin[kMostArrays];
};

// Hands out pieces of a buffer and notes where they begin; with no buffer, that alone.
class Arena {
 public:
  explicit Arena(char* base, Layout* layout = nullptr) : base_(base), layout_(layout) {}
  template <class T>
  T* take(size_t count) {
    T* const at = reinterpret_cast<T*>(base_ + used_);
    if (arrays_ == kMostArrays) throw std::logic_error("more arrays than a Layout has room for");
    if (layout_ != nullptr) layout_->begin[arrays_] = used_;
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    ++arrays_;
    return at;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  Layout* layout_;
  size_t used_ = 0;
  int arrays_ = 0;
};

// Hands them out again from what an Arena has noted: on a GPU, sums of a register and a constant, which cost too little
// to be kept in registers through all phases.
class Replay {
 public:
  CAST_HOST_DEVICE Replay(char* base, const Layout& layout) : base_(base), layout_(layout) {}
  template <class T>
  CAST_HOST_DEVICE T* take(size_t) {
    return reinterpret_cast<T*>(base_ + layout_.begin[arrays_++]);
  }

 private:
  char* base_;
  const Layout& layout_;
  int arrays_ = 0;
};

// The small arrays of a group, near wherever there is shared memory. Those of fixed size come first: where the memory
// is at a fixed address, so are they, and no register holds it. 8-bit labels have arrays of fixed size, too.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_group(const ParallelPlan& plan, Memory& memory, State* state) {
  state->factors = memory.template take<float>(512);
  state->lengths = memory.template take<uint32_t>(2 * kLists);
  state->stay = memory.template take<float>(num_sizes<State>(plan));
  state->enter = memory.template take<float>(num_sizes<State>(plan));
}

// The small arrays of the team, near where a block is the team.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_small(const ParallelPlan& plan, Memory& memory, State* state) {
  state->num_bins = memory.template take<uint32_t>(1);
  state->partial = memory.template take<uint32_t>(kSummers);
  state->totals = memory.template take<uint32_t>(num_sizes<State>(plan));
  const auto words = static_cast<size_t>(used_bins_words(plan.bins));
  state->used.words = memory.template take<uint32_t>(words);
  state->used.before = memory.template take<uint32_t>(words);
  state->edges = memory.template take<int32_t>(num_edges(plan));
}

// The lists of all groups, but for what lies near.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_lists(Memory& memory, uint32_t words, int group, int groups, State* state) {
  const size_t size = kLists * static_cast<size_t>(words);
  state->far_words = words;
  state->far_lists = memory.template take<uint32_t>(size * groups) + size * group;
}

// What is always far.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_far(const ParallelPlan& plan, Memory& memory, State* state) {
  using Label = typename State::Label;
  state->joint = memory.template take<uint16_t>(num_places<Label>(plan));
  state->cell_labels = memory.template take<Label>(num_cell_labels<Label>(plan));
  state->dense = memory.template take<uint32_t>(num_dense(plan));
  const int listed = num_listed_cells(plan);
  state->entries = memory.template take<uint32_t>(listed > 0 ? plan.pixels() : 0);
  state->num_entries = memory.template take<uint32_t>(listed);
}

// The state of clusters and grids but for the groups' part: everything far.
template <class Memory, class State>
CAST_HOST_DEVICE inline void lay_out_all_far(const ParallelPlan& plan, Memory& memory, State* state) {
  using Label = typename State::Label;
  lay_out_small(plan, memory, state);
  lay_out_far(plan, memory, state);
  state->bins = state->joint;
  state->labels = memory.template take<Label>(num_framed_labels<Label>(plan));
  state->border = memory.template take<uint32_t>(num_border_words<Label>(plan));
  const size_t counts = static_cast<size_t>(plan.num_labels) * plan.max_bins;
  state->histogram = memory.template take<typename State::Count>(counts + 1);  // whole words
}

}  // namespace cast_kernels

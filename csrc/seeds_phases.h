// The phases of parallel SEEDS: every decision and every move, over plain arrays, for any driver.
//
// Sites (cells of pixels first, then single pixels) are coloured by the parity of their column and row. In a phase the
// sites of one colour decide, each from labels, histograms and totals as they stood when the phase began; then all
// moves are applied by integer additions. No site of a colour lies among the eight neighbours of another, so a site
// that may leave its superpixel without splitting it may do so whatever the others do, and the labels do not depend on
// the order of the decisions, nor on that of the moves. Floats are multiplied in the order written, never added.
#pragma once

#include <cstdint>

#include "packed.h"

namespace cast_kernels {

// 1. State. Label is uint8_t up to 255 superpixels, else uint16_t; Bin uint8_t up to 256 used bins, else uint16_t;
// Count uint16_t where SeedsSchedule::most_pixels allows, else uint32_t.
template <class Label>
constexpr Label kOutside = static_cast<Label>(-1);  // label of the frame around the image, and of no superpixel

template <class LabelType, class BinType, class CountType>
struct SeedsState {
  using Label = LabelType;
  using Bin = BinType;
  using Count = CountType;

  int width;  // pixels
  int height;
  Label* labels;      // of pixel (0, 0); a frame one pixel wide holds kOutside
  int label_stride;   // >= width + 2
  const Bin* bins;    // of pixel (0, 0), bins renumbered to those that the image uses
  int bin_stride;     // >= width
  Count* histogram;   // [num_labels, num_bins]; 65,535 labels of 64,000 bins still have 32-bit offsets
  uint32_t num_bins;  // from one label to the next
  uint32_t* totals;   // [num_labels] pixels
  float* inverse;     // [num_labels] inverse_square(total), of the totals at the start of a pixel phase
};

// One grid of cells. Cell (column, row) holds the pixels x_edges[column] <= x < x_edges[column + 1], likewise y.
template <class Label>
struct SeedsCells {
  int columns;
  int rows;
  const int32_t* x_edges;  // [columns + 1]
  const int32_t* y_edges;  // [rows + 1]
  Label* labels;           // of cell (0, 0); a frame one cell wide holds kOutside
  int label_stride;        // >= columns + 2
};

// What bounds a sweep, and the prior of its pixels.
struct SeedsRules {
  uint32_t min_total;    // a superpixel does not fall below
  uint32_t max_total;    // a superpixel above does not grow
  const float* factors;  // [16, 16] by own and other count: SeedsSchedule::wide_factors or narrow_factors
};

// 2. Sites
constexpr int kPhases = 4;  // of a sweep, one for each colour; in the order (0, 0), (1, 1), (1, 0), (0, 1)

CAST_HOST_DEVICE inline int phase_column(int phase) { return (phase ^ phase >> 1) & 1; }
CAST_HOST_DEVICE inline int phase_row(int phase) { return phase & 1; }

// How many of `size` columns (rows) belong to a phase whose first is `first`.
CAST_HOST_DEVICE inline int phase_count(int size, int first) { return (size - first + 1) / 2; }

// Directions 0 to 3 are east, north, west, south; y grows southward. Ring position 2 d lies in direction d, the odd
// ones between: 0 east, 1 north-east, ... 7 south-east.
CAST_HOST_DEVICE inline int direction_offset(int direction, int stride) {
  const int step = (direction & 1) != 0 ? stride : 1;
  return direction == 0 || direction == 3 ? step : -step;
}

template <class Label>
struct Ring {
  Label at[8];
};

template <class Label>
CAST_HOST_DEVICE inline Ring<Label> load_ring(const Label* site, int stride) {
  const Label* const north = site - stride;
  const Label* const south = site + stride;
  return {{site[1], north[1], north[0], north[-1], site[-1], south[-1], south[0], south[1]}};
}

// Bit i is set where ring position i carries the label.
template <class Label>
CAST_HOST_DEVICE inline uint32_t ring_mask(const Ring<Label>& ring, Label label) {
  uint32_t mask = 0;
  for (int i = 0; i < 8; ++i) mask |= static_cast<uint32_t>(ring.at[i] == label) << i;
  return mask;
}

constexpr uint32_t kSides = 0x55;  // the ring positions that share a side with the site

// May a site leave its superpixel, by the ring mask of its own label? Exactly one 4-connected piece of the superpixel
// in the ring shares a side with the site. False inside a superpixel.
CAST_HOST_DEVICE inline bool may_leave(uint32_t mask) {
  const uint32_t next = (mask >> 1 | mask << 7) & 0xff;
  const uint32_t after = (mask >> 2 | mask << 6) & 0xff;
  return count_bits(mask & ~(next & after) & kSides) == 1;
}

// 3. Colours
CAST_HOST_DEVICE inline uint32_t joint_bin(uint32_t first, uint32_t second, uint32_t third, uint32_t bins) {
  return ((first * bins >> 8) * bins + (second * bins >> 8)) * bins + (third * bins >> 8);
}

// 4. Pixels
constexpr int kStay = -1;

// 1 / total^2. The square in float, as that of integers overflows; both operations are rounded alike everywhere.
CAST_HOST_DEVICE inline float inverse_square(uint32_t total) {
  const float t = static_cast<float>(total);
  return 1.0f / (t * t);
}

// Where pixel (x, y) wants to go: the direction of a neighbour whose label it takes, or kStay. It moves to the label
// that maximises share of the pixel's bin / size, times a prior of smooth borders: with kWide from the 10 pixels around
// the pair of pixel and neighbour (OpenCV's window), else from the ring.
template <bool kWide, class State>
CAST_HOST_DEVICE inline int decide_pixel(const State& state, const SeedsRules& rules, int x, int y) {
  using Label = typename State::Label;
  const int stride = state.label_stride;
  const Label* const site = state.labels + static_cast<int64_t>(y) * stride + x;
  const Label own = *site;
  const Ring<Label> ring = load_ring(site, stride);
  const uint32_t own_mask = ring_mask(ring, own);
  if (!may_leave(own_mask) || state.totals[own] <= rules.min_total) return kStay;

  const uint32_t bin = state.bins[static_cast<int64_t>(y) * state.bin_stride + x];
  float best = static_cast<float>(state.histogram[own * state.num_bins + bin]) * state.inverse[own];
  int to = kStay;
  uint32_t tried = own_mask;  // ring positions whose label needs no further look
  for (int d = 0; d < 4; ++d) {
    const Label other = ring.at[2 * d];
    if ((tried >> (2 * d) & 1) != 0 || other == kOutside<Label>) continue;
    const uint32_t other_mask = ring_mask(ring, other);
    tried |= other_mask;
    if (state.totals[other] > rules.max_total) continue;
    int own_count = count_bits(own_mask);
    int other_count = count_bits(other_mask);
    if (kWide) {
      --other_count;  // the neighbour itself
      const Label* const beyond = site + 2 * direction_offset(d, stride);
      const int aside = (d & 1) != 0 ? 1 : stride;
      for (int i = -1; i <= 1; ++i) {
        own_count += beyond[i * aside] == own;
        other_count += beyond[i * aside] == other;
      }
    }
    const float gain = static_cast<float>(state.histogram[other * state.num_bins + bin]) * state.inverse[other] *
                       rules.factors[own_count * 16 + other_count];
    if (gain > best) {
      best = gain;
      to = d;
    }
  }
  return to;
}

// Applies a move. `add(pointer, change)` adds to a count or a total; atomically where moves run concurrently.
template <class State, class Add>
CAST_HOST_DEVICE inline void move_pixel(const State& state, int x, int y, int direction, Add add) {
  using Label = typename State::Label;
  Label* const site = state.labels + static_cast<int64_t>(y) * state.label_stride + x;
  const Label from = *site;
  const Label to = site[direction_offset(direction, state.label_stride)];  // of another colour, hence as it was
  const uint32_t bin = state.bins[static_cast<int64_t>(y) * state.bin_stride + x];
  add(state.histogram + (from * state.num_bins + bin), -1);
  add(state.histogram + (to * state.num_bins + bin), 1);
  add(state.totals + from, -1);
  add(state.totals + to, 1);
  *site = to;
}

// 5. Cells. Sum is uint32_t where SeedsSchedule::wide_sums is false, else uint64_t.
struct CellEntry {  // one bin of a cell, and how many of its pixels have it
  uint32_t bin;
  uint32_t count;
};

// The intersection of two histograms, cell and superpixel, has one term per bin of the cell. Times both sizes, so that
// it stays an integer: count and size of the cell against count and total of the superpixel.
template <class Sum>
CAST_HOST_DEVICE inline Sum cell_term(uint32_t cell_count, uint32_t cell_size, uint32_t count, uint32_t total) {
  const Sum a = static_cast<Sum>(count) * cell_size;
  const Sum b = static_cast<Sum>(cell_count) * total;
  return a < b ? a : b;
}

// An intersection of a cell with a superpixel: sum / total (/ size of the cell, the same for all that are compared).
template <class Sum>
struct CellShare {
  Sum sum;
  uint32_t total;
};

CAST_HOST_DEVICE inline bool is_greater(const CellShare<uint32_t>& a, const CellShare<uint32_t>& b) {
  return static_cast<uint64_t>(a.sum) * b.total > static_cast<uint64_t>(b.sum) * a.total;
}

// The products have up to 96 bits: they are compared in two parts.
CAST_HOST_DEVICE inline bool is_greater(const CellShare<uint64_t>& a, const CellShare<uint64_t>& b) {
  const uint64_t low_a = (a.sum & 0xffffffffu) * b.total;
  const uint64_t low_b = (b.sum & 0xffffffffu) * a.total;
  const uint64_t high_a = (a.sum >> 32) * b.total + (low_a >> 32);
  const uint64_t high_b = (b.sum >> 32) * a.total + (low_b >> 32);
  return high_a != high_b ? high_a > high_b : (low_a & 0xffffffffu) > (low_b & 0xffffffffu);
}

template <class Label>
CAST_HOST_DEVICE inline uint32_t cell_size(const SeedsCells<Label>& cells, int column, int row) {
  return static_cast<uint32_t>(cells.x_edges[column + 1] - cells.x_edges[column]) *
         static_cast<uint32_t>(cells.y_edges[row + 1] - cells.y_edges[row]);
}

// Bit d is set for each direction in which cell (column, row) has a superpixel to compare with, once per superpixel;
// 0 where the cell may not move.
template <class State>
CAST_HOST_DEVICE inline uint32_t cell_candidates(const State& state, const SeedsRules& rules,
                                                 const SeedsCells<typename State::Label>& cells, int column, int row) {
  using Label = typename State::Label;
  const Label* const site = cells.labels + static_cast<int64_t>(row) * cells.label_stride + column;
  const Label own = *site;
  const Ring<Label> ring = load_ring(site, cells.label_stride);
  const uint32_t own_mask = ring_mask(ring, own);
  if (!may_leave(own_mask)) return 0;
  const uint32_t total = state.totals[own];
  const uint32_t size = cell_size(cells, column, row);
  if (total < size + rules.min_total) return 0;

  uint32_t candidates = 0;
  uint32_t tried = own_mask;
  for (int d = 0; d < 4; ++d) {
    const Label other = ring.at[2 * d];
    if ((tried >> (2 * d) & 1) != 0 || other == kOutside<Label>) continue;
    tried |= ring_mask(ring, other);
    if (state.totals[other] <= rules.max_total) candidates |= 1u << d;
  }
  return candidates;
}

// How well the entries [begin, end) of a cell fit a superpixel; of its own, the cell itself does not count.
template <class Sum, class State>
CAST_HOST_DEVICE inline Sum cell_sum(const State& state, const CellEntry* begin, const CellEntry* end, uint32_t size,
                                     uint32_t label, bool is_own) {
  const typename State::Count* const histogram = state.histogram + label * state.num_bins;
  const uint32_t total = state.totals[label] - (is_own ? size : 0);
  Sum sum = 0;
  for (const CellEntry* entry = begin; entry != end; ++entry) {
    const uint32_t count = histogram[entry->bin] - (is_own ? entry->count : 0);
    sum += cell_term<Sum>(entry->count, size, count, total);
  }
  return sum;
}

// Which of the candidates fits the cell best, first of equals, if better than its own superpixel: a direction or kStay.
template <class Sum, class State>
CAST_HOST_DEVICE inline int choose_cell(const State& state, const SeedsCells<typename State::Label>& cells, int column,
                                        int row, uint32_t candidates, const CellEntry* begin, const CellEntry* end) {
  const typename State::Label* const site = cells.labels + static_cast<int64_t>(row) * cells.label_stride + column;
  const uint32_t size = cell_size(cells, column, row);
  CellShare<Sum> best{cell_sum<Sum>(state, begin, end, size, *site, true), state.totals[*site] - size};
  int to = kStay;
  for (int d = 0; d < 4; ++d) {
    if ((candidates >> d & 1) == 0) continue;
    const uint32_t other = site[direction_offset(d, cells.label_stride)];
    const CellShare<Sum> share{cell_sum<Sum>(state, begin, end, size, other, false), state.totals[other]};
    if (is_greater(share, best)) {
      best = share;
      to = d;
    }
  }
  return to;
}

// Where cell (column, row) wants to go.
template <class Sum, class State>
CAST_HOST_DEVICE inline int decide_cell(const State& state, const SeedsRules& rules,
                                        const SeedsCells<typename State::Label>& cells, int column, int row,
                                        const CellEntry* begin, const CellEntry* end) {
  const uint32_t candidates = cell_candidates(state, rules, cells, column, row);
  return candidates == 0 ? kStay : choose_cell<Sum>(state, cells, column, row, candidates, begin, end);
}

template <class State, class Add>
CAST_HOST_DEVICE inline void move_cell(const State& state, const SeedsCells<typename State::Label>& cells, int column,
                                       int row, int direction, const CellEntry* begin, const CellEntry* end, Add add) {
  using Label = typename State::Label;
  Label* const site = cells.labels + static_cast<int64_t>(row) * cells.label_stride + column;
  const Label from = *site;
  const Label to = site[direction_offset(direction, cells.label_stride)];
  const int size = static_cast<int>(cell_size(cells, column, row));
  for (const CellEntry* entry = begin; entry != end; ++entry) {
    add(state.histogram + (from * state.num_bins + entry->bin), -static_cast<int>(entry->count));
    add(state.histogram + (to * state.num_bins + entry->bin), static_cast<int>(entry->count));
  }
  add(state.totals + from, -size);
  add(state.totals + to, size);
  *site = to;
}

}  // namespace cast_kernels

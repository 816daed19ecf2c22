// The sequential order of SEEDS by a team of threads: label for label what csrc/seeds_sequential.cpp gives.
//
// The order is serial, but not every decision depends on every one before it. It reads and changes the labels, counts
// and sizes of two superpixels alone, so decisions on other superpixels may be taken before it, after it or at once.
// A warp therefore takes the next 32 pairs of the order, decides on all of them, and settles those that share no
// superpixel with an earlier one which moves, or which is not settled itself; the others decide again. The list of
// pairs is known when a pass begins: a pair's labels change in a pass only by the pair before it, which skips it then.
#pragma once

#include "seeds_sequential_blocks.h"

namespace cast_kernels {
namespace {

// 1. Pixels
// Lists the pairs of neighbours in the lines of a plane that carry different labels, in order; returns how many.
template <class Team>
CAST_HOST_DEVICE inline uint32_t list_pairs(Team& team, const SequentialState& state, const SequentialPlane& plane,
                                            SequentialScratch& scratch) {
  const auto warp = team.warp();
  uint32_t total = 0;
  for (int pass = 0; pass < 2; ++pass) {
    const bool count_only = pass == 0;
    for (int line = 1 + warp.index(); line < plane.rows - 1; line += warp.count()) {
      const int start = line * plane.columns;
      uint32_t at = count_only ? 0 : state.line_start[line - 1];
      for (int first = 1; first < plane.columns - 2; first += warp.size()) {
        const int x = first + warp.rank();
        const bool differs = x < plane.columns - 2 && plane.labels[start + x] != plane.labels[start + x + 1];
        const uint32_t found = warp.ballot(differs);
        const uint32_t before = found & ((1u << warp.rank()) - 1);
        if (differs && !count_only) state.pairs[at + count_bits(before)] = static_cast<uint32_t>(start + x);
        at += static_cast<uint32_t>(count_bits(found));
      }
      if (count_only && warp.rank() == 0) state.line_start[line - 1] = at;
    }
    if (count_only) total = exclusive_sum(team, state.line_start, plane.rows - 2, scratch.partial);
  }
  team.barrier();
  return total;
}

enum class PairMove : int { none, first, second };

template <bool kForward, bool kSquareTotals, bool kVertical>
CAST_HOST_DEVICE inline PairMove decide_pair(const SequentialPlan& plan, const SequentialState& state,
                                             const SequentialPlane& plane, const float* power, uint32_t position,
                                             uint32_t a, uint32_t b) {
  const uint16_t* const corner = plane.labels + position - plane.columns - 1;
  uint32_t window_a = 0;
  uint32_t window_b = 0;
  for (int row = 0; row < (kVertical ? 4 : 3); ++row) {
    for (int column = 0; column < 4; ++column) {
      const uint32_t label = corner[row * plane.columns + column];
      window_a |= static_cast<uint32_t>(label == a) << (4 * row + column);
      window_b |= static_cast<uint32_t>(label == b) << (4 * row + column);
    }
  }
  const bool first_may = (window_may_leave(window_a & 0xfff) & 1) != 0;
  const bool second_may = (window_may_leave(window_b & 0xfff) & 2) != 0;
  if (kForward ? !first_may : !second_may) return PairMove::none;

  constexpr uint32_t kInWindow = kVertical ? kCountedVertical : kCounted;
  const int count_a = count_bits(window_a & kInWindow);
  const int count_b = count_bits(window_b & kInWindow);
  const auto total_a = static_cast<float>(state.totals[a]);
  const auto total_b = static_cast<float>(state.totals[b]);
  const uint32_t* const bin_first = state.histogram + static_cast<size_t>(plane.bins[position]) * plan.num_labels;
  const uint32_t* const bin_second = state.histogram + static_cast<size_t>(plane.bins[position + 1]) * plan.num_labels;
  const auto gains = [](uint32_t own, float total_own, uint32_t there, float total_there, float factor) {
    float stay = static_cast<float>(own) * total_there;
    float leave = static_cast<float>(there) * total_own;
    if (kSquareTotals) {
      stay *= total_there;
      leave *= total_own;
    }
    return leave > stay * factor;
  };
  const bool first = first_may && gains(bin_first[a], total_a, bin_first[b], total_b, power[count_a * 16 + count_b]);
  const bool second =
      second_may && gains(bin_second[b], total_b, bin_second[a], total_a, power[count_b * 16 + count_a]);
  if (kForward) return first ? PairMove::first : second ? PairMove::second : PairMove::none;
  return second ? PairMove::second : first ? PairMove::first : PairMove::none;
}

CAST_HOST_DEVICE inline void move_in_pair(const SequentialPlan& plan, const SequentialState& state,
                                          const SequentialPlane& plane, const SequentialPlane& other, uint32_t position,
                                          uint32_t from, uint32_t to) {
  uint32_t* const bin = state.histogram + static_cast<size_t>(plane.bins[position]) * plan.num_labels;
  --bin[from];
  ++bin[to];
  --state.totals[from];
  ++state.totals[to];
  const uint32_t line = position / plane.columns;
  plane.labels[position] = static_cast<uint16_t>(to);
  other.labels[(position - line * plane.columns) * other.columns + line] = static_cast<uint16_t>(to);
}

// The serial part: decides on the listed pairs as if one after the other.
template <bool kForward, bool kSquareTotals, bool kVertical, class Warp>
CAST_HOST_DEVICE inline void decide_pairs(const Warp& warp, const SequentialPlan& plan, const SequentialState& state,
                                          SequentialScratch& scratch, uint32_t count) {
  const SequentialPlane& plane = kVertical ? state.transposed : state.image;
  const SequentialPlane& other = kVertical ? state.image : state.transposed;
  const auto rank = static_cast<uint32_t>(warp.rank());
  uint32_t last_position = 0;  // of the pair before these, which may skip the first of them
  bool last_moved_second = false;
  for (uint32_t base = 0; base < count; base += warp.size()) {
    const uint32_t left = count - base;
    const uint32_t size = left < static_cast<uint32_t>(warp.size()) ? left : static_cast<uint32_t>(warp.size());
    bool active = rank < size;
    const uint32_t position = active ? state.pairs[base + rank] : 0;
    const uint32_t a = active ? plane.labels[position] : 0;
    const uint32_t b = active ? plane.labels[position + 1] : 0;
    scratch.labels[rank] = a | b << 16;
    scratch.positions[rank] = position;
    warp.sync();
    uint32_t shares = 0;  // earlier pairs with a label of this one
    for (uint32_t i = 0; i < size; ++i) {
      const uint32_t first = scratch.labels[i] & 0xffff;
      const uint32_t second = scratch.labels[i] >> 16;
      const bool hit = first == a || first == b || second == a || second == b;
      shares |= static_cast<uint32_t>(hit && i < rank) << i;
    }
    const uint32_t before = rank == 0 ? last_position : scratch.positions[rank - 1];
    const bool is_next = active && position == before + 1;
    if (rank == 0 && is_next && last_moved_second) active = false;
    last_position = scratch.positions[size - 1];

    uint32_t moved_second = 0;
    while (warp.ballot(active) != 0) {
      const PairMove move =
          active ? decide_pair<kForward, kSquareTotals, kVertical>(plan, state, plane, scratch.power, position, a, b)
                 : PairMove::none;
      const uint32_t movers = warp.ballot(move != PairMove::none);
      uint32_t waiting = 0;
      for (;;) {
        const uint32_t next = warp.ballot(active && (shares & (movers | waiting)) != 0);
        if (next == waiting) break;
        waiting = next;
      }
      warp.sync();  // all have decided: now the moves
      const bool settled = active && (waiting >> rank & 1) == 0;
      if (settled && move == PairMove::first) move_in_pair(plan, state, plane, other, position, a, b);
      if (settled && move == PairMove::second) move_in_pair(plan, state, plane, other, position + 1, b, a);
      moved_second |= warp.ballot(settled && move == PairMove::second);
      active = active && !settled;
      if (is_next && rank > 0 && (moved_second >> (rank - 1) & 1) != 0) active = false;  // passed over
      warp.sync();
    }
    last_moved_second = (moved_second >> (size - 1) & 1) != 0;
    warp.sync();
  }
}

// The frame is never decided on: two of its sides follow the lines next to them.
template <class Team>
CAST_HOST_DEVICE inline void copy_frame(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                        const SequentialPlane& plane, const SequentialPlane& other) {
  for (int i = team.rank(); i < 2 * plane.columns; i += team.size()) {
    const int x = i % plane.columns;
    const int to = i < plane.columns ? 0 : plane.rows - 1;
    const int from = i < plane.columns ? 1 : plane.rows - 2;
    const uint16_t label = plane.labels[from * plane.columns + x];
    const uint16_t old = plane.labels[to * plane.columns + x];
    if (label == old) continue;
    uint32_t* const bin = state.histogram + static_cast<size_t>(plane.bins[to * plane.columns + x]) * plan.num_labels;
    atomic_add(bin + old, ~0u);
    atomic_add(bin + label, 1u);
    atomic_add(state.totals + old, ~0u);
    atomic_add(state.totals + label, 1u);
    plane.labels[to * plane.columns + x] = label;
    other.labels[x * other.columns + to] = label;
  }
  team.barrier();
}

template <bool kForward, bool kSquareTotals, class Team>
CAST_HOST_DEVICE inline void iterate(Team& team, const SequentialPlan& plan, const SequentialState& state,
                                     SequentialScratch& scratch) {
  const SequentialPlane& image = state.image;
  const SequentialPlane& transposed = state.transposed;
  const auto warp = team.warp();
  uint32_t count = list_pairs(team, state, image, scratch);
  if (warp.index() == 0) decide_pairs<kForward, kSquareTotals, false>(warp, plan, state, scratch, count);
  team.barrier();
  // OpenCV counts the column two to the right of a vertical pair; in the last inner column that is pixel 0 of the next
  // row. The row after the last of the transposed plane holds these pixels.
  for (int y = team.rank(); y + 1 < plan.height; y += team.size()) {
    transposed.labels[plan.width * plan.height + y] = transposed.labels[y + 1];
  }
  count = list_pairs(team, state, transposed, scratch);
  if (warp.index() == 0) decide_pairs<kForward, kSquareTotals, true>(warp, plan, state, scratch, count);
  team.barrier();
  copy_frame(team, plan, state, image, transposed);
  copy_frame(team, plan, state, transposed, image);
}

template <class Team>
CAST_HOST_DEVICE inline void start_pixels(Team& team, const SequentialPlan& plan, const SequentialState& state) {
  const SequentialLevel blocks = sequential_level(plan, state, 0);
  for (int i = team.rank(); i < plan.width * plan.height; i += team.size()) {
    const int y = i / plan.width;
    const int x = i - y * plan.width;
    const auto label = static_cast<uint16_t>(block_label(plan, blocks, x, y));
    state.image.labels[i] = label;
    state.transposed.labels[x * plan.height + y] = label;
  }
  team.barrier();
}

// 2. One image: the labels of every stride-th pixel of every stride-th row.
template <class Team>
CAST_HOST_DEVICE inline void seeds_sequential_image(Team& team, const SequentialPlan& plan,
                                                    const SequentialState& state, SequentialScratch& scratch,
                                                    const LabTables& tables, const SeedsImage& image, int32_t* labels,
                                                    int stride) {
  for (int i = team.rank(); i < 256; i += team.size()) scratch.power[i] = plan.power[i];
  start_cells(team, plan, state);
  const uint32_t num_bins = start_bins(team, plan, state, tables, image, scratch);
  start_superpixels(team, plan, state, num_bins);
  block_stage(team, plan, state, scratch, num_bins);
  start_pixels(team, plan, state);
  for (int i = 0; i < plan.iterations; ++i) {
    if (plan.prior >= 2) {
      i % 2 == 0 ? iterate<true, true>(team, plan, state, scratch) : iterate<false, true>(team, plan, state, scratch);
    } else {
      i % 2 == 0 ? iterate<true, false>(team, plan, state, scratch) : iterate<false, false>(team, plan, state, scratch);
    }
  }
  const LabelGrid grid(plan.height, plan.width, stride);
  const int columns = static_cast<int>(grid.columns);
  for (int i = team.rank(); i < grid.size(); i += team.size()) {
    const int y = i / columns;
    labels[i] = state.image.labels[y * stride * plan.width + (i - y * columns) * stride];
  }
  team.barrier();  // before the next image of this team
}

}  // namespace
}  // namespace cast_kernels

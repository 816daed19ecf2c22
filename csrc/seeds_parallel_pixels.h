// The sweeps over pixels, by a team. Every group decides on the pixels of a band of rows.
#pragma once

#include <limits>

#include "seeds_around.h"
#include "seeds_parallel_state.h"

namespace cast_kernels {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Whether or not it is set: to look first would take longer.
CAST_HOST_DEVICE inline void set_border(uint32_t* border, int place) {
  atomic_or(border + (place >> 5), 1u << (place & 31));
}

CAST_HOST_DEVICE inline void clear_border(uint32_t* border, int place) {
  atomic_and(border + (place >> 5), ~(1u << (place & 31)));
}

// Bit i is set where pixel i of a word of labels lies beside another label. What is outside the image counts as alike.
template <class Label>
CAST_HOST_DEVICE inline uint32_t border_bits(const ParallelPlan& plan, const Word* at, int stride, int x, int y) {
  constexpr int kLabels = parts_per_word<Label>();
  constexpr int kBits = 8 * sizeof(Label);
  constexpr uint32_t kLabel = kOutside<Label>;
  const int last_column = plan.width - 1;
  const uint32_t here = at[0];
  uint32_t differs = (y > 0 ? at[-stride] : here) ^ here;
  differs |= (y + 1 < plan.height ? at[stride] : here) ^ here;
  differs |= (here << kBits | (x > 0 ? at[-1] >> (32 - kBits) : here & kLabel)) ^ here;
  uint32_t east = (here >> kBits | at[1] << (32 - kBits)) ^ here;
  if (last_column < x + kLabels) east &= ~(kLabel << (kBits * (last_column - x)));
  differs |= east;
  uint32_t bits = 0;
  for (int i = 0; i < kLabels; ++i) {
    if ((differs >> (kBits * i) & kLabel) != 0 && x + i <= last_column) bits |= 1u << i;
  }
  return bits;
}

// Marks the border of every superpixel; `border` is zero.
template <class Team, class State>
CAST_HOST_DEVICE inline void mark_border(const Team& team, const ParallelPlan& plan, const State& state) {
  using Label = typename State::Label;
  constexpr int kLabels = parts_per_word<Label>();
  const int stride = label_stride<Label>(plan);
  const auto* const labels = reinterpret_cast<const Word*>(pixel_labels(plan, state));
  for_each_place(team, plan.height, (plan.width + kWindow - 1) / kWindow, [&](int y, int window) {
    const int left = window * kWindow;
    uint32_t bits = 0;
    for (int i = 0; i < kWindow && left + i < plan.width; i += kLabels) {
      const Word* const at = labels + (y * stride + left + i) / kLabels;
      bits |= border_bits<Label>(plan, at, stride / kLabels, left + i, y) << i;
    }
    if (bits == 0) return;
    const int place = y * stride + left;
    const int shift = place & 31;
    atomic_or(state.border + (place >> 5), bits << shift);
    if (shift != 0) atomic_or(state.border + (place >> 5) + 1, bits >> (32 - shift));
  });
}

// Lists the marked pixels of a phase, and weighs the superpixels for decide_pixels.
template <class Team, class State>
CAST_HOST_DEVICE inline void find_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                         const Phase& phase) {
  const auto group = team.group();
  const ParallelPlan::Sweep& sweep = plan.sweeps[phase.sweep];
  CAST_KEEP_LOOP
  for (int label = group.rank(); label < plan.num_labels; label += group.size()) {
    const uint32_t total = state.totals[label];
    const float weight = inverse_square(total);
    state.stay[label] = total <= sweep.min_total ? kInfinity : weight;
    state.enter[label] = total > sweep.max_total ? 0.0f : weight;
  }

  const int stride = label_stride<typename State::Label>(plan);
  const Band band = band_of(team, plan.height);
  const int first = band.begin + ((band.begin ^ phase_row(phase.number)) & 1);
  const int count = phase_count(band.end, first) << plan.window_bits;
  const uint32_t colour = 0x55555555u << phase_column(phase.number);
  const SiteList list = list_of(state, kSiteList);
  const auto warp = group.warp();
  for (int begin = warp.index() * warp.size(); begin < count; begin += warp.count() * warp.size()) {
    const int i = begin + warp.rank();
    const int left = (i & ((1 << plan.window_bits) - 1)) * kWindow;
    const int place = (first + 2 * (i >> plan.window_bits)) * stride + left;
    uint32_t bits = 0;
    if (i < count && left < plan.width) {
      const uint32_t* const word = state.border + (place >> 5);
      bits = funnel_shift(read_shared_word(word), read_shared_word(word + 1), place & 31) & colour;
      if (left + kWindow > plan.width) bits &= (1u << (plan.width - left)) - 1;  // not those of the next row
    }
    const auto found = static_cast<uint32_t>(count_bits(bits));
    uint32_t at = warp.sum_before(found);
    const uint32_t all = warp.take(at + found, warp.size() - 1);
    if (all == 0) continue;
    const uint32_t start = warp.take(warp.rank() == 0 ? atomic_add(length_of(state, phase, kSiteList), all) : 0, 0);
    at += start;
    if (start + all <= list.near_size) {
      for (uint32_t* to = list.near + at; bits != 0; bits &= bits - 1) {
        *to++ = static_cast<uint32_t>(place + lowest_bit(bits));
      }
    } else {
      for (; bits != 0; bits &= bits - 1) list.set(at++, static_cast<uint32_t>(place + lowest_bit(bits)));
    }
  }
}

constexpr uint32_t kAtCorner = kStays + 1;  // codes of no move: to be decided with kCornerList,
constexpr uint32_t kInside = kStays + 2;    // and beside no other superpixel

// decide_pixel of seeds_phases.h: a direction, or a code. Most pixels touch one other superpixel alone and need no
// loop; without kLoop, the rest is only told apart.
template <bool kWide, bool kLoop, class State>
CAST_HOST_DEVICE inline uint32_t decide_site(const State& state, const typename State::Label* labels, int stride,
                                             uint32_t num_bins, int site) {
  using Label = typename State::Label;
  const Around<Label> around(labels, stride, site);
  const uint32_t own = around.own();
  const uint32_t own_sides = around.sides_like(own);
  uint32_t others = kAllSides & ~own_sides;
  if (kLoop) others &= ~around.sides_like(kOutside<Label>);
  if (others == 0) return kInside;
  const uint32_t own_corners = around.corners_like(own);
  if (!may_leave(own_sides, own_corners)) return kStays;

  const uint32_t bin = state.bins[site];
  float best = static_cast<float>(state.histogram[own * num_bins + bin]) * state.stay[own];
  uint32_t to = kStays;
  do {
    const int d = lowest_bit(others) >> 3;
    const uint32_t other = around.side(d);
    const uint32_t other_sides = around.sides_like(other);
    others &= ~other_sides;
    if (!kLoop && (others != 0 || other == kOutside<Label>)) return kAtCorner;
    uint32_t own_around = own_sides | own_corners >> 1;
    uint32_t other_around = other_sides | around.corners_like(other) >> 1;
    if (kWide) {  // the three beyond the neighbour, too, but not the neighbour itself
      const bool vertical = (d & 1) != 0;
      const Line<Label> beyond(labels + (site + 2 * direction_offset(d, stride)), vertical ? 1 : stride);
      own_around |= beyond.like(own) >> 2;
      other_around = (other_around ^ 0x80u << 8 * d) | beyond.like(other) >> 2;
    }
    const int own_count = count_bits(own_around);
    const int other_count = count_bits(other_around);
    const float* const factors = state.factors + (kWide ? 0 : 256);
    const float gain = static_cast<float>(state.histogram[other * num_bins + bin]) * state.enter[other] *
                       factors[own_count * 16 + other_count];
    if (gain > best) {
      best = gain;
      to = static_cast<uint32_t>(d);
    }
  } while (kLoop && others != 0);
  return to;
}

template <bool kWide, ListName kFrom, class Team, class State>
CAST_HOST_DEVICE inline void decide_list(const Team& team, const ParallelPlan& plan, const State& state,
                                         const Phase& phase) {
  constexpr bool kLoop = kFrom == kCornerList;
  const int stride = label_stride<typename State::Label>(plan);
  const auto* const labels = pixel_labels(plan, state);
  const uint32_t num_bins = *state.num_bins;
  const SiteList sites = list_of(state, kFrom);
  const SiteList corners = list_of(state, kCornerList);
  const SiteList moves = list_of(state, kMoveList);
  const auto count = static_cast<int>(*length_of(state, phase, kFrom));
  const auto warp = team.group().warp();
  for (int begin = warp.index() * warp.size(); begin < count; begin += warp.count() * warp.size()) {
    const int i = begin + warp.rank();
    uint32_t site = 0;
    uint32_t to = kStays;
    if (i < count) {
      site = sites.get(i);
      to = decide_site<kWide, kLoop>(state, labels, stride, num_bins, static_cast<int>(site));
      if (to == kInside) clear_border(state.border, static_cast<int>(site));
    }
    static_assert(kMoveList == kCornerList + 1);
    const Append<2> append(warp, length_of(state, phase, kCornerList), {to == kAtCorner, to < kStays});
    if (!kLoop && to == kAtCorner) corners.set(append.place(0), site);
    if (to < kStays) moves.set(append.place(1), with_code(site, to));
  }
}

// Decides on the pixels of a list: kSiteList, which leaves those that touch several other superpixels to kCornerList, or
// that.
template <ListName kFrom, class Team, class State>
CAST_HOST_DEVICE inline void decide_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                           const Phase& phase) {
  if (plan.sweeps[phase.sweep].kind == kGrids) {
    decide_list<true, kFrom>(team, plan, state, phase);
  } else {
    decide_list<false, kFrom>(team, plan, state, phase);
  }
}

// move_pixel of seeds_phases.h for all moves of a phase.
template <class Team, class State>
CAST_HOST_DEVICE inline void move_pixels(const Team& team, const ParallelPlan& plan, const State& state,
                                         const Phase& phase) {
  using Label = typename State::Label;
  const auto group = team.group();
  const int stride = label_stride<Label>(plan);
  Label* const labels = pixel_labels(plan, state);
  const uint32_t num_bins = *state.num_bins;
  const uint32_t count = *length_of(state, phase, kMoveList);
  if (group.rank() == 0) empty_lists(state, phase.number + 1);
  for (uint32_t i = group.rank(); i < count; i += group.size()) {
    const uint32_t move = list_of(state, kMoveList).get(i);
    const int site = place_of(move);
    const uint32_t from = labels[site];
    const uint32_t bin = state.bins[site];
    const uint32_t to = labels[site + direction_offset(static_cast<int>(code_of(move)), stride)];
    uint32_t neighbours[4];  // of other colours: none of them moves in this phase
    CAST_UNROLL
    for (int d = 0; d < 4; ++d) neighbours[d] = labels[site + direction_offset(d, stride)];
    add_count(state.histogram + (from * num_bins + bin), -1);
    add_count(state.histogram + (to * num_bins + bin), 1);
    atomic_add(state.totals + from, 0u - 1);
    atomic_add(state.totals + to, 1);
    labels[site] = static_cast<Label>(to);
    CAST_UNROLL
    for (int d = 0; d < 4; ++d) {
      if (neighbours[d] == to || neighbours[d] == kOutside<Label>) continue;
      set_border(state.border, site + direction_offset(d, stride));
    }
  }
}

}  // namespace cast_kernels

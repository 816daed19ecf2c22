// The loops of seeds_sweep.h, included once per instruction set inside an anonymous namespace, after:
//
//   template <class Label> struct Lanes         kCount labels at a time: load, equal (all ones where true), bit (a
//                                               constant in every lane), &, |, +, without(a, b) = a & ~b, and
//                                               store_bytes (the low byte of each lane)
//   int list_sites(const uint8_t* directions, int width, int first_column, uint32_t* sites)
//     columns first_column, first_column + 2, ... whose byte is not zero;
//   template <class Label> uint32_t count_window(const Label* corner, int64_t stride, Label own, Label other,
//                                                uint32_t counted)
//     16 * (pixels of the window with label own) + those with label other; the window as in PixelPhase.

inline bool several(uint32_t directions) { return (directions & (directions - 1)) != 0; }

// See may_leave in seeds_phases.h for what makes a site; a direction is left out where an earlier one shows the label.
template <class Label>
inline void find_directions(const Label* labels, int64_t stride, int width, uint32_t inside, uint8_t* directions) {
  using V = Lanes<Label>;
  const V one = V::all(static_cast<Label>(-1));
  const V inside_lanes = V::all(static_cast<Label>(inside));
  for (int x = 0; x < width; x += V::kCount) {
    const Label* const at = labels + x;
    const V own = V::load(at);
    const V east = V::load(at + 1), north = V::load(at - stride);
    const V west = V::load(at - 1), south = V::load(at + stride);
    const V own_east = equal(own, east), own_north = equal(own, north);
    const V own_west = equal(own, west), own_south = equal(own, south);
    const V north_east = equal(own, V::load(at - stride + 1)), north_west = equal(own, V::load(at - stride - 1));
    const V south_west = equal(own, V::load(at + stride - 1)), south_east = equal(own, V::load(at + stride + 1));
    // Each side that does not continue to the next one ends a piece; minus one for each, exactly one must be left.
    const V pieces = without(own_east, north_east & own_north) + without(own_north, north_west & own_west) +
                     without(own_west, south_west & own_south) + without(own_south, south_east & own_east);
    const V may_leave = equal(pieces, one);

    const V none_north = own_north | equal(north, east);
    const V none_west = own_west | equal(west, east) | equal(west, north);
    const V none_south = own_south | equal(south, east) | equal(south, north) | equal(south, west);
    const V found = without(V::all(1), own_east) | without(V::all(2), none_north) | without(V::all(4), none_west) |
                    without(V::all(8), none_south);
    store_bytes(found & may_leave & inside_lanes, directions + x);
  }
}

template <class Label>
int find_sites(const Label* labels, int64_t stride, int width, int first_column, uint32_t inside,
               const SweepScratch& scratch) {
  find_directions(labels, stride, width, inside, scratch.directions);
  scratch.directions[0] &= 0xb;  // not west
  scratch.directions[width - 1] &= 0xe;
  return list_sites(scratch.directions, width, first_column, scratch.sites);
}

template <class Label, class Count>
inline float gain(const PixelPhase<Label, Count>& phase, const Label* site, uint32_t bin, Label own, Label other,
                  int direction) {
  const uint32_t counts =
      count_window(site + phase.corner[direction], phase.stride, own, other, phase.counted[direction]);
  return static_cast<float>(phase.histogram[other * phase.num_bins + bin]) * phase.enter[other] * phase.factors[counts];
}

template <class Label, class Count>
int64_t decide_rows(const PixelPhase<Label, Count>& phase, int row, int end, const SweepScratch& scratch,
                    PixelMove* moves) {
  const int64_t offset[4] = {1, -phase.stride, -1, phase.stride};
  int64_t moved = 0;
  for (; row < end; row += 2) {
    const uint32_t inside = (row > 0 ? 0xfu : 0xdu) & (row + 1 < phase.height ? 0xfu : 0x7u);
    const Label* const labels = phase.labels + row * phase.stride;
    const uint16_t* const bins = phase.bins + row * phase.stride;
    const int count = find_sites(labels, phase.stride, phase.width, phase.first_column, inside, scratch);
    for (int i = 0; i < count; ++i) {
      const uint32_t x = scratch.sites[i];
      const Label* const site = labels + x;
      const uint32_t bin = bins[x];
      const Label own = *site;
      const float stay = static_cast<float>(phase.histogram[own * phase.num_bins + bin]) * phase.stay[own];

      // Nearly all sites have one other label beside them. Whether they move no branch predictor foresees.
      uint32_t directions = scratch.directions[x];
      int d = lowest_direction(directions);
      Label to = site[offset[d]];
      float best = gain(phase, site, bin, own, to, d);
      bool moves_there = best > stay;
      if (several(directions)) {
        best = moves_there ? best : stay;
        for (directions &= directions - 1; directions != 0; directions &= directions - 1) {
          d = lowest_direction(directions);
          const Label other = site[offset[d]];
          const float there = gain(phase, site, bin, own, other, d);
          if (there > best) {
            best = there;
            to = other;
            moves_there = true;
          }
        }
      }
      moves[moved] = {static_cast<uint32_t>(row * phase.stride + x), own, to};
      moved += moves_there;
    }
  }
  return moved;
}

template <class Label, class Count>
SweepFunctions<Label, Count> functions() {
  return {find_sites<Label>, decide_rows<Label, Count>};
}

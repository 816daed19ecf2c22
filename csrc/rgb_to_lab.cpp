#include "rgb_to_lab.h"

#include "lab.h"

namespace cast_kernels {

void rgb_to_lab(const uint8_t* rgb, uint8_t* lab, const ColourLayout& layout) {
  for (int64_t group = 0; group < layout.groups; ++group) {
    for (int64_t pixel = 0; pixel < layout.pixels; ++pixel) {
      const int64_t at = group * layout.group_stride + pixel * layout.pixel_stride;
      const int64_t next = layout.channel_stride;
      const Lab8 colour = lab_from_rgb(kLabTables, rgb[at], rgb[at + next], rgb[at + 2 * next]);
      lab[at] = colour.l;
      lab[at + next] = colour.a;
      lab[at + 2 * next] = colour.b;
    }
  }
}

}  // namespace cast_kernels

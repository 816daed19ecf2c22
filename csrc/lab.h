// 8-bit sRGB -> CIE Lab (D65) by integer tables, equal to OpenCV's fixed-point COLOR_RGB2LAB for all 2^24 colours.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace cast_kernels {

// Share of a channel of linear RGB in X, Y, Z (relative to white), scale 4096.
CAST_HOST_DEVICE constexpr int32_t xyz_weight(int row, int channel) {
  constexpr int32_t weights[3][3] = {{1777, 1541, 778}, {871, 2929, 296}, {73, 448, 3575}};
  return weights[row][channel];
}

// Built at compile time, hence the same on every platform, whatever its math library, and part of the GPU code, too.
struct LabTables {
  uint16_t light[256];       // of a channel, linear, scale 2040
  int32_t xyz[3][256][4];    // xyz_weight of a channel's light
  uint16_t cube_root[3072];  // f(i / 2040), scale 32768

  constexpr LabTables() : light(), xyz(), cube_root() {
    for (int i = 0; i < 256; ++i) {
      light[i] = static_cast<uint16_t>(2040.0 * linear_light(i / 255.0) + 0.5);
      for (int channel = 0; channel < 3; ++channel) {
        for (int row = 0; row < 3; ++row) xyz[channel][i][row] = xyz_weight(row, channel) * light[i];
      }
    }

    int64_t root = 0;  // nearest to 32768 (i / 2040)^(1/3); grows with i
    for (int64_t i = 0; i < 3072; ++i) {
      const int64_t cube = i << 48;  // (2 * 32768)^3 i, to be compared with 2040 (2 root + 1)^3
      while (2040 * (2 * root + 1) * (2 * root + 1) * (2 * root + 1) < cube) ++root;
      const double t = static_cast<double>(i) / 2040.0;
      const double line = 32768.0 * (t * 841.0 / 108.0 + 16.0 / 116.0);
      cube_root[i] = static_cast<uint16_t>(t < 216.0 / 24389.0 ? static_cast<int64_t>(line + 0.5) : root);
    }
    // The two entries in which OpenCV's table is not the rounded formula.
    cube_root[49] = 9454;
    cube_root[628] = 22126;
  }

 private:
  static constexpr double linear_light(double v) {
    if (v <= 0.04045) return v / 12.92;
    const double x = (v + 0.055) / 1.055;
    const double x4 = x * x * x * x;
    const double x12 = x4 * x4 * x4;
    double y = 1.0;  // x^2.4, the root of y^5 = x^12, by Newton's method from above
    for (int i = 0; i < 64; ++i) y -= (y - x12 / (y * y * y * y)) / 5.0;
    return y;
  }
};

struct Lab8 {
  uint8_t l, a, b;
};

struct Xyz {
  int32_t x, y, z;  // scale 2040 * 4096
};

CAST_HOST_DEVICE inline Xyz xyz_by_table(const LabTables& tables, uint8_t red, uint8_t green, uint8_t blue) {
  const int32_t* const r = tables.xyz[0][red];
  const int32_t* const g = tables.xyz[1][green];
  const int32_t* const b = tables.xyz[2][blue];
  return {r[0] + g[0] + b[0], r[1] + g[1] + b[1], r[2] + g[2] + b[2]};
}

// The same from a table of 512 bytes, which stays in the first level cache of a GPU.
CAST_HOST_DEVICE inline Xyz xyz_by_products(const LabTables& tables, uint8_t red, uint8_t green, uint8_t blue) {
  const int32_t r = tables.light[red];
  const int32_t g = tables.light[green];
  const int32_t b = tables.light[blue];
  const auto sum = [&](int row) { return xyz_weight(row, 0) * r + xyz_weight(row, 1) * g + xyz_weight(row, 2) * b; };
  return {sum(0), sum(1), sum(2)};
}

CAST_HOST_DEVICE inline Lab8 lab_from_rgb(const LabTables& tables, uint8_t red, uint8_t green, uint8_t blue) {
#if defined(__CUDA_ARCH__)
  const Xyz xyz = xyz_by_products(tables, red, green, blue);
#else
  const Xyz xyz = xyz_by_table(tables, red, green, blue);
#endif
  const int fx = tables.cube_root[(xyz.x + 2048) >> 12];
  const int fy = tables.cube_root[(xyz.y + 2048) >> 12];
  const int fz = tables.cube_root[(xyz.z + 2048) >> 12];
  const int half = 1 << 14;
  const int centre = 128 << 15;
  return {static_cast<uint8_t>((296 * fy - 1336934 + half) >> 15),  // all within 0..255, a test tries every colour
          static_cast<uint8_t>((500 * (fx - fy) + centre + half) >> 15),
          static_cast<uint8_t>((200 * (fy - fz) + centre + half) >> 15)};
}

inline constexpr LabTables kLabTables;

}  // namespace cast_kernels

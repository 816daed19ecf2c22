// The instruction sets the pixel stage of SEEDS is compiled for, and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace cast_kernels {

enum class Simd { scalar, avx2, avx512 };

const char* simd_name(Simd level);
std::vector<Simd> simd_compiled();  // ascending

// The best compiled level of this CPU, or the one that CAST_KERNELS_SIMD=scalar|avx2|avx512 names.
// Throws std::invalid_argument where that is unknown, not compiled in, or not supported by the CPU.
Simd simd_level();

}  // namespace cast_kernels

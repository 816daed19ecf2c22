#include "simd.h"

#include <cstdlib>
#include <stdexcept>

#if defined(CAST_X86_SIMD) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace cast_kernels {
namespace {

#if !defined(CAST_X86_SIMD)

bool cpu_has(Simd level) { return level == Simd::scalar; }

#elif defined(_MSC_VER)

bool cpu_has(Simd level) {
  if (level == Simd::scalar) return true;
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool os_saves_registers = (leaf1[2] >> 27 & 1) != 0;
  if (!os_saves_registers) return false;
  const unsigned long long saved = _xgetbv(0);
  const bool popcnt = (leaf1[2] >> 23 & 1) != 0;
  const bool bmi = (leaf7[1] >> 3 & 1) != 0 && (leaf7[1] >> 8 & 1) != 0;
  const bool avx2 = (saved & 0x6) == 0x6 && (leaf7[1] >> 5 & 1) != 0 && popcnt && bmi;
  if (level == Simd::avx2) return avx2;
  return avx2 && (saved & 0xe6) == 0xe6 && (leaf7[1] >> 16 & 1) != 0 && (leaf7[1] >> 30 & 1) != 0;
}

#else

bool cpu_has(Simd level) {
  if (level == Simd::scalar) return true;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (level == Simd::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

#endif

}  // namespace

const char* simd_name(Simd level) {
  return level == Simd::avx512 ? "avx512" : level == Simd::avx2 ? "avx2" : "scalar";
}

std::vector<Simd> simd_compiled() {
#if defined(CAST_X86_SIMD)
  return {Simd::scalar, Simd::avx2, Simd::avx512};
#else
  return {Simd::scalar};
#endif
}

Simd simd_level() {
  const char* const wanted = std::getenv("CAST_KERNELS_SIMD");
  if (wanted == nullptr || *wanted == '\0') {
    Simd best = Simd::scalar;
    for (const Simd level : simd_compiled()) {
      if (cpu_has(level)) best = level;
    }
    return best;
  }
  std::string names;
  for (const Simd level : simd_compiled()) {
    if (std::string(wanted) == simd_name(level)) {
      if (cpu_has(level)) return level;
      throw std::invalid_argument(std::string("CAST_KERNELS_SIMD=") + wanted + ", but this CPU does not support it");
    }
    names += std::string(names.empty() ? "" : ", ") + simd_name(level);
  }
  throw std::invalid_argument(std::string("expected CAST_KERNELS_SIMD to be one of ") + names + " in this build, got " +
                              wanted);
}

}  // namespace cast_kernels

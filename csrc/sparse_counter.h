// Counting into a sparse histogram with ascending bins.
#pragma once

#include <cstdint>
#include <vector>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace cast_kernels {

inline int lowest_bit(uint64_t bits) {
#if defined(_MSC_VER)
  unsigned long index;
  _BitScanForward64(&index, bits);
  return static_cast<int>(index);
#else
  return __builtin_ctzll(bits);
#endif
}

// Counts of a few among many bins: dense counts, and one bit per bin that says which are set.
class SparseCounter {
 public:
  explicit SparseCounter(int num_bins = 0) { reset(num_bins); }

  void reset(int num_bins) {
    counts_.assign(num_bins, 0);
    used_.assign(num_bins / 64 + 1, 0);
  }

  void add(int bin, int32_t count) {
    counts_[bin] += count;
    used_[bin / 64] |= uint64_t{1} << (bin % 64);
  }

  // Calls take(bin, count) for every bin in ascending order and forgets them.
  template <typename Take>
  void drain(Take take) {
    for (size_t word = 0; word < used_.size(); ++word) {
      for (uint64_t bits = used_[word]; bits != 0; bits &= bits - 1) {
        const int bin = static_cast<int>(word) * 64 + lowest_bit(bits);
        take(bin, counts_[bin]);
        counts_[bin] = 0;
      }
      used_[word] = 0;
    }
  }

 private:
  std::vector<int32_t> counts_;
  std::vector<uint64_t> used_;
};

}  // namespace cast_kernels

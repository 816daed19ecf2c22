// Code for a team of threads: what runs on the GPU, written so that threads of the CPU can run it, too.
//
// A Team has rank() and size(), barrier() for all its threads, and warp(), the Warp of the calling thread. A Warp has
// rank() and size(), index() and count() within the team, sync() for its threads, and ballot(bool), whose bit i is
// thread i's argument, match(word), the ballot of the threads with the same word, take(word, i), thread i's word,
// sum(value) over the warp, and sum_before(word), over the threads of lower rank; its threads call these together.
// lanes() is a small warp, of which a team has more. Sizes are whatever the driver likes; a warp has at most 32
// threads. A team consists of groups() groups, each a Team of its own with a cheaper barrier: group() is that of the
// calling thread, the group_index()-th. What one thread writes, others read after the next barrier() or sync(); in
// between they may only add.
#pragma once

#include <cstdint>

#include "packed.h"

namespace cast_kernels {

constexpr int kMaxTeamSide = 8191;                    // pixels of an image: 13 bits
constexpr int64_t kMaxTeamPixels = int64_t{1} << 24;  // in all: floats hold every count

#if !defined(__CUDA_ARCH__)
using Word __attribute__((may_alias)) = uint32_t;  // also of half words, see add_count
#else
using Word = uint32_t;
#endif

// Returns what was there before.
CAST_HOST_DEVICE inline uint32_t atomic_add(uint32_t* at, uint32_t change) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(at, change);
#else
  return __atomic_fetch_add(at, change, __ATOMIC_RELAXED);
#endif
}

CAST_HOST_DEVICE inline uint64_t atomic_add(uint64_t* at, uint64_t change) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(change));
#else
  return __atomic_fetch_add(at, change, __ATOMIC_RELAXED);
#endif
}

CAST_HOST_DEVICE inline void atomic_and(uint32_t* at, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicAnd(at, bits);
#else
  __atomic_fetch_and(at, bits, __ATOMIC_RELAXED);
#endif
}

CAST_HOST_DEVICE inline void atomic_or(uint32_t* at, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(at, bits);
#else
  __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
#endif
}

// A word that other threads may be changing.
CAST_HOST_DEVICE inline uint32_t read_shared_word(const uint32_t* at) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const volatile uint32_t*>(at);
#else
  return __atomic_load_n(at, __ATOMIC_RELAXED);
#endif
}

// Adds to one of many counts. A 16-bit count is half of a word: no carry leaves the lower half as long as no count
// falls below 0 or passes 65,535 on the way.
CAST_HOST_DEVICE inline void add_count(uint32_t* count, int32_t change) {
  atomic_add(count, static_cast<uint32_t>(change));
}

CAST_HOST_DEVICE inline void add_count(uint16_t* count, int32_t change) {
  const auto half = reinterpret_cast<uintptr_t>(count) >> 1 & 1;
  auto* const word = reinterpret_cast<Word*>(count - half);  // a difference of pointers: it stays in its address space
  const uint32_t shifted = static_cast<uint32_t>(change) << (16 * half);  // little-endian
#if defined(__CUDA_ARCH__)
  atomicAdd(word, shifted);
#else
  __atomic_fetch_add(word, shifted, __ATOMIC_RELAXED);
#endif
}

// Places at the ends of lists, whose lengths lie one after the other, for the threads of a warp that want one.
template <int kLists>
class Append {
 public:
  template <class Warp>
  CAST_HOST_DEVICE Append(const Warp& warp, uint32_t* lengths, const bool (&wants)[kLists]) {
    uint32_t counts[kLists];
    uint32_t any = 0;
    CAST_UNROLL
    for (int list = 0; list < kLists; ++list) {
      const uint32_t ranks = warp.ballot(wants[list]);
      any |= ranks;
      counts[list] = static_cast<uint32_t>(count_bits(ranks));
      places_[list] = static_cast<uint32_t>(count_bits(ranks & ((1u << warp.rank()) - 1)));
    }
    if (any == 0) return;
    CAST_UNROLL
    for (int first = 0; first < kLists; first += warp.size()) {  // a thread per list: all in one addition
      const int mine = first + warp.rank();
      uint32_t count = 0;
      CAST_UNROLL
      for (int list = 0; list < kLists; ++list) count = list == mine ? counts[list] : count;
      const uint32_t begin = mine < kLists ? atomic_add(lengths + mine, count) : 0;
      CAST_UNROLL
      for (int list = 0; list < kLists; ++list) {
        if (list >= first && list < first + warp.size()) places_[list] += warp.take(begin, list - first);
      }
    }
  }
  CAST_HOST_DEVICE uint32_t place(int list) const { return places_[list]; }

 private:
  uint32_t places_[kLists];
};

// Lanes of one thread: of a warp, what the cells ask for.
struct OneThread {
  CAST_HOST_DEVICE int rank() const { return 0; }
  CAST_HOST_DEVICE int size() const { return 1; }
  CAST_HOST_DEVICE void sync() const {}
  template <class Value>
  CAST_HOST_DEVICE Value sum(Value value) const {
    return value;
  }
};

// Calls visit(row, column) for a thread's share of a grid. Divides once, not for every place.
template <class Team, class Visit>
CAST_HOST_DEVICE inline void for_each_place(const Team& team, int rows, int columns, Visit visit) {
  const int step_rows = team.size() / columns;
  const int step_columns = team.size() - step_rows * columns;
  int row = team.rank() / columns;
  int column = team.rank() - row * columns;
  while (row < rows) {
    visit(row, column);
    row += step_rows;
    column += step_columns;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
}

// A share of rows, the next group's where this one ends.
struct Band {
  int begin, end;
  CAST_HOST_DEVICE int rows() const { return end - begin; }
};

template <class Team>
CAST_HOST_DEVICE inline Band band_of(const Team& team, int rows) {
  return {rows * team.group_index() / team.groups(), rows * (team.group_index() + 1) / team.groups()};
}

constexpr int kSummers = 32;  // threads that a sum over the team is shared by

// values[i] becomes the sum of those before it; returns the sum of all. `partial` holds kSummers words that the team
// shares. Begins and ends with a barrier.
template <class Team>
CAST_HOST_DEVICE inline uint32_t exclusive_sum(Team& team, uint32_t* values, int count, uint32_t* partial) {
  const int summers = team.size() < kSummers ? team.size() : kSummers;
  const int share = (count + summers - 1) / summers;
  const int begin = share * team.rank() < count ? share * team.rank() : count;
  const int end = begin + share < count ? begin + share : count;
  team.barrier();
  uint32_t sum = 0;
  for (int i = begin; i < end; ++i) sum += values[i];
  if (team.rank() < summers) partial[team.rank()] = sum;
  team.barrier();
  uint32_t before = 0;
  uint32_t total = 0;
  for (int rank = 0; rank < summers; ++rank) {
    if (rank == team.rank()) before = total;
    total += partial[rank];
  }
  for (int i = begin; i < end; ++i) {
    const uint32_t value = values[i];
    values[i] = before;
    before += value;
  }
  team.barrier();
  return total;
}

}  // namespace cast_kernels

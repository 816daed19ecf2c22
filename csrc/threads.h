// Threads for one call: a function run by several at once, and a barrier for them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace cast_kernels {

// Calls work(rank, size) on up to `count` threads, the caller's among them, for each rank below size: as many as the
// system gives. Returns when all have returned; rethrows what one of them threw.
void on_threads(int64_t count, const std::function<void(int rank, int size)>& work);

class Barrier {
 public:
  // Returns when `size` threads wait. What each wrote before is seen by all.
  void wait(int size) {
    if (size == 1) return;
    const uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int looks = 0; turn_.load(std::memory_order_acquire) == turn; ++looks) {
      if (looks > kLooks) std::this_thread::yield();  // the others may wait for this processor
    }
  }

 private:
  static constexpr int kLooks = 2000;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> turn_{0};
};

}  // namespace cast_kernels

// A team of real threads, with what csrc/team.h asks of one: the GPU's code, run by the CPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace emulation {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    while (turn_.load(std::memory_order_acquire) == turn) std::this_thread::yield();
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> turn_{0};
};

// What the threads of one warp share.
struct WarpRoom {
  explicit WarpRoom(int threads) : barrier(threads) {}
  Barrier barrier;
  std::atomic<uint32_t> bits[3] = {};  // of the last ballot, this one and the next
};

class HostWarp {
 public:
  HostWarp(WarpRoom& room, int rank, int size, int index, int count)
      : room_(&room), rank_(rank), size_(size), index_(index), count_(count) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  int index() const { return index_; }
  int count() const { return count_; }
  void sync() const { room_->barrier.wait(); }

  uint32_t ballot(bool bit) const {
    const int turn = turn_;
    turn_ = (turn + 1) % 3;
    if (bit) room_->bits[turn].fetch_or(1u << rank_, std::memory_order_relaxed);
    room_->barrier.wait();
    // All are past the ballot before the last one, whose word the one after the next will use.
    if (rank_ == 0) room_->bits[(turn + 2) % 3].store(0, std::memory_order_relaxed);
    return room_->bits[turn].load(std::memory_order_relaxed);
  }

 private:
  WarpRoom* room_;
  int rank_, size_, index_, count_;
  mutable int turn_ = 0;
};

constexpr int kWarp = 32;

class HostTeam {
 public:
  HostTeam(Barrier& barrier, WarpRoom& room, int rank, int size)
      : barrier_(&barrier), room_(&room), rank_(rank), size_(size) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  void barrier() const { barrier_->wait(); }
  HostWarp warp() const {
    const int index = rank_ / kWarp;
    const int last = (size_ - 1) / kWarp;
    const int threads = index < last ? kWarp : size_ - last * kWarp;
    return {*room_, rank_ % kWarp, threads, index, last + 1};
  }

 private:
  Barrier* barrier_;
  WarpRoom* room_;
  int rank_, size_;
};

// Calls work(team) on `size` threads, once for each of them.
template <class Work>
void run_team(int size, Work work) {
  Barrier barrier(size);
  std::vector<std::unique_ptr<WarpRoom>> rooms;
  for (int first = 0; first < size; first += kWarp) {
    rooms.push_back(std::make_unique<WarpRoom>(size - first < kWarp ? size - first : kWarp));
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      HostTeam team(barrier, *rooms[rank / kWarp], rank, size);
      work(team);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulation

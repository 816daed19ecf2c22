// A team of real threads, with what csrc/team.h asks of one: the GPU's code, run by the CPU.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace emulation {

// Waiting threads sleep: there are far more of them than cores, and on a busy machine spinning ones starve the rest.
// No mutex: those that wake would queue for it.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      turn_.notify_all();
      return;
    }
    turn_.wait(turn, std::memory_order_acquire);
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> turn_{0};
};

constexpr int kWarp = 32;
constexpr int kLanes = 4;  // of a small warp

// What the threads of one warp share.
struct WarpRoom {
  explicit WarpRoom(int threads) : barrier(threads) {}
  Barrier barrier;
  uint64_t values[2][kWarp];  // of this exchange, and of the next one
  int turn[kWarp] = {};
};

// What the threads of a team, or of one of its groups, share.
struct TeamRoom {
  explicit TeamRoom(int size) : threads(size), barrier(size) {
    for (int first = 0; first < size; first += kWarp) warps.push_back(make(first, kWarp));
    for (int first = 0; first < size; first += kLanes) lanes.push_back(make(first, kLanes));
  }
  std::unique_ptr<WarpRoom> make(int first, int size) const {
    return std::make_unique<WarpRoom>(threads - first < size ? threads - first : size);
  }

  const int threads;
  Barrier barrier;
  std::vector<std::unique_ptr<WarpRoom>> warps, lanes;
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

  uint32_t ballot(bool bit) const { return match_of(exchange(bit ? 1 : 0), 1); }
  uint32_t match(uint32_t word) const { return match_of(exchange(word), word); }
  uint32_t take(uint32_t word, int rank) const { return static_cast<uint32_t>(exchange(word)[rank]); }
  template <class Value>
  Value sum(Value value) const {
    const uint64_t* const values = exchange(value);
    Value total = 0;
    for (int i = 0; i < size_; ++i) total += static_cast<Value>(values[i]);
    return total;
  }
  uint32_t sum_before(uint32_t value) const {
    const uint64_t* const values = exchange(value);
    uint32_t total = 0;
    for (int i = 0; i < rank_; ++i) total += static_cast<uint32_t>(values[i]);
    return total;
  }

 private:
  // The values of all. They stay until the next exchange but one, which no thread begins before all have begun the
  // next.
  const uint64_t* exchange(uint64_t value) const {
    uint64_t* const values = room_->values[room_->turn[rank_]++ % 2];
    values[rank_] = value;
    room_->barrier.wait();
    return values;
  }

  uint32_t match_of(const uint64_t* values, uint64_t wanted) const {
    uint32_t ranks = 0;
    for (int i = 0; i < size_; ++i) ranks |= static_cast<uint32_t>(values[i] == wanted) << i;
    return ranks;
  }

  WarpRoom* room_;
  int rank_, size_, index_, count_;
};

class HostTeam {
 public:
  // A team of so many groups of equal size.
  HostTeam(TeamRoom& room, std::vector<std::unique_ptr<TeamRoom>>& groups, int rank)
      : room_(&room), groups_(&groups), rank_(rank) {}
  int rank() const { return rank_; }
  int size() const { return room_->threads; }
  void barrier() const { room_->barrier.wait(); }
  HostWarp warp() const { return part(room_->warps, kWarp); }
  HostWarp lanes() const { return part(room_->lanes, kLanes); }
  int groups() const { return static_cast<int>(groups_->size()); }
  int group_index() const { return rank_ / (size() / groups()); }
  HostTeam group() const {
    static std::vector<std::unique_ptr<TeamRoom>> none;
    return {*(*groups_)[group_index()], none, rank_ % (size() / groups())};
  }

 private:
  HostWarp part(std::vector<std::unique_ptr<WarpRoom>>& rooms, int size) const {
    const int index = rank_ / size;
    const int threads = room_->threads - index * size;
    return {*rooms[index], rank_ % size, threads < size ? threads : size, index, static_cast<int>(rooms.size())};
  }

  TeamRoom* room_;
  std::vector<std::unique_ptr<TeamRoom>>* groups_;
  int rank_;
};

// Calls work(team) on `size` threads, a multiple of `groups`, once for each of them.
template <class Work>
void run_team(int size, int groups, Work work) {
  TeamRoom room(size);
  std::vector<std::unique_ptr<TeamRoom>> rooms;
  for (int i = 0; i < groups; ++i) rooms.push_back(std::make_unique<TeamRoom>(size / groups));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      HostTeam team(room, rooms, rank);
      work(team);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulation

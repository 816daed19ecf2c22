#include "threads.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

namespace cast_kernels {

void on_threads(int64_t count, const std::function<void(int rank, int size)>& work) {
  std::mutex lock;
  std::condition_variable known;
  int size = 0;  // 0 until all that can be had have started
  std::exception_ptr failure;
  const auto run = [&](int rank) {
    try {
      work(rank, size);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(lock);
      failure = std::current_exception();
    }
  };

  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(count - 1));
  try {
    for (int rank = 1; rank < count; ++rank) {
      helpers.emplace_back([&, rank] {
        {
          std::unique_lock<std::mutex> guard(lock);
          known.wait(guard, [&] { return size != 0; });
        }
        run(rank);
      });
    }
  } catch (const std::exception&) {
    // No more threads, or memory for them, to be had: those that run do the work.
  }
  {
    const std::lock_guard<std::mutex> guard(lock);
    size = static_cast<int>(helpers.size()) + 1;
  }
  known.notify_all();
  run(0);
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cast_kernels

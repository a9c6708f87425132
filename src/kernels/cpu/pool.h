// Threads that wait, mostly asleep, and memory for intermediate results that is kept between calls.
//
// Work is cut into tasks by the shapes alone, a task writes to places of its own, and what tasks have summed up is
// combined in the order of their numbers. So results have the same bits for any number of threads and any timing.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "vector.h"

// What a thread does that looks again and again whether something has come to pass.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  // The one pool of the process. It is never destroyed: its threads may be waiting when the process ends.
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }

  // Calls call(context, i) for i = 0 ... count - 1. A second caller at the same time does its work by itself. Throws what
  // a call has thrown, once no thread works for this caller any more; the other calls may then be left out.
  void run(Index count, void (*call)(void*, Index), void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (count < 2 || threads_ < 2 || !turn.owns_lock()) {
      for (Index i = 0; i < count; ++i) call(context, i);
      return;
    }
    {
      std::lock_guard<std::mutex> guard(mutex_);
      start_threads();
      call_ = call;
      context_ = context;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      ++round_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> guard(mutex_);
    open_ = false;
    guard.unlock();
    spin([this] { return working_.load(std::memory_order_acquire) == 0; });
    guard.lock();
    done_.wait(guard, [this] { return working_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  int threads() const { return threads_; }

  void set_threads(int threads) {
    std::lock_guard<std::mutex> turn(turn_);
    threads_ = threads < 1 ? 1 : threads;
  }

 private:
  Pool() : threads_(1) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) threads_ = CPU_COUNT(&allowed);
  }

  // Makes do with fewer where no more can be had.
  void start_threads() {
    try {
      for (; started_ < threads_ - 1; ++started_) std::thread([this] { serve(); }).detach();
    } catch (const std::exception&) {
    }
  }

  void serve() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> guard(mutex_);
    for (;;) {
      guard.unlock();
      spin([&] { return round_.load(std::memory_order_relaxed) != seen; });
      guard.lock();
      wake_.wait(guard, [&] { return open_ && round_ != seen; });
      seen = round_;
      if (working_ >= threads_ - 1) continue;
      ++working_;
      guard.unlock();
      work();
      guard.lock();
      if (--working_ == 0 && !open_) done_.notify_one();
    }
  }

  // Looks for some time whether something has come to pass: one call follows another sooner than a sleeping thread wakes
  // up, most of all in a virtual machine.
  template <typename Condition>
  static void spin(const Condition& holds) {
    const auto end = std::chrono::steady_clock::now() + kSpinning;
    while (!holds() && std::chrono::steady_clock::now() < end)
      for (int i = 0; i < 16 && !holds(); ++i) relax();
  }

  void work() {
    for (;;) {
      const Index i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count_) return;
      try {
        call_(context_, i);
      } catch (...) {
        std::lock_guard<std::mutex> guard(mutex_);
        failure_ = std::current_exception();
        next_.store(count_, std::memory_order_relaxed);
      }
    }
  }

  static constexpr std::chrono::microseconds kSpinning{200};

  std::mutex turn_;   // held by the caller whose work the threads do
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  void (*call_)(void*, Index) = nullptr;
  void* context_ = nullptr;
  Index count_ = 0;
  std::atomic<Index> next_{0};
  bool open_ = false;
  std::atomic<std::uint64_t> round_{0};
  std::exception_ptr failure_;
  int threads_, started_ = 0;
  std::atomic<int> working_{0};
};

template <typename Task>
void parallel(Index count, const Task& task) {
  Pool::instance().run(
      count, [](void* context, Index i) { (*static_cast<const Task*>(context))(i); }, const_cast<Task*>(&task));
}

// A block of floats, aligned to cache lines, from a stock that grows to what the largest calls need. A fresh block of
// megabytes for every call would spend its time in page faults.
class Scratch {
 public:
  explicit Scratch(Index floats) {
    const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    std::lock_guard<std::mutex> guard(stock().mutex);
    auto& blocks = stock().blocks;
    std::size_t best = blocks.size();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const bool fits = blocks[i].bytes >= bytes && blocks[i].bytes <= 4 * bytes + kSmall;
      if (fits && (best == blocks.size() || blocks[i].bytes < blocks[best].bytes)) best = i;
    }
    if (best < blocks.size()) {
      block_ = blocks[best];
      blocks[best] = blocks.back();
      blocks.pop_back();
      return;
    }
    block_ = {std::aligned_alloc(64, bytes ? bytes : 64), bytes};
    if (!block_.start) throw std::bad_alloc();
  }

  ~Scratch() {
#if defined(__SANITIZE_ADDRESS__) || defined(KEEP_NO_BLOCKS)
    std::free(block_.start);  // so that the sanitizer sees every block's true bounds, and a test every need of memory
#else
    std::lock_guard<std::mutex> guard(stock().mutex);
    try {
      stock().blocks.push_back(block_);
    } catch (const std::bad_alloc&) {
      std::free(block_.start);
    }
#endif
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return static_cast<float*>(block_.start); }
  operator float*() const { return data(); }

 private:
  struct Block {
    void* start;
    std::size_t bytes;
  };
  struct Stock {
    std::mutex mutex;
    std::vector<Block> blocks;
  };
  static constexpr std::size_t kSmall = 1 << 16;

  static Stock& stock() {
    static Stock* stock = new Stock;
    return *stock;
  }

  Block block_{};
};

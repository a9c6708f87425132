// The mean of tensors over processes of one machine, through memory that they share.
#pragma once

#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <utility>

#include "call.h"
#include "pool.h"

// Every rank has a slot for all of its numbers. It writes them there, adds up one part of all slots into its own, and
// reads the sums of the other parts from theirs. So no number passes through a socket, and each is added up once.
class Ranks {
 public:
  // What the process belongs to; nothing before `join`.
  static Ranks& instance() {
    static Ranks ranks;
    return ranks;
  }

  static std::size_t bytes(Index ranks, Index floats) { return head(ranks) + ranks * slot(floats) * sizeof(float); }

  // Takes a file of `bytes(ranks, floats)` zeros, the same for all ranks, in place of the one before.
  bool join(int file, Index rank, Index ranks, Index floats) {
    void* start = mmap(nullptr, bytes(ranks, floats), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (start == MAP_FAILED) return false;
    if (head_) munmap(head_, bytes(ranks_, floats_));
    head_ = static_cast<Head*>(start);
    rank_ = rank;
    ranks_ = ranks;
    floats_ = floats;
    target_ = 0;
    process(rank).store(getpid());
    return true;
  }

  // The mean of all ranks' `inputs`, the same bits everywhere. Returns 0, or why there is none.
  int mean(const std::vector<std::pair<const float*, Index>>& inputs, const std::vector<float*>& outputs) {
    Index count = 0;
    for (const auto& [data, size] : inputs) count += size;
    if (!head_ || count != floats_) return kWrongCall;
    if (!wait()) return kRankLost;  // until nobody reads this slot any more
    share(inputs, [&](Index i, Index begin, Index end, Index at) {
      std::copy(inputs[i].first + begin, inputs[i].first + end, numbers(rank_) + at);
    });
    arrive();
    if (!wait()) return kRankLost;
    add_up(part(rank_), part(rank_ + 1));
    arrive();
    if (!wait()) return kRankLost;
    share(inputs, [&](Index i, Index begin, Index end, Index at) {
      for (Index rank = 0; rank < ranks_; ++rank) {
        const Index first = std::max(at, part(rank)), last = std::min(at + end - begin, part(rank + 1));
        if (first < last) std::copy(numbers(rank) + first, numbers(rank) + last, outputs[i] + begin + (first - at));
      }
    });
    arrive();
    return 0;
  }

 private:
  struct Head {
    std::atomic<std::uint32_t> arrivals;  // of all ranks, ever
    std::atomic<std::int32_t> first_process;  // of rank 0; those of the others follow
  };
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free, "it is shared by processes");
  static_assert(sizeof(Head) == 2 * sizeof(std::int32_t), "numbers of processes follow it");
  static constexpr Index kTask = 16384;
  // Ranks are about equally fast: looking for a tenth of a millisecond is cheaper than sleep and waking up.
  static constexpr int kLooks = 3000;

  static std::size_t head(Index ranks) { return (sizeof(Head) + ranks * sizeof(std::int32_t) + 63) / 64 * 64; }
  static Index slot(Index floats) { return (floats + kChannelBlock - 1) / kChannelBlock * kChannelBlock; }

  std::atomic<std::int32_t>& process(Index rank) const { return (&head_->first_process)[rank]; }
  float* numbers(Index rank) const {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(head_) + head(ranks_)) + rank * slot(floats_);
  }

  // Where a rank's part begins: whole vectors, so that each number gets the same formula.
  Index part(Index rank) const { return slot(floats_) / kChannelBlock * rank / ranks_ * kChannelBlock; }

  // Calls copy(tensor, begin, end, place of its begin among all numbers) for pieces of all tensors.
  template <typename Copy>
  static void share(const std::vector<std::pair<const float*, Index>>& tensors, const Copy& copy) {
    struct Piece {
      Index tensor, begin, end, at;
    };
    std::vector<std::vector<Piece>> tasks(1);
    Index at = 0, full = 0;
    for (Index i = 0; i < static_cast<Index>(tensors.size()); ++i) {
      for (Index begin = 0; begin < tensors[i].second; begin += kTask) {
        const Index end = std::min(begin + kTask, tensors[i].second);
        if (full >= kTask) {
          tasks.emplace_back();
          full = 0;
        }
        tasks.back().push_back({i, begin, end, at});
        at += end - begin;
        full += end - begin;
      }
    }
    parallel(tasks.size(), [&](Index task) {
      for (const Piece& piece : tasks[task]) copy(piece.tensor, piece.begin, piece.end, piece.at);
    });
  }

  void add_up(Index begin, Index end) const {
    const Vector share = broadcast(1.0f / static_cast<float>(ranks_));
    parallel((end - begin + kTask - 1) / kTask, [&](Index task) {
      const Index last = std::min(end, begin + (task + 1) * kTask);
      for (Index i = begin + task * kTask; i < last; i += kLanes) {
        Vector sum = load(numbers(0) + i);
        for (Index rank = 1; rank < ranks_; ++rank) sum = sum + load(numbers(rank) + i);
        store(numbers(rank_) + i, sum * share);
      }
    });
  }

  void arrive() {
    target_ += static_cast<std::uint32_t>(ranks_);
    if (head_->arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 == target_)
      syscall(SYS_futex, &head_->arrivals, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  // Until all ranks have arrived as often as this one. False where one of them has ended.
  bool wait() const {
    const timespec second = {1, 0};
    for (int looks = 0;; ++looks) {
      const std::uint32_t seen = head_->arrivals.load(std::memory_order_acquire);
      if (static_cast<std::int32_t>(seen - target_) >= 0) return true;
      if (looks < kLooks)
        relax();
      else if (syscall(SYS_futex, &head_->arrivals, FUTEX_WAIT, seen, &second, nullptr, 0) != 0 && errno == ETIMEDOUT)
        for (Index rank = 0; rank < ranks_; ++rank)
          if (kill(process(rank).load(), 0) != 0 && errno == ESRCH) return false;
    }
  }

  Head* head_ = nullptr;
  Index rank_ = 0, ranks_ = 0, floats_ = 0;
  std::uint32_t target_ = 0;
};

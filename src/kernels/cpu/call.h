// How MindSpore calls an operator: arrays of pointers, ranks, shapes and types; and how its phases are timed.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <new>
#include <numeric>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "vector.h"

constexpr int kWrongCall = 1;
constexpr int kNoMemory = 2;
constexpr int kRankLost = 3;

// The inputs and, behind them, the outputs.
class Call {
 public:
  Call(int count, void** data, int* ranks, std::int64_t** shapes, const char** types)
      : count_(count), data_(data), ranks_(ranks), shapes_(shapes), types_(types) {}

  float* operator[](int i) const { return static_cast<float*>(data_[i]); }
  Index size(int i, int axis) const { return shapes_[i][axis]; }
  bool has(int count) const {
    for (int i = 0; i < count_; ++i)
      if (std::strcmp(types_[i], "float32") != 0) return false;
    return count_ == count;
  }
  bool is(int i, std::initializer_list<Index> shape) const {
    if (ranks_[i] != static_cast<int>(shape.size())) return false;
    return std::equal(shape.begin(), shape.end(), shapes_[i]);
  }
  int count() const { return count_; }
  int rank(int i) const { return ranks_[i]; }
  Index count(int i) const {
    return std::accumulate(shapes_[i], shapes_[i] + ranks_[i], Index{1}, std::multiplies<Index>());
  }

 private:
  int count_;
  void** data_;
  int* ranks_;
  std::int64_t** shapes_;
  const char** types_;
};

// Before the first step takes its memory, what the compilation of its graph has left goes back to the system.
inline void give_back() {
#ifdef __GLIBC__
  [[maybe_unused]] static const int done = malloc_trim(0);
#endif
}

inline int run(int (*operation)(const Call&), int count, void** data, int* ranks, std::int64_t** shapes,
               const char** types) {
  give_back();
  try {
    return operation(Call(count, data, ranks, shapes, types));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

// Where the time goes. With -DKERNELS_PROFILE, PHASE("name") counts the time until the end of its block under that name;
// without it, it is nothing. See benchmarks/step_profile.py.
#ifdef KERNELS_PROFILE

class Phase {
 public:
  explicit Phase(const char* name) : name_(name), start_(std::chrono::steady_clock::now()) {}
  ~Phase() { seconds()[name_] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  // Only the thread that calls operators has phases.
  static std::map<std::string, double>& seconds() {
    static std::map<std::string, double> seconds;
    return seconds;
  }

 private:
  const char* name_;
  std::chrono::steady_clock::time_point start_;
};

#define PHASE(name) const Phase phase(name)

#else
#define PHASE(name)
#endif

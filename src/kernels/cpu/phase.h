// Where the time goes. With -DKERNELS_PROFILE, PHASE("name") counts the time until the end of its block under that name;
// without it, it is nothing. See benchmarks/step_profile.py.
#pragma once

#ifdef KERNELS_PROFILE

#include <chrono>
#include <map>
#include <string>

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

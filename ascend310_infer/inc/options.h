// The command line.
#ifndef ASCEND310_INFER_OPTIONS_H
#define ASCEND310_INFER_OPTIONS_H

#include <cstddef>
#include <optional>
#include <string>

#include "engine.h"

struct Options {
  EngineOptions engine;
  std::string engine_name;
  std::string dataset_path;
  std::string result_path = "result_Files";
  std::string time_path = "time_Result";
  size_t threads = 0;
  size_t repeat = 1;
  size_t benchmark_batches = 0;
  bool skip_existing = false;
};

// Reads the command line and fills in what was left out: the engine and the device from the model's suffix, the threads
// from the machine. If the command line asks for help, prints it and returns nothing. Throws UsageError.
std::optional<Options> parse_options(int argc, char **argv);

#endif

#include "options.h"

#include <sched.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "errors.h"

namespace {

// The processors that this process may use: in a container fewer than the machine has.
size_t count_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
}

std::string join(const std::vector<std::string> &names) {
  std::string text;
  for (const std::string &name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::optional<Options> parse_options(int argc, char **argv) {
  Options options;
  CLI::App app("Classify every image of a folder of class folders; write the logits of each to a file.\nEngines built in: " +
               join(list_engines()));
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--model_path,--mindir_path", options.engine.model_path, "the .mindir, .om or .onnx file")->required();
  app.add_option("--dataset_path", options.dataset_path, "folder of class folders")->required();
  app.add_option("--device_target", options.engine.device_target, "Ascend or CPU (default: Ascend for MINDIR and OM, CPU for ONNX)")
      ->check(CLI::IsMember({"Ascend", "CPU"}));
  app.add_option("--device_id", options.engine.device_id, "which device")->check(CLI::Range(0, 65535));
  app.add_option("--engine", options.engine_name, "ascendcl, mindspore_lite or openvino (default: by the model's suffix)")
      ->check(CLI::IsMember({"ascendcl", "mindspore_lite", "openvino"}));
  app.add_option("--batch_size", options.engine.batch_size, "images at once (default: what the model was exported for)")
      ->check(CLI::Range(1, 65536));
  app.add_option("--engine_threads", options.engine.threads,
                 "the engine's threads on a CPU (default: as it likes); with ascendcl: batches under way at once "
                 "(default: 2)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--precision", options.engine.precision, "mindspore_lite on an NPU computes in fp16 or fp32 (default: fp16)")
      ->check(CLI::IsMember({"fp16", "fp32"}));
  app.add_option("--threads", options.threads, "decoder threads (default: one for each processor)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--result_path", options.result_path, "folder for the result files");
  app.add_option("--time_path", options.time_path, "folder for the timings");
  app.add_flag("--skip_existing", options.skip_existing, "go on with a run that was stopped: keep the results it left");
  app.add_option("--repeat", options.repeat, "classify the folder so many times, to see how the program bears up")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--benchmark_batches", options.benchmark_batches,
                 "at the end run so many batches more without decoding and writing, to time the engine alone")
      ->check(CLI::Range(0, 1000000));
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp &) {
    std::cout << app.help();
    return std::nullopt;
  } catch (const CLI::ParseError &error) {
    throw UsageError(std::string(error.what()) + " (see --help)");
  }
  if (options.engine_name.empty()) options.engine_name = choose_engine(options.engine.model_path);
  if (options.engine.device_target.empty()) {
    options.engine.device_target = options.engine_name == "openvino" ? "CPU" : "Ascend";
  }
  if (options.threads == 0) options.threads = count_processors();
  if (options.skip_existing && options.repeat > 1) throw UsageError("--repeat and --skip_existing exclude each other");
  return options;
}

#include "options.h"

#include <sched.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <functional>
#include <iostream>
#include <vector>

#include "errors.h"

namespace {

using Words = std::vector<std::string>;

std::string join(const Words &words) {
  std::string text;
  for (const std::string &word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// A flag that takes a value, or, where `read` is empty, one that is given or not.
struct Flag {
  std::string name;  // with its dashes
  std::string help;
  std::function<void(const std::string &value)> read;
  bool *given = nullptr;
};

// Readers of values; they throw UsageError without the flag's name.
auto text_into(std::string &target) {
  return [&target](const std::string &value) { target = value; };
}

auto one_of(std::string &target, const Words &words) {
  return [&target, words](const std::string &value) {
    if (std::find(words.begin(), words.end(), value) == words.end()) throw UsageError("not one of " + join(words));
    target = value;
  };
}

template <typename Number>
auto number_into(Number &target, long least, long most) {
  return [&target, least, most](const std::string &value) {
    const bool digits = !value.empty() && value.size() <= 9 && std::all_of(value.begin(), value.end(), ::isdigit);
    const long number = digits ? std::stol(value) : -1;
    if (number < least || number > most) {
      throw UsageError("not a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    target = static_cast<Number>(number);
  };
}

std::vector<Flag> list_flags(Options &options) {
  EngineOptions &engine = options.engine;
  return {
      {"--model_path", "the .mindir, .om or .onnx file; required, also --mindir_path", text_into(engine.model_path)},
      {"--mindir_path", "", text_into(engine.model_path)},
      {"--dataset_path", "folder of class folders; required", text_into(options.dataset_path)},
      {"--device_target", "Ascend or CPU (default: Ascend for MINDIR and OM, CPU for ONNX)",
       one_of(engine.device_target, {"Ascend", "CPU"})},
      {"--device_id", "which device (default: 0)", number_into(engine.device_id, 0, 65535)},
      {"--engine", "ascendcl, mindspore_lite or openvino (default: by the model's suffix)",
       one_of(options.engine_name, {"ascendcl", "mindspore_lite", "openvino"})},
      {"--batch_size", "images at once (default: what the model was exported for)",
       number_into(engine.batch_size, 1, 65536)},
      {"--engine_threads",
       "the engine's threads on a CPU (default: as it likes); with ascendcl: batches under way at once (default: 2)",
       number_into(engine.threads, 1, 1024)},
      {"--precision", "mindspore_lite on an NPU computes in fp16 or fp32 (default: fp16)",
       one_of(engine.precision, {"fp16", "fp32"})},
      {"--threads", "decoder threads (default: one for each processor)", number_into(options.threads, 1, 1024)},
      {"--result_path", "folder for the result files (default: result_Files)", text_into(options.result_path)},
      {"--time_path", "folder for the timings (default: time_Result)", text_into(options.time_path)},
      {"--skip_existing", "go on with a run that was stopped: keep the results it left", {}, &options.skip_existing},
      {"--repeat", "classify the folder so many times, to see how the program bears up",
       number_into(options.repeat, 1, 1000000)},
      {"--benchmark_batches",
       "at the end run so many batches more without decoding and writing, to time the engine alone",
       number_into(options.benchmark_batches, 0, 1000000)},
  };
}

void print_help(const std::vector<Flag> &flags) {
  std::cout << "usage: main --model_path FILE --dataset_path DIR [flags]\n"
               "Classify every image of a folder of class folders; write the logits of each to a file.\n"
               "Engines built in: "
            << join(list_engines()) << "\n";
  for (const Flag &flag : flags) {
    if (!flag.help.empty()) std::cout << "  " << flag.name << (flag.read ? " VALUE" : "") << "\n      " << flag.help << "\n";
  }
}

// Reads "--name value" and "--name=value"; of a flag given twice the last counts. Returns whether help was asked for.
bool read_flags(const Words &words, const std::vector<Flag> &flags) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--help" || words[i] == "-h") return true;
    const size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    const auto flag = std::find_if(flags.begin(), flags.end(), [&](const Flag &each) { return each.name == name; });
    if (flag == flags.end()) throw UsageError("unknown argument '" + words[i] + "'");
    if (!flag->read) {
      if (equals != std::string::npos) throw UsageError(name + " takes no value");
      *flag->given = true;
      continue;
    }
    if (equals == std::string::npos && i + 1 == words.size()) throw UsageError(name + " needs a value");
    const std::string value = equals == std::string::npos ? words[++i] : words[i].substr(equals + 1);
    try {
      flag->read(value);
    } catch (const UsageError &error) {
      throw UsageError(name + " is '" + value + "', " + error.what());
    }
  }
  return false;
}

// Cores' worth of time that a container gives this process; `most` without a limit. Rounded up.
size_t limit_processors(size_t most) {
  double quota = 0, period = 0;
  // "max" and -1 are no limit: the first is no number.
  if (!(std::ifstream("/sys/fs/cgroup/cpu.max") >> quota >> period)) {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  if (quota <= 0 || period <= 0) return most;
  return std::min(most, static_cast<size_t>((quota + period - 1) / period));
}

// The processors that this process may use: in a container fewer than the machine has.
size_t count_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max<size_t>(1, limit_processors(static_cast<size_t>(CPU_COUNT(&set))));
}

}  // namespace

std::optional<Options> parse_options(int argc, char **argv) {
  Options options;
  const std::vector<Flag> flags = list_flags(options);
  try {
    if (read_flags(Words(argv + 1, argv + argc), flags)) {
      print_help(flags);
      return std::nullopt;
    }
    if (options.engine.model_path.empty()) throw UsageError("--model_path is required");
    if (options.dataset_path.empty()) throw UsageError("--dataset_path is required");
  } catch (const UsageError &error) {
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

#include "classify.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <system_error>
#include <thread>

#include "decoder_pool.h"
#include "errors.h"
#include "files.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kProgressSeconds = 5;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// MiB of memory that the process occupies now.
double resident_mebibytes() {
  std::ifstream statistics("/proc/self/statm");
  size_t total = 0;
  size_t resident = 0;
  statistics >> total >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// Prints every few seconds how far the run has come.
class Progress {
 public:
  explicit Progress(size_t total) : total_(total) {}

  void add(size_t images) {
    done_ += images;
    if (seconds_since(last_) < kProgressSeconds) return;
    last_ = Clock::now();
    std::cout << done_ << " of " << total_ << " images, " << std::fixed << std::setprecision(1)
              << static_cast<double>(done_) / seconds_since(start_) << " images/s, " << resident_mebibytes()
              << " MiB of memory" << std::endl;
  }

 private:
  size_t total_;
  size_t done_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

// Runs `work` for each lane of an engine in a thread of its own. Throws what the first of them threw.
void for_each_lane(const Engine &engine, const std::function<void(size_t lane)> &work) {
  std::exception_ptr failure;
  std::mutex mutex;
  std::vector<std::thread> threads;
  const auto guarded = [&](size_t lane) {
    try {
      work(lane);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  try {
    for (size_t lane = 1; lane < engine.lanes(); ++lane) threads.emplace_back(guarded, lane);
  } catch (const std::system_error &) {
    // The system allows no more threads; the lanes that have one do all of the work.
  }
  guarded(0);
  for (std::thread &thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

void classify(const Work &work, const Preprocess &preprocess, size_t threads, Engine &engine, ResultFolder &results,
              RunReport &report) {
  const Clock::time_point start = Clock::now();
  const size_t num_classes = engine.shape().num_classes;
  std::atomic<size_t> unusable{0};
  const auto name_unusable = [&unusable](const std::string &error) {
    std::cerr << "error: " + one_line(error) + "\n" << std::flush;
    ++unusable;
  };
  // Three things happen at once: decoding, inference and writing.
  ResultWriter writer(results);
  DecoderPool decoders(work.paths, preprocess, engine.shape(), threads, name_unusable);
  Progress progress(work.paths.size());
  std::mutex mutex;  // guards the report and the progress
  const auto run_lane = [&](size_t lane) {
    while (auto batch = decoders.next()) {
      const Clock::time_point begin = Clock::now();
      // The last batch is rarely full. Behind its images lie older ones or zeros, whose logits are ignored.
      const float *logits = engine.infer(lane, batch->images.data());
      const double seconds = seconds_since(begin);
      std::vector<size_t> indices;
      for (const size_t position : batch->positions) indices.push_back(work.indices[position]);
      if (!writer.write(std::move(indices), logits, num_classes)) return decoders.stop();
      const std::lock_guard<std::mutex> lock(mutex);
      report.batch_seconds.push_back(seconds);
      report.classified += batch->positions.size();
      progress.add(batch->positions.size());
      decoders.recycle(std::move(*batch));
    }
  };
  for_each_lane(engine, [&](size_t lane) {
    try {
      run_lane(lane);
    } catch (...) {
      decoders.stop();
      throw;
    }
  });
  writer.finish();
  report.unusable += unusable;
  report.seconds += seconds_since(start);
}

double measure_engine(Engine &engine, size_t batches) {
  const std::vector<uint8_t> images(engine.shape().batch_size * engine.shape().image_bytes());
  const auto run = [&](size_t count) {
    std::atomic<size_t> next{0};
    for_each_lane(engine, [&](size_t lane) {
      for (size_t number = next++; number < count; number = next++) engine.infer(lane, images.data());
    });
  };
  run(engine.lanes());
  const Clock::time_point start = Clock::now();
  run(batches);
  return static_cast<double>(batches * engine.shape().batch_size) / seconds_since(start);
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(values.size())));
  const auto position = values.begin() + static_cast<ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
  std::nth_element(values.begin(), position, values.end());
  return *position;
}

void write_timings(const std::string &folder, const std::string &engine_name, size_t batch_size, size_t skipped,
                   const RunReport &report) {
  const double engine_seconds = std::accumulate(report.batch_seconds.begin(), report.batch_seconds.end(), 0.0);
  const auto images = static_cast<double>(std::max<size_t>(report.classified, 1));
  const double average = engine_seconds * 1000 / images;
  const double images_per_second = report.seconds > 0 ? static_cast<double>(report.classified) / report.seconds : 0;
  const double p50 = quantile(report.batch_seconds, 0.50) * 1000;
  const double p99 = quantile(report.batch_seconds, 0.99) * 1000;

  std::ostringstream text;
  text << std::fixed << std::setprecision(3) << "NN inference cost average time: " << average << " ms of infer_count "
       << report.classified << "\n"
       << "end to end: " << images_per_second << " images/s, " << report.seconds << " s\n"
       << "a batch of " << batch_size << ": p50 " << p50 << " ms, p99 " << p99 << " ms\n";
  nlohmann::json json = {{"engine", engine_name},
                         {"batch_size", batch_size},
                         {"images", report.classified},
                         {"images_skipped", skipped},
                         {"images_unusable", report.unusable},
                         {"average_inference_ms_per_image", average},
                         {"batch_ms_p50", p50},
                         {"batch_ms_p99", p99},
                         {"images_per_second", images_per_second},
                         {"seconds", report.seconds},
                         {"resident_mebibytes", resident_mebibytes()}};
  if (report.engine_images_per_second > 0) {
    text << "the engine alone: " << report.engine_images_per_second << " images/s\n";
    json["engine_images_per_second"] = report.engine_images_per_second;
  }
  const std::string table = json.dump(2) + "\n";
  make_folders(folder);
  write_file_atomically(folder + "/test_perform_static.txt", text.str().data(), text.str().size());
  write_file_atomically(folder + "/test_perform_static.json", table.data(), table.size());
  std::cout << text.str() << std::flush;
}

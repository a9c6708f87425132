#include "classify.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

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

// Says every few seconds how far the run is.
class Progress {
 public:
  explicit Progress(size_t total) : total_(total) {}

  void update(size_t done) {
    if (seconds_since(last_) < kProgressSeconds) return;
    last_ = Clock::now();
    std::cout << done << " of " << total_ << " images, " << std::fixed << std::setprecision(1)
              << static_cast<double>(done) / seconds_since(start_) << " images/s, " << resident_mebibytes()
              << " MiB of memory" << std::endl;
  }

 private:
  size_t total_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace

void classify(const Work &work, const Preprocess &preprocess, size_t threads, Engine &engine, ResultFolder &results,
              RunReport &report) {
  const Clock::time_point start = Clock::now();
  const ModelShape &shape = engine.shape();
  std::atomic<size_t> unusable{0};
  const auto name_unusable = [&unusable](const std::string &error) {
    std::cerr << "error: " + one_line(error) + "\n" << std::flush;
    ++unusable;
  };
  // Three things go on at once: decoding ahead, this thread with the engine, and writing behind.
  ResultWriter writer(results);
  DecoderPool decoders(work.paths, preprocess, shape, threads, name_unusable);
  Progress progress(work.paths.size());
  size_t done = 0;
  while (auto batch = decoders.next()) {
    const Clock::time_point begin = Clock::now();
    // The last batch is rarely full. What is behind its images are others or zeros, whose logits nobody looks at.
    const float *logits = engine.infer(batch->images.data());
    report.batch_seconds.push_back(seconds_since(begin));
    done += batch->positions.size();
    std::vector<size_t> indices;
    for (const size_t position : batch->positions) indices.push_back(work.indices[position]);
    writer.write(std::move(indices), logits, shape.num_classes);
    decoders.recycle(std::move(*batch));
    progress.update(done);
  }
  writer.finish();
  report.classified += done;
  report.unusable += unusable;
  report.seconds += seconds_since(start);
}

double measure_engine(Engine &engine, size_t batches) {
  const std::vector<uint8_t> images(engine.shape().batch_size * engine.shape().image_bytes());
  engine.infer(images.data());
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < batches; ++i) engine.infer(images.data());
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

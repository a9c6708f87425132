// Classify every image of a folder of class folders on Ascend or a CPU.

#include <csignal>
#include <exception>
#include <iostream>
#include <new>
#include <numeric>

#include "classify.h"
#include "engine.h"
#include "errors.h"
#include "image_folder.h"
#include "model_info.h"
#include "options.h"
#include "results.h"

namespace {

// Names everything besides the image that a result depends on; `model` is what identify_model says.
std::string identify(const std::string &model, const Preprocess &preprocess) {
  std::string text = model;
  text += std::to_string(preprocess.image_size) + " " + std::to_string(preprocess.resize) + " " +
          (preprocess.interpolation == Interpolation::kBicubic ? "bicubic" : "bilinear");
  for (const auto &values : {preprocess.mean, preprocess.std}) {
    for (const float value : values) text += " " + std::to_string(value);
  }
  return text + "\n";
}

// Refuses a model that contradicts its description.
void check_shape(const ModelShape &shape, const ModelInfo &info, const std::string &model_path) {
  if (shape.image_size != info.preprocess.image_size) {
    throw RunError(model_path + ": it takes images of " + std::to_string(shape.image_size) +
                   " pixels, but its description says " + std::to_string(info.preprocess.image_size));
  }
  if (shape.num_classes != info.num_classes) {
    throw RunError(model_path + ": it gives " + std::to_string(shape.num_classes) +
                   " logits, but its description says " + std::to_string(info.num_classes) + " classes");
  }
}

// The images without a result.
Work list_work(const ImageFolder &folder, const std::vector<bool> &done) {
  Work work;
  for (size_t i = 0; i < folder.paths.size(); ++i) {
    if (done[i]) continue;
    work.paths.push_back(folder.root + "/" + folder.paths[i]);
    work.indices.push_back(i);
  }
  return work;
}

int run(int argc, char **argv) {
  // -------- Options --------
  auto options = parse_options(argc, argv);
  if (!options) return 0;

  // -------- Prepare: the model's description, the images, the engine, the results --------
  const std::string &model_path = options->engine.model_path;
  const std::string model = identify_model(model_path);
  const ModelInfo info = read_model_info(model_path);
  options->engine.aipp = info.aipp;
  const ImageFolder folder = read_image_folder(options->dataset_path);
  check_classes(info, folder.classes, folder.root, model_path);
  const auto engine = load_engine(options->engine_name, options->engine);
  if (identify_model(model_path) != model) {  // the description may be one file's and the network another's
    throw RunError(model_path + ": it was replaced while it was read; start again");
  }
  check_shape(engine->shape(), info, model_path);
  ResultFolder results(options->result_path, name_results(folder.paths));
  const std::string identity = identify(model, info.preprocess);
  std::vector<bool> done(folder.paths.size(), false);
  if (options->skip_existing) {
    done = results.continue_run(identity, info.num_classes);
  } else {
    results.begin(identity);
  }
  const Work work = list_work(folder, done);
  const size_t skipped = folder.paths.size() - work.paths.size();
  std::cout << folder.paths.size() << " images in " << folder.classes.size() << " classes, " << skipped
            << " with a result already; engine " << options->engine_name << " on " << options->engine.device_target
            << " " << options->engine.device_id << ", batches of " << engine->shape().batch_size << ", "
            << options->threads << " decoder threads" << std::endl;
  if (const std::string remark = engine->remark(); !remark.empty()) std::cout << remark << std::endl;

  // -------- Run --------
  RunReport report;
  for (size_t round = 0; round < options->repeat; ++round) {
    classify(work, info.preprocess, options->threads, *engine, results, report);
  }

  // -------- Report --------
  if (options->benchmark_batches > 0) {
    report.engine_images_per_second = measure_engine(*engine, options->benchmark_batches);
  }
  write_timings(options->time_path, options->engine_name, engine->shape().batch_size, skipped, report);
  if (report.unusable > 0) {
    throw RunError(std::to_string(report.unusable) + " images could not be used, named above; the other " +
                   std::to_string(report.classified) + " have their results in " + options->result_path);
  }
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  // A write beyond the limit on file sizes must fail like one to a full disk, not kill the program.
  std::signal(SIGXFSZ, SIG_IGN);
  int code = 1;
  std::string sentence;
  try {
    return run(argc, argv);
  } catch (const UsageError &error) {
    sentence = error.what();
    code = 2;
  } catch (const std::bad_alloc &) {
    sentence = "not enough memory; a smaller --batch_size or fewer --threads need less";
  } catch (const std::exception &error) {
    sentence = error.what();
  }
  std::cerr << "error: " << one_line(sentence) << std::endl;
  return code;
}

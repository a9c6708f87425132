#include "engine.h"

#include <algorithm>

#include "errors.h"
#include "files.h"

namespace {

std::string dimensions(const std::vector<int64_t> &shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  return text + ")";
}

// What the build of an engine needs, for a sentence.
std::string need_of(const std::string &engine) {
  if (engine == "ascendcl") return "source CANN's set_env.sh";
  if (engine == "mindspore_lite") return "set LITE_HOME to the MindSpore Lite package";
  return "install the Python package openvino";
}

}  // namespace

std::vector<std::string> list_engines() {
  std::vector<std::string> names;
#ifdef WITH_ASCENDCL
  names.emplace_back("ascendcl");
#endif
#ifdef WITH_MINDSPORE_LITE
  names.emplace_back("mindspore_lite");
#endif
#ifdef WITH_OPENVINO
  names.emplace_back("openvino");
#endif
  return names;
}

std::string choose_engine(const std::string &model_path) {
  if (ends_with(model_path, ".om")) return "ascendcl";
  if (ends_with(model_path, ".mindir") || ends_with(model_path, ".ms")) return "mindspore_lite";
  if (ends_with(model_path, ".onnx")) return "openvino";
  throw UsageError(model_path + ": expected a model file that ends in .mindir, .om or .onnx (or name the --engine)");
}

std::unique_ptr<Engine> load_engine(const std::string &name, const EngineOptions &options) {
  const std::vector<std::string> names = list_engines();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    throw UsageError("this program was built without the engine " + name + "; " + need_of(name) +
                     " and build it again");
  }
  if (!options.precision.empty() && name != "mindspore_lite") {
    throw UsageError("--precision is for mindspore_lite; an OM file's was chosen when it was converted, openvino computes "
                     "in float32");
  }
#ifdef WITH_ASCENDCL
  if (name == "ascendcl") return load_ascendcl(options);
#endif
#ifdef WITH_MINDSPORE_LITE
  if (name == "mindspore_lite") return load_mindspore_lite(options);
#endif
#ifdef WITH_OPENVINO
  if (name == "openvino") return load_openvino(options);
#endif
  throw UsageError("there is no engine " + name);
}

ModelShape describe_model(const std::string &model_path, PixelType pixel_type, const std::vector<int64_t> &input,
                          size_t wanted_batch, size_t default_batch) {
  const bool planes = pixel_type == PixelType::kFloat32Nchw;
  if (input.size() != 4 || input[planes ? 1 : 3] != 3 || input[2] != input[planes ? 3 : 1] || input[2] < 1 ||
      input[2] > static_cast<int64_t>(kMaxResizedSide) || input[0] == 0 || input[0] < -1 || input[0] > 65536) {
    throw RunError(model_path + ": its input has the shape " + dimensions(input) + ", not " +
                   (planes ? "(batch, 3, size, size)" : "(batch, size, size, 3)"));
  }
  const size_t own_batch = input[0] < 0 ? 0 : static_cast<size_t>(input[0]);
  if (own_batch > 0 && wanted_batch > 0 && own_batch != wanted_batch) {
    throw UsageError("--batch_size is " + std::to_string(wanted_batch) + ", but " + model_path +
                     " was exported for batches of " + std::to_string(own_batch));
  }
  ModelShape shape;
  shape.pixel_type = pixel_type;
  shape.batch_size = own_batch > 0 ? own_batch : wanted_batch > 0 ? wanted_batch : default_batch;
  shape.image_size = static_cast<size_t>(input[2]);
  return shape;
}

size_t choose_output(const std::string &model_path, const std::vector<std::string> &names) {
  if (names.empty()) throw RunError(model_path + ": it has no output");
  const auto found = std::find(names.begin(), names.end(), "logits");
  return found == names.end() ? 0 : static_cast<size_t>(found - names.begin());
}

size_t count_classes(const std::string &model_path, const std::vector<int64_t> &output, size_t batch_size) {
  if (output.size() != 2 || output[0] != static_cast<int64_t>(batch_size) || output[1] < 1) {
    throw RunError(model_path + ": its output has the shape " + dimensions(output) + ", not (" +
                   std::to_string(batch_size) + ", classes)");
  }
  return static_cast<size_t>(output[1]);
}

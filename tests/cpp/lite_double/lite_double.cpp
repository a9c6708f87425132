// A double of MindSpore Lite for tests. It checks what it is called with, notes every call in the file that
// LITE_DOUBLE_LOG names, and computes something known:
//
//   logits[n][c] = sum over p of x[n][p] * ((31 * p + 17 * c) % 101 - 50) / 1000
//
// with p the position in the image's values as they lie in memory. Its model file is text:
//
//   lite_double
//   input float32 4 3 32 32      (or uint8 4 32 32 3, or float32 with the channels last; -1 for a batch of any size)
//   classes 10
//   fail_at 7                    (optional: the seventh run of a batch reports a failure)
//   milliseconds 20              (optional: how long a run takes at least)
//   probabilities 1              (optional: another output of the same shape, all zeros, before the logits)
//   isOptimized 1                (optional: converter_lite has prepared it)
//
// There are two Ascend devices, 0 and 1.

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "include/api/model.h"

namespace mindspore {

namespace {

constexpr uint32_t kAscendDevices = 2;

void note(const std::string &line) {
  if (const char *path = std::getenv("LITE_DOUBLE_LOG")) std::ofstream(path, std::ios::app) << line << "\n";
}

Status fail(const std::string &text) {
  note("refused: " + text);
  return {kLiteError, text};
}

size_t count_bytes(enum DataType type, const std::vector<int64_t> &shape) {
  size_t count = type == DataType::kNumberTypeUInt8 ? 1 : 4;
  for (const int64_t dimension : shape) count *= dimension < 0 ? 0 : static_cast<size_t>(dimension);
  return count;
}

std::string write_shape(const std::vector<int64_t> &shape) {
  std::string text;
  for (const int64_t dimension : shape) text += (text.empty() ? "" : ",") + std::to_string(dimension);
  return text;
}

}  // namespace

struct MSTensor::Impl {
  std::string name;
  enum DataType type = DataType::kTypeUnknown;
  std::vector<int64_t> shape;
  std::vector<uint8_t> data;
};

MSTensor::MSTensor(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
std::string MSTensor::Name() const { return impl_->name; }
Format MSTensor::format() const { return impl_->type == DataType::kNumberTypeUInt8 ? NHWC : NCHW; }
enum DataType MSTensor::DataType() const { return impl_->type; }
const std::vector<int64_t> &MSTensor::Shape() const { return impl_->shape; }
size_t MSTensor::DataSize() const { return count_bytes(impl_->type, impl_->shape); }
std::shared_ptr<const void> MSTensor::Data() const { return {impl_, impl_->data.data()}; }
void *MSTensor::MutableData() {
  impl_->data.resize(DataSize());
  return impl_->data.data();
}

struct Model::Impl {
  bool built = false;
  std::shared_ptr<MSTensor::Impl> input;
  int64_t classes = 0;
  int fail_at = 0;
  int runs = 0;
  int milliseconds = 0;
  int probabilities = 0;
};

Model::Model() : impl_(std::make_unique<Impl>()) { note("Model"); }
Model::~Model() { note("~Model"); }

Status Model::Build(const std::string &model_path, ModelType model_type, const std::shared_ptr<Context> &context) {
  if (impl_->built) return fail("Build was called twice");
  const bool lite = model_path.size() > 3 && model_path.compare(model_path.size() - 3, 3, ".ms") == 0;
  if (model_type != (lite ? kMindIR_Lite : kMindIR)) return fail("the model's type is not that of its file");
  if (context == nullptr || context->MutableDeviceInfo().size() != 1) return fail("expected one device");
  const auto device = context->MutableDeviceInfo().front();
  std::string where = "CPU";
  if (context->GetThreadNum() > 0) where += " with " + std::to_string(context->GetThreadNum()) + " threads";
  if (const auto ascend = std::dynamic_pointer_cast<AscendDeviceInfo>(device)) {
    if (ascend->GetDeviceID() >= kAscendDevices) {
      return fail("there is no Ascend device " + std::to_string(ascend->GetDeviceID()));
    }
    const std::string precision = ascend->GetPrecisionMode();
    if (precision != "enforce_fp16" && precision != "enforce_fp32") return fail("precision mode '" + precision + "'");
    where = "Ascend " + std::to_string(ascend->GetDeviceID()) + " with " + precision;
  }
  std::ifstream file(model_path);
  std::string word;
  if (!(file >> word) || word != "lite_double") return fail("it is no model");
  impl_->input = std::make_shared<MSTensor::Impl>();
  while (file >> word) {
    if (word == "input") {
      file >> word;
      impl_->input->type = word == "float32" ? DataType::kNumberTypeFloat32
                           : word == "uint8" ? DataType::kNumberTypeUInt8
                                             : DataType::kNumberTypeInt32;
      impl_->input->shape.resize(4);
      for (int64_t &dimension : impl_->input->shape) file >> dimension;
    } else if (word == "classes") {
      file >> impl_->classes;
    } else if (word == "fail_at") {
      file >> impl_->fail_at;
    } else if (word == "milliseconds") {
      file >> impl_->milliseconds;
    } else if (word == "probabilities") {
      file >> impl_->probabilities;
    }
  }
  impl_->built = true;
  note("Build on " + where);
  return kSuccess;
}

std::vector<MSTensor> Model::GetInputs() {
  if (!impl_->built) {
    note("refused: GetInputs before Build");
    return {};
  }
  return {MSTensor(impl_->input)};
}

Status Model::Resize(const std::vector<MSTensor> &inputs, const std::vector<std::vector<int64_t>> &dims) {
  if (!impl_->built) return fail("Resize before Build");
  if (inputs.size() != 1 || dims.size() != 1 || inputs[0].impl_ != impl_->input) return fail("Resize of other inputs");
  for (size_t i = 0; i < dims[0].size(); ++i) {
    if (impl_->input->shape[i] != -1 && impl_->input->shape[i] != dims[0][i]) return fail("Resize of a fixed dimension");
  }
  impl_->input->shape = dims[0];
  note("Resize to " + write_shape(dims[0]));
  return kSuccess;
}

Status Model::Predict(const std::vector<MSTensor> &inputs, std::vector<MSTensor> *outputs) {
  if (!impl_->built) return fail("Predict before Build");
  if (inputs.size() != 1 || outputs == nullptr) return fail("Predict of " + std::to_string(inputs.size()) + " inputs");
  if (!outputs->empty()) return fail("Predict with outputs: their memory would be written to");
  const MSTensor::Impl &input = *inputs[0].impl_;
  const size_t size = count_bytes(input.type, input.shape);
  if (size == 0) return fail("Predict with a dimension that is not known");
  if (input.data.size() != size) return fail("Predict without data");
  if (++impl_->runs == impl_->fail_at) return fail("the device was lost");

  std::this_thread::sleep_for(std::chrono::milliseconds(impl_->milliseconds));
  const int64_t batch = input.shape[0];
  const auto make_output = [&](const char *name) {
    auto made = std::make_shared<MSTensor::Impl>();
    made->name = name;
    made->type = DataType::kNumberTypeFloat32;
    made->shape = {batch, impl_->classes};
    made->data.resize(static_cast<size_t>(batch * impl_->classes) * sizeof(float));
    return made;
  };
  const auto output = make_output(impl_->probabilities ? "logits" : "Default/head/BiasAdd-op7");
  auto *logits = reinterpret_cast<float *>(output->data.data());
  const auto *floats = reinterpret_cast<const float *>(input.data.data());
  const bool bytes = input.type == DataType::kNumberTypeUInt8;
  const int64_t values = input.shape[1] * input.shape[2] * input.shape[3];
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < impl_->classes; ++c) {
      double sum = 0;
      for (int64_t p = 0; p < values; ++p) {
        const double x = bytes ? input.data[static_cast<size_t>(n * values + p)] : floats[n * values + p];
        sum += x * static_cast<double>((31 * p + 17 * c) % 101 - 50) / 1000;
      }
      logits[n * impl_->classes + c] = static_cast<float>(sum);
    }
  }
  if (impl_->probabilities) outputs->emplace_back(make_output("probabilities"));
  outputs->emplace_back(output);
  note("Predict " + write_shape(input.shape));
  return kSuccess;
}

}  // namespace mindspore

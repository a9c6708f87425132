// MINDIR on Ascend or the CPU by MindSpore Lite's public C++ interface (its cloud-side package).

#include <include/api/context.h>
#include <include/api/model.h>
#include <include/api/status.h>
#include <include/api/types.h>

#include <algorithm>
#include <cstring>

#include "engine.h"
#include "errors.h"
#include "files.h"

namespace {

constexpr size_t kDefaultBatch = 16;
constexpr size_t kMaxModelBytes = size_t{4} << 30;

std::string describe(const mindspore::Status &status) {
  const std::string text = status.ToString();
  return text.empty() ? "status " + std::to_string(status.StatusCode()) : text;
}

// On an NPU it is faster, and MindSpore Lite's default; an NPU without float32 convolutions has no other.
bool computes_in_float16(const EngineOptions &options) { return options.precision != "fp32"; }

// Whether converter_lite has prepared a model: it leaves this attribute in the graph.
bool is_prepared(const std::string &path) {
  static const std::string kAttribute = "isOptimized";
  const std::vector<uint8_t> data = read_file(path, kMaxModelBytes);
  return std::search(data.begin(), data.end(), kAttribute.begin(), kAttribute.end()) != data.end();
}

std::shared_ptr<mindspore::Context> make_context(const EngineOptions &options) {
  auto context = std::make_shared<mindspore::Context>();
  if (options.device_target == "Ascend") {
    auto device = std::make_shared<mindspore::AscendDeviceInfo>();
    device->SetDeviceID(static_cast<uint32_t>(options.device_id));
    device->SetPrecisionMode(computes_in_float16(options) ? "enforce_fp16" : "enforce_fp32");
    context->MutableDeviceInfo().push_back(device);
  } else {
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
    if (options.threads > 0) context->SetThreadNum(static_cast<int32_t>(options.threads));
  }
  return context;
}

class MindSporeLiteEngine : public Engine {
 public:
  explicit MindSporeLiteEngine(const EngineOptions &options) : model_path_(options.model_path) {
    const auto type_of_file = ends_with(model_path_, ".ms") ? mindspore::kMindIR_Lite : mindspore::kMindIR;
    const auto built = model_.Build(model_path_, type_of_file, make_context(options));
    if (built != mindspore::kSuccess) {
      throw RunError(model_path_ + ": MindSpore Lite cannot load it on " + options.device_target + " device " +
                     std::to_string(options.device_id) + ": " + describe(built));
    }
    inputs_ = model_.GetInputs();
    if (inputs_.size() != 1) {
      throw RunError(model_path_ + ": it has " + std::to_string(inputs_.size()) + " inputs, not one");
    }
    const auto type = inputs_[0].DataType();
    if (type != mindspore::DataType::kNumberTypeFloat32 && type != mindspore::DataType::kNumberTypeUInt8) {
      throw RunError(model_path_ + ": its input is neither float32 nor uint8 (MindSpore's type " +
                     std::to_string(static_cast<int>(type)) + ")");
    }
    const bool planes = type == mindspore::DataType::kNumberTypeFloat32;
    std::vector<int64_t> dimensions = inputs_[0].Shape();
    // converter_lite puts the channels last unless it is told not to.
    channels_last_ = planes && dimensions.size() == 4 && dimensions[1] != 3 && dimensions[3] == 3;
    if (channels_last_) std::rotate(dimensions.begin() + 1, dimensions.begin() + 3, dimensions.end());
    shape_ = describe_model(model_path_, planes ? PixelType::kFloat32Nchw : PixelType::kUint8Nhwc, dimensions,
                            options.batch_size, kDefaultBatch);
    fix_batch();
    if (inputs_[0].DataSize() != shape_.batch_size * shape_.image_bytes()) {
      throw RunError(model_path_ + ": MindSpore Lite made room for " + std::to_string(inputs_[0].DataSize()) +
                     " bytes of input, expected " + std::to_string(shape_.batch_size * shape_.image_bytes()));
    }
    // The outputs are certain only after a run. This one also keeps the start-up out of the timings.
    std::memset(input(), 0, inputs_[0].DataSize());
    predict();
    std::vector<std::string> names;
    for (const auto &output : outputs_) names.push_back(output.Name());
    logits_position_ = choose_output(model_path_, names);
    const mindspore::MSTensor &logits = outputs_[logits_position_];
    if (logits.DataType() != mindspore::DataType::kNumberTypeFloat32) {
      throw RunError(model_path_ + ": its output is not float32 (MindSpore's type " +
                     std::to_string(static_cast<int>(logits.DataType())) + ")");
    }
    shape_.num_classes = count_classes(model_path_, logits.Shape(), shape_.batch_size);
    if (options.device_target == "Ascend") make_remark(options);
  }

  const ModelShape &shape() const override { return shape_; }

  std::string remark() const override { return remark_; }

  const float *infer(size_t, const uint8_t *images) override {
    if (channels_last_) {
      interleave(images);
    } else {
      std::memcpy(input(), images, shape_.batch_size * shape_.image_bytes());
    }
    predict();
    const mindspore::MSTensor &logits = outputs_.at(logits_position_);
    // Data() copies logits that are on the device to the host. The copy is kept while the caller reads it.
    logits_ = logits.Data();
    if (logits_ == nullptr || logits.DataSize() != shape_.batch_size * shape_.num_classes * sizeof(float)) {
      throw RunError("MindSpore Lite gave " + std::to_string(logits.DataSize()) + " bytes of logits");
    }
    return static_cast<const float *>(logits_.get());
  }

 private:
  void make_remark(const EngineOptions &options) {
    remark_ = std::string("MindSpore Lite was asked to compute in ") +
              (computes_in_float16(options) ? "float16" : "float32");
    if (!ends_with(model_path_, ".ms") && !is_prepared(model_path_)) {
      remark_ += "; it optimises " + model_path_ + " at each start, because converter_lite --optimize=ascend_oriented "
                 "has not prepared it";
    }
  }

  // Sets the batch size of a model that was exported for any.
  void fix_batch() {
    std::vector<int64_t> dimensions = inputs_[0].Shape();
    if (dimensions[0] == static_cast<int64_t>(shape_.batch_size)) return;
    dimensions[0] = static_cast<int64_t>(shape_.batch_size);
    const auto resized = model_.Resize(inputs_, {dimensions});
    if (resized != mindspore::kSuccess) {
      throw RunError(model_path_ + ": MindSpore Lite cannot run it on batches of " +
                     std::to_string(shape_.batch_size) + ": " + describe(resized));
    }
    inputs_ = model_.GetInputs();
  }

  // Copies images of planes to an input whose channels come last.
  void interleave(const uint8_t *images) {
    const size_t plane = shape_.image_size * shape_.image_size;
    uint8_t *target = input();
    for (size_t n = 0; n < shape_.batch_size; ++n) {
      for (size_t i = 0; i < 3 * plane; ++i) {
        const size_t from = (n * 3 + i % 3) * plane + i / 3;
        std::memcpy(target + (n * 3 * plane + i) * sizeof(float), images + from * sizeof(float), sizeof(float));
      }
    }
  }

  uint8_t *input() {
    auto *data = static_cast<uint8_t *>(inputs_[0].MutableData());
    if (data == nullptr) throw RunError("MindSpore Lite gives no memory for the input");
    return data;
  }

  void predict() {
    // Predict would take tensors in the list for memory to write the results to.
    outputs_.clear();
    const auto done = model_.Predict(inputs_, &outputs_);
    if (done != mindspore::kSuccess) throw RunError("MindSpore Lite failed: " + describe(done));
  }

  std::string model_path_;
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_;
  std::vector<mindspore::MSTensor> outputs_;
  size_t logits_position_ = 0;
  bool channels_last_ = false;
  std::string remark_;
  std::shared_ptr<const void> logits_;
  ModelShape shape_;
};

}  // namespace

std::unique_ptr<Engine> load_mindspore_lite(const EngineOptions &options) {
  if (options.device_target == "CPU" && !options.precision.empty()) {
    throw UsageError("--precision is for an NPU, but --device_target is CPU");
  }
  return std::make_unique<MindSporeLiteEngine>(options);
}

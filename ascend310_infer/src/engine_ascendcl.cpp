// OM on an NPU by AscendCL, the C interface of CANN's runtime.

#include <algorithm>
#include <cstring>

#include "ascendcl.h"
#include "engine.h"
#include "errors.h"

using namespace ascendcl;

namespace {

// One lane's images are copied while the other lane's are computed.
constexpr size_t kDefaultLanes = 2;

std::vector<int64_t> dimensions(const aclmdlIODims &dims) { return {dims.dims, dims.dims + dims.dimCount}; }

// ATC names an output "node:index:name".
std::string name_of_output(const char *text) {
  const std::string name = text == nullptr ? "" : text;
  return (":" + name + ":").find(":logits:") == std::string::npos ? name : "logits";
}

// One batch at a time: a context, and in it a model of its own, because AscendCL wants a model loaded, run and unloaded
// in one context, and not run by two threads at once.
class Lane {
 public:
  Lane(const EngineOptions &options, const Device &device)
      : path_(options.model_path), device_(device), context_(options.device_id), model_(path_) {
    describe_input(options);
    make_tensors();
    describe_output();
    // The first run keeps the start-up out of the timings.
    const std::vector<uint8_t> black(shape_.batch_size * shape_.image_bytes());
    infer(black.data());
  }
  // Everything in it is given back in its context, by whatever thread.
  ~Lane() { context_.try_enter(); }
  Lane(const Lane &) = delete;
  Lane &operator=(const Lane &) = delete;

  const ModelShape &shape() const { return shape_; }

  const float *infer(const uint8_t *images) {
    context_.enter();
    const size_t bytes = shape_.batch_size * shape_.image_bytes();
    check(aclrtMemcpy(inputs_.memory(image_), bytes, images, bytes, device_.to_device()), "the images cannot be copied");
    fix_batch();
    check(aclmdlExecute(model_.id(), inputs_.get(), outputs_.get()), "AscendCL failed");
    check(aclrtMemcpy(copied_.data(), copied_.size(), outputs_.memory(output_), copied_.size(), device_.to_host()),
          "the logits cannot be copied");
    for (size_t i = 0; i < logits_.size(); ++i) {
      if (half_) {
        aclFloat16 value = 0;
        std::memcpy(&value, copied_.data() + i * sizeof(value), sizeof(value));
        logits_[i] = aclFloat16ToFloat(value);
      } else {
        std::memcpy(&logits_[i], copied_.data() + i * sizeof(float), sizeof(float));
      }
    }
    return logits_.data();
  }

 private:
  void describe_input(const EngineOptions &options) {
    const size_t inputs = aclmdlGetNumInputs(model_.desc());
    // A model for several batch sizes has another input, which takes the size.
    several_ = aclmdlGetInputIndexByName(model_.desc(), ACL_DYNAMIC_TENSOR_NAME, &batch_input_) == ACL_SUCCESS;
    if (inputs != (several_ ? 2U : 1U)) {
      throw RunError(path_ + ": it has " + std::to_string(several_ ? inputs - 1 : inputs) + " inputs, not one");
    }
    image_ = several_ && batch_input_ == 0 ? 1 : 0;
    const aclDataType type = aclmdlGetInputDataType(model_.desc(), image_);
    if (type != ACL_FLOAT && type != ACL_UINT8) {
      throw RunError(path_ + ": its input is neither float32 nor uint8 (AscendCL's type " + std::to_string(type) + ")");
    }
    check_normalisation(type == ACL_UINT8, options.aipp);
    aclmdlIODims dims{};
    check(aclmdlGetInputDims(model_.desc(), image_, &dims), path_ + ": AscendCL does not tell its input's shape");
    std::vector<int64_t> shape = dimensions(dims);
    if (several_ && !shape.empty()) shape[0] = static_cast<int64_t>(choose_batch(options.batch_size));
    shape_ = describe_model(path_, type == ACL_UINT8 ? PixelType::kUint8Nhwc : PixelType::kFloat32Nchw, shape,
                            options.batch_size, 1);
  }

  void check_normalisation(bool takes_pixels, bool aipp) const {
    if (aipp && !takes_pixels) {
      throw RunError(path_ + ": its description says that AIPP normalises, but it takes float32; was it converted " +
                     "without --insert_op_conf?");
    }
    if (!aipp && takes_pixels) {
      throw RunError(path_ + ": it takes pixels, but its description does not say that AIPP normalises them; " +
                     "export.py --file_format OM writes both");
    }
  }

  // The batch size that is wanted, else the largest. Throws UsageError if the model is not for it.
  size_t choose_batch(size_t wanted) const {
    aclmdlBatch found{};
    check(aclmdlGetDynamicBatch(model_.desc(), &found), path_ + ": AscendCL does not tell its batch sizes");
    const std::vector<size_t> sizes(found.batch, found.batch + found.batchCount);
    if (sizes.empty()) throw RunError(path_ + ": it takes images of several sizes; convert it for one");
    if (wanted == 0) return *std::max_element(sizes.begin(), sizes.end());
    if (std::find(sizes.begin(), sizes.end(), wanted) != sizes.end()) return wanted;
    std::string text;
    for (const size_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    throw UsageError("--batch_size is " + std::to_string(wanted) + ", but " + path_ + " was converted for " + text);
  }

  void make_tensors() {
    for (size_t i = 0; i < aclmdlGetNumInputs(model_.desc()); ++i) {
      inputs_.add(aclmdlGetInputSizeByIndex(model_.desc(), i));
    }
    for (size_t i = 0; i < aclmdlGetNumOutputs(model_.desc()); ++i) {
      outputs_.add(aclmdlGetOutputSizeByIndex(model_.desc(), i));
    }
    const size_t room = aclmdlGetInputSizeByIndex(model_.desc(), image_);
    const size_t bytes = shape_.batch_size * shape_.image_bytes();
    if (several_ ? room < bytes : room != bytes) {
      throw RunError(path_ + ": AscendCL wants " + std::to_string(room) + " bytes of input, expected " +
                     std::to_string(bytes));
    }
    fix_batch();
  }

  void describe_output() {
    std::vector<std::string> names;
    for (size_t i = 0; i < aclmdlGetNumOutputs(model_.desc()); ++i) {
      names.push_back(name_of_output(aclmdlGetOutputNameByIndex(model_.desc(), i)));
    }
    output_ = choose_output(path_, names);
    const aclDataType type = aclmdlGetOutputDataType(model_.desc(), output_);
    if (type != ACL_FLOAT && type != ACL_FLOAT16) {
      throw RunError(path_ + ": its output is no float (AscendCL's type " + std::to_string(type) + ")");
    }
    half_ = type == ACL_FLOAT16;
    aclmdlIODims dims{};
    check(aclmdlGetCurOutputDims(model_.desc(), output_, &dims), path_ + ": AscendCL does not tell its output's shape");
    shape_.num_classes = count_classes(path_, dimensions(dims), shape_.batch_size);
    logits_.resize(shape_.batch_size * shape_.num_classes);
    copied_.resize(logits_.size() * (half_ ? sizeof(aclFloat16) : sizeof(float)));
    if (copied_.size() > aclmdlGetOutputSizeByIndex(model_.desc(), output_)) {
      throw RunError(path_ + ": AscendCL gives fewer bytes of logits than its output's shape has");
    }
  }

  // AscendCL wants it before every run.
  void fix_batch() {
    if (!several_) return;
    check(aclmdlSetDynamicBatchSize(model_.id(), inputs_.get(), batch_input_, shape_.batch_size),
          path_ + ": AscendCL cannot run it on batches of " + std::to_string(shape_.batch_size));
  }

  std::string path_;
  const Device &device_;
  Context context_;
  Model model_;
  bool several_ = false;    // batch sizes
  size_t batch_input_ = 0;  // where there are several
  size_t image_ = 0;
  size_t output_ = 0;
  bool half_ = false;  // logits in float16
  Tensors inputs_;
  Tensors outputs_;
  ModelShape shape_;
  std::vector<uint8_t> copied_;
  std::vector<float> logits_;
};

class AscendClEngine : public Engine {
 public:
  explicit AscendClEngine(const EngineOptions &options) : device_(options.device_id) {
    const size_t lanes = options.threads > 0 ? options.threads : kDefaultLanes;
    for (size_t i = 0; i < lanes; ++i) lanes_.push_back(std::make_unique<Lane>(options, device_));
  }

  const ModelShape &shape() const override { return lanes_.front()->shape(); }

  size_t lanes() const override { return lanes_.size(); }

  const float *infer(size_t lane, const uint8_t *images) override { return lanes_[lane]->infer(images); }

 private:
  Device device_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

}  // namespace

std::unique_ptr<Engine> load_ascendcl(const EngineOptions &options) {
  if (options.device_target != "Ascend") {
    throw UsageError("the engine ascendcl runs on an NPU: --device_target is " + options.device_target +
                     "; on a CPU run the ONNX file instead");
  }
  return std::make_unique<AscendClEngine>(options);
}

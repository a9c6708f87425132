// ONNX on the CPU by OpenVINO.

#include <openvino/openvino.hpp>

#include "engine.h"
#include "errors.h"

namespace {

// Of B0 on 2 cores; larger ones leave the caches.
constexpr size_t kDefaultBatch = 8;

std::vector<int64_t> dimensions(const ov::PartialShape &shape) {
  std::vector<int64_t> result;
  if (shape.rank().is_dynamic()) return result;
  for (const ov::Dimension &dimension : shape) result.push_back(dimension.is_static() ? dimension.get_length() : -1);
  return result;
}

// The first line of OpenVINO's messages is where in its source code they come from.
std::string shorten(const std::string &message) {
  const size_t last = message.find_last_not_of(" \n");
  const size_t line = message.rfind('\n', last);
  return message.substr(line == std::string::npos ? 0 : line + 1, last - (line == std::string::npos ? 0 : line + 1) + 1);
}

class OpenVinoEngine : public Engine {
 public:
  explicit OpenVinoEngine(const EngineOptions &options) {
    const auto model = core_.read_model(options.model_path);
    if (model->inputs().size() != 1 || model->outputs().size() != 1) {
      throw RunError(options.model_path + ": it has " + std::to_string(model->inputs().size()) + " inputs and " +
                     std::to_string(model->outputs().size()) + " outputs, not one of each");
    }
    const ov::Output<ov::Node> input = model->input();
    if (input.get_element_type() != ov::element::f32 && input.get_element_type() != ov::element::u8) {
      throw RunError(options.model_path + ": its input is of type " + input.get_element_type().get_type_name() +
                     ", not float32 or uint8");
    }
    if (model->output().get_element_type() != ov::element::f32) {
      throw RunError(options.model_path + ": its output is of type " +
                     model->output().get_element_type().get_type_name() + ", not float32");
    }
    const bool planes = input.get_element_type() == ov::element::f32;
    shape_ = describe_model(options.model_path, planes ? PixelType::kFloat32Nchw : PixelType::kUint8Nhwc,
                            dimensions(input.get_partial_shape()), options.batch_size, kDefaultBatch);
    ov::PartialShape fixed = input.get_partial_shape();
    fixed[0] = static_cast<int64_t>(shape_.batch_size);
    model->reshape(fixed);
    shape_.num_classes = count_classes(options.model_path, dimensions(model->output().get_partial_shape()),
                                       shape_.batch_size);
    // float32 also where the processor has bfloat16: the logits are compared with MindSpore's.
    request_ = core_.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                                   ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY))
                   .create_infer_request();
  }

  const ModelShape &shape() const override { return shape_; }

  uint8_t *input() override { return static_cast<uint8_t *>(request_.get_input_tensor().data()); }

  const float *infer() override {
    try {
      request_.infer();
    } catch (const ov::Exception &error) {
      throw RunError("OpenVINO failed: " + shorten(error.what()));
    }
    return request_.get_output_tensor().data<float>();
  }

 private:
  ov::Core core_;
  ov::InferRequest request_;
  ModelShape shape_;
};

}  // namespace

std::unique_ptr<Engine> load_openvino(const EngineOptions &options) {
  if (options.device_target != "CPU") {
    throw UsageError("the engine openvino runs on the CPU: --device_target is " + options.device_target +
                     "; on an NPU run the MINDIR file instead");
  }
  if (options.device_id != 0) {
    throw UsageError("--device_id is " + std::to_string(options.device_id) + ", but there is one CPU: 0");
  }
  try {
    return std::make_unique<OpenVinoEngine>(options);
  } catch (const ov::Exception &error) {
    throw RunError(options.model_path + ": OpenVINO cannot load it: " + shorten(error.what()));
  }
}

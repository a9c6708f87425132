// ONNX on the CPU by OpenVINO.

#include <openvino/openvino.hpp>

#include "engine.h"
#include "errors.h"

namespace {

// Larger batches do not fit into the caches.
constexpr size_t kDefaultBatch = 4;

std::vector<int64_t> dimensions(const ov::PartialShape &shape) {
  std::vector<int64_t> result;
  if (shape.rank().is_dynamic()) return result;
  for (const ov::Dimension &dimension : shape) result.push_back(dimension.is_static() ? dimension.get_length() : -1);
  return result;
}

// The last line of one of OpenVINO's messages; the lines before say where in its source code the message comes from.
std::string shorten(const std::string &message) {
  const size_t last = message.find_last_not_of(" \n");
  const size_t begin = message.rfind('\n', last) + 1;  // 0 where there is no other line
  return message.substr(begin, last - begin + 1);
}

// What OpenVINO computes in int8, with what follows it in float; and the model's outputs, which stay as they are.
bool reads_int8(const ov::Node &node) {
  const std::string name = node.get_type_name();
  return name == "Convolution" || name == "GroupConvolution" || name == "MatMul" || name == "Add" || name == "Result";
}

// The last node of a quantisation and its dequantisation; the first one itself where others read between them.
ov::Node *dequantised(ov::Node *first) {
  ov::Node *last = first;
  while (last->get_type_name() != std::string("Multiply")) {
    const auto readers = last->output(0).get_target_inputs();
    ov::Node *next = readers.size() == 1 ? readers.begin()->get_node() : first;
    const std::string name = next->get_type_name();
    if (name != "Convert" && name != "Subtract" && name != "Multiply") return first;
    last = next;
  }
  return last;
}

// Takes out each step to int8 and back that leads to another operator, such as swish between two convolutions: the
// network becomes faster and a little more exact. src/inference/openvino_session.py does the same.
void leave_float(const ov::Model &model) {
  for (const auto &node : model.get_ordered_ops()) {
    if (node->get_type_name() != std::string("FakeQuantize")) continue;
    for (auto reader : dequantised(node.get())->output(0).get_target_inputs()) {
      if (!reads_int8(*reader.get_node())) reader.replace_source_output(node->input_value(0));
    }
  }
}

class OpenVinoEngine : public Engine {
 public:
  explicit OpenVinoEngine(const EngineOptions &options) {
    auto model = prepare(core_.read_model(options.model_path), options.model_path);
    const ov::Output<ov::Node> input = model->input();
    const bool planes = input.get_element_type() == ov::element::f32;
    shape_ = describe_model(options.model_path, planes ? PixelType::kFloat32Nchw : PixelType::kUint8Nhwc,
                            dimensions(input.get_partial_shape()), options.batch_size, kDefaultBatch);
    ov::PartialShape fixed = input.get_partial_shape();
    fixed[0] = static_cast<int64_t>(shape_.batch_size);
    model->reshape(fixed);
    shape_.num_classes = count_classes(options.model_path, dimensions(model->output().get_partial_shape()),
                                       shape_.batch_size);
    if (planes) {
      // The first convolution wants the colours side by side, as this program can write them at no cost.
      ov::preprocess::PrePostProcessor steps(model);
      steps.input().tensor().set_layout("NHWC");
      steps.input().model().set_layout("NCHW");
      model = steps.build();
      shape_.pixel_type = PixelType::kFloat32Nhwc;
    }
    // THROUGHPUT makes many small streams that run as many batches at once: no core waits for another within a layer.
    // float32 even where the processor has bfloat16: the logits must be MindSpore's. Threads are not pinned to cores,
    // because the decoders' threads run on the same ones.
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::THROUGHPUT),
                        ov::hint::inference_precision(ov::element::f32), ov::hint::enable_cpu_pinning(false)};
    if (options.threads > 0) settings.insert(ov::inference_num_threads(static_cast<int>(options.threads)));
    ov::CompiledModel compiled = core_.compile_model(model, "CPU", settings);
    const size_t lanes = compiled.get_property(ov::optimal_number_of_infer_requests);
    for (size_t i = 0; i < lanes; ++i) requests_.push_back(compiled.create_infer_request());
    input_type_ = model->input().get_element_type();
    input_shape_ = model->input().get_shape();
  }

  const ModelShape &shape() const override { return shape_; }

  size_t lanes() const override { return requests_.size(); }

  const float *infer(size_t lane, const uint8_t *images) override {
    ov::InferRequest &request = requests_[lane];
    try {
      // The images are not copied. OpenVINO does not write to inputs, although its interface takes no const pointer.
      request.set_input_tensor(ov::Tensor(input_type_, input_shape_, const_cast<uint8_t *>(images)));
      request.infer();
    } catch (const ov::Exception &error) {
      throw RunError("OpenVINO failed: " + shorten(error.what()));
    }
    return request.get_output_tensor().data<float>();
  }

 private:
  // Checks the input's type and leaves the logits as the only output; float16 at either end becomes float32.
  static std::shared_ptr<ov::Model> prepare(const std::shared_ptr<ov::Model> &read, const std::string &path) {
    if (read->inputs().size() != 1) {
      throw RunError(path + ": it has " + std::to_string(read->inputs().size()) + " inputs, not one");
    }
    leave_float(*read);
    std::vector<std::string> names;
    for (const auto &output : read->outputs()) names.push_back(output.get_names().empty() ? "" : output.get_any_name());
    const size_t logits = choose_output(path, names);
    const auto model = std::make_shared<ov::Model>(ov::OutputVector{read->output(logits)}, read->get_parameters());
    for (const auto &[what, type] : {std::pair("input", model->input().get_element_type()),
                                     std::pair("output", model->output().get_element_type())}) {
      const bool image = what == std::string("input") && type == ov::element::u8;
      if (type == ov::element::f32 || type == ov::element::f16 || image) continue;
      throw RunError(path + ": its " + what + " is of type " + type.get_type_name() + ", not float32" +
                     (what == std::string("input") ? " or uint8" : ""));
    }
    ov::preprocess::PrePostProcessor steps(model);
    if (model->input().get_element_type() == ov::element::f16) {
      steps.input().tensor().set_element_type(ov::element::f32);
    }
    steps.output().tensor().set_element_type(ov::element::f32);
    return steps.build();
  }

  ov::Core core_;
  std::vector<ov::InferRequest> requests_;
  ov::element::Type input_type_;
  ov::Shape input_shape_;
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

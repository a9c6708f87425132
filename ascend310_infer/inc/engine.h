// The interface to the libraries that turn batches of images into logits. All other code is tested on a CPU.
#ifndef ASCEND310_INFER_ENGINE_H
#define ASCEND310_INFER_ENGINE_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "preprocess.h"

enum class PixelType {
  kFloat32Nchw,  // preprocessed
  kFloat32Nhwc,
  kUint8Nhwc     // cropped only; the model normalises
};

// What a loaded model takes and gives.
struct ModelShape {
  PixelType pixel_type = PixelType::kFloat32Nchw;
  size_t batch_size = 0;
  size_t image_size = 0;
  size_t num_classes = 0;

  size_t image_bytes() const {
    return image_size * image_size * 3 * (pixel_type == PixelType::kUint8Nhwc ? 1 : sizeof(float));
  }
};

struct EngineOptions {
  std::string model_path;
  std::string device_target;  // Ascend or CPU
  int device_id = 0;
  size_t batch_size = 0;  // 0: the model's; if the model takes any, one that suits the engine
  size_t threads = 0;     // on a CPU; with ascendcl: batches under way at once; 0: the engine decides
  std::string precision;  // of mindspore_lite on an NPU: fp16 or fp32; empty: fp16
  bool aipp = false;      // whether the model's description says that AIPP normalises the pixels
};

// One model on one device.
class Engine {
 public:
  virtual ~Engine() = default;

  virtual const ModelShape &shape() const = 0;

  // How many batches may be under way at once: each lane is for one thread.
  virtual size_t lanes() const { return 1; }

  // What the user should know of how it runs; empty if there is nothing.
  virtual std::string remark() const { return {}; }

  // Runs a whole batch: shape().batch_size images of shape().image_bytes() bytes, one after the other, in memory that
  // is aligned for float. Returns batch_size rows of num_classes logits, valid until the lane's next call.
  // Throws RunError.
  virtual const float *infer(size_t lane, const uint8_t *images) = 0;
};

// The engines built into this program, by name: "ascendcl", "mindspore_lite", "openvino".
std::vector<std::string> list_engines();

// The engine for a model file by its suffix (.om: ascendcl; .mindir, .ms: mindspore_lite; .onnx: openvino). Throws
// UsageError for any other suffix.
std::string choose_engine(const std::string &model_path);

// Loads the model. Throws UsageError if the engine is not built in or cannot do what is asked, RunError if it fails.
std::unique_ptr<Engine> load_engine(const std::string &name, const EngineOptions &options);

// Each engine, in its own file; only those of list_engines() are linked.
std::unique_ptr<Engine> load_ascendcl(const EngineOptions &options);
std::unique_ptr<Engine> load_mindspore_lite(const EngineOptions &options);
std::unique_ptr<Engine> load_openvino(const EngineOptions &options);

// Shared by the engines. Finds out what a model takes and gives from its input's and output's dimensions (-1: any).
// Throws RunError if it takes no square RGB images, UsageError if `wanted_batch` is not 0 and contradicts it.
// If the model takes batches of any size, they get `wanted_batch` images, or `default_batch` where that is 0.
ModelShape describe_model(const std::string &model_path, PixelType pixel_type, const std::vector<int64_t> &input,
                          size_t wanted_batch, size_t default_batch);

// Which of several outputs are the logits: the one of that name, else the first. Throws RunError if there is none.
size_t choose_output(const std::string &model_path, const std::vector<std::string> &names);

// The number of classes from the output's dimensions, which must be (batch_size, classes). Throws RunError.
size_t count_classes(const std::string &model_path, const std::vector<int64_t> &output, size_t batch_size);

#endif

// Any text is a model's description or a RunError; what is accepted makes sense.

#include "errors.h"
#include "model_info.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  try {
    const ModelInfo info = parse_model_info(std::string(reinterpret_cast<const char *>(data), size), "fuzz");
    const Preprocess &preprocess = info.preprocess;
    if (info.num_classes < 1 || preprocess.image_size < 1 || preprocess.resize < preprocess.image_size ||
        !(preprocess.std[0] > 0)) {
      __builtin_trap();
    }
  } catch (const RunError &) {
  }
  return 0;
}

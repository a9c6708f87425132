// Any bytes are an ONNX file, with or without the entry, or a RunError.

#include "errors.h"
#include "model_info.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  try {
    const auto text = find_onnx_metadata(data, size, "efficientnet", "fuzz");
    if (text && text->size() > size) __builtin_trap();
  } catch (const RunError &) {
  }
  return 0;
}

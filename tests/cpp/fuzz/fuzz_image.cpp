// Any bytes are an image or an ImageError, and both ways of decoding say the same.

#include "errors.h"
#include "preprocess.h"

namespace {

// The planes, or none for an ImageError.
Planes load(Planes (*way)(const uint8_t *, size_t, const Preprocess &, const std::string &), const uint8_t *data,
            size_t size, const Preprocess &preprocess) {
  try {
    const Planes planes = way(data, size, preprocess, "fuzz");
    if (planes.size() != preprocess.image_size * preprocess.image_size * 3) __builtin_trap();
    return planes;
  } catch (const ImageError &) {
    return {};
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const Preprocess kSmall{16, 18, Interpolation::kBicubic, {127.5F, 127.5F, 127.5F}, {127.5F, 127.5F, 127.5F}};
  const Planes planes = load(load_planes, data, size, kSmall);
  if (planes != load(load_planes_of_any, data, size, kSmall)) __builtin_trap();
  std::vector<float> values(planes.size());
  normalise(planes, kSmall, false, values.data());
  return 0;
}

// Any bytes are an image or an ImageError; what is an image can be cropped.

#include "errors.h"
#include "image.h"
#include "preprocess.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const Preprocess kSmall{16, 18, Interpolation::kBicubic, {127.5F, 127.5F, 127.5F}, {127.5F, 127.5F, 127.5F}};
  try {
    const Image image = decode_image(data, size, "fuzz");
    if (image.pixels.size() != image.width * image.height * 3) __builtin_trap();
    const Image crop = crop_for_evaluation(image, kSmall, "fuzz");
    if (crop.pixels.size() != 16 * 16 * 3) __builtin_trap();
    float values[16 * 16 * 3];
    normalise(crop, kSmall, values);
  } catch (const ImageError &) {
  }
  return 0;
}

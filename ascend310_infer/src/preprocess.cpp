#include "preprocess.h"

#include <algorithm>
#include <cmath>

#include "errors.h"

void normalise(const Image &crop, const Preprocess &preprocess, float *target) {
  const size_t plane = crop.width * crop.height;
  for (size_t channel = 0; channel < 3; ++channel) {
    // 256 values are divided instead of every pixel: the same division of the same numbers.
    float table[256];
    for (int value = 0; value < 256; ++value) {
      table[value] = (static_cast<float>(value) - preprocess.mean[channel]) / preprocess.std[channel];
    }
    const uint8_t *pixel = crop.pixels.data() + channel;
    float *values = target + channel * plane;
    for (size_t i = 0; i < plane; ++i) values[i] = table[pixel[3 * i]];
  }
}

Image crop_for_evaluation(const Image &image, const Preprocess &preprocess, const std::string &path) {
  const size_t shorter = std::min(image.width, image.height);
  const size_t longer = std::max(image.width, image.height);
  // MindSpore divides in float32 and rounds down; so does this, in the same order.
  const float scaled = static_cast<float>(longer) / static_cast<float>(shorter) * static_cast<float>(preprocess.resize);
  if (!(std::floor(scaled) <= static_cast<float>(kMaxResizedSide))) {
    throw ImageError(path + ": an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                     " pixels is too elongated");
  }
  const auto resized_longer = static_cast<size_t>(scaled);
  const bool upright = image.height > image.width;
  const size_t width = upright ? preprocess.resize : resized_longer;
  const size_t height = upright ? resized_longer : preprocess.resize;
  const size_t side = preprocess.image_size;
  const CropBox box{(width - side) / 2, (height - side) / 2, side, side};
  return resize_and_crop(image, width, height, box, preprocess.interpolation);
}

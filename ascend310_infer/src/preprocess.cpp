#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "errors.h"
#include "image_engine.h"

namespace {

// A whole JPEG of the usual kind; nothing for all other files, on which the other way decides.
std::optional<Planes> load_everyday_jpeg(const uint8_t *data, size_t size, const Preprocess &preprocess,
                                         const std::string &path) {
  int32_t found[2] = {};
  if (jpeg_size(data, size, found) != kImageDone) return std::nullopt;
  const auto width = static_cast<size_t>(found[0]);
  const auto height = static_cast<size_t>(found[1]);
  check_image_size(width, height, path);
  const Resizing resizing = plan_resizing(width, height, preprocess, path);
  ImageRequest request{};
  request.reduce = 1;
  request.width = found[0];
  request.height = found[1];
  request.new_width = static_cast<int32_t>(resizing.width);
  request.new_height = static_cast<int32_t>(resizing.height);
  request.window_left = static_cast<int32_t>(resizing.box.left);
  request.window_top = static_cast<int32_t>(resizing.box.top);
  request.side = static_cast<int32_t>(preprocess.image_size);
  request.filter = preprocess.interpolation == Interpolation::kBicubic ? kImageBicubic : kImageBilinear;
  Planes planes(preprocess.image_size * preprocess.image_size * 3);
  if (jpeg_resized(data, size, &request, planes.data()) != kImageDone) return std::nullopt;
  return planes;
}

}  // namespace

Resizing plan_resizing(size_t width, size_t height, const Preprocess &preprocess, const std::string &path) {
  const size_t shorter = std::min(width, height);
  const size_t longer = std::max(width, height);
  // MindSpore divides in float32 and rounds down; so does this, in the same order.
  const float scaled = static_cast<float>(longer) / static_cast<float>(shorter) * static_cast<float>(preprocess.resize);
  if (!(std::floor(scaled) <= static_cast<float>(kMaxResizedSide))) {
    throw ImageError(path + ": an image of " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels is too elongated");
  }
  const auto resized_longer = static_cast<size_t>(scaled);
  Resizing resizing;
  resizing.width = height > width ? preprocess.resize : resized_longer;
  resizing.height = height > width ? resized_longer : preprocess.resize;
  const size_t side = preprocess.image_size;
  resizing.box = {(resizing.width - side) / 2, (resizing.height - side) / 2, side, side};
  return resizing;
}

Planes load_planes(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path) {
  auto planes = load_everyday_jpeg(data, size, preprocess, path);
  return planes ? std::move(*planes) : load_planes_of_any(data, size, preprocess, path);
}

Planes load_planes_of_any(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path) {
  const Image image = decode_image(data, size, path);
  const Resizing resizing = plan_resizing(image.width, image.height, preprocess, path);
  const Image crop = resize_and_crop(image, resizing.width, resizing.height, resizing.box, preprocess.interpolation);
  const size_t plane = crop.width * crop.height;
  Planes planes(3 * plane);
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t i = 0; i < plane; ++i) planes[channel * plane + i] = crop.pixels[3 * i + channel];
  }
  return planes;
}

void normalise(const Planes &planes, const Preprocess &preprocess, float *target) {
  const size_t plane = planes.size() / 3;
  for (size_t channel = 0; channel < 3; ++channel) {
    // 256 values are divided instead of every pixel: the same division of the same numbers.
    float table[256];
    for (int value = 0; value < 256; ++value) {
      table[value] = (static_cast<float>(value) - preprocess.mean[channel]) / preprocess.std[channel];
    }
    const uint8_t *pixels = planes.data() + channel * plane;
    float *values = target + channel * plane;
    for (size_t i = 0; i < plane; ++i) values[i] = table[pixels[i]];
  }
}

void interleave(const Planes &planes, uint8_t *target) {
  const size_t plane = planes.size() / 3;
  for (size_t i = 0; i < plane; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) target[3 * i + channel] = planes[channel * plane + i];
  }
}

#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <optional>
#include <utility>

#include "errors.h"
#include "image.h"
#include "image_engine.h"

namespace {

// The engine counts in 32 bits, and its bicubic filter weighs up to four times as many pixels as a side has.
static_assert(kMaxPixels < INT32_MAX / 8, "the engine's numbers would overflow");

// Resizes the shorter side to preprocess.resize pixels and cuts out the centre. Throws ImageError, its sentence
// beginning with `path`, if the image is too elongated.
ImageRequest plan_request(size_t width, size_t height, const Preprocess &preprocess, const std::string &path) {
  const size_t shorter = std::min(width, height);
  const size_t longer = std::max(width, height);
  // MindSpore divides in float32 and rounds down; so does this, in the same order.
  const float scaled = static_cast<float>(longer) / static_cast<float>(shorter) * static_cast<float>(preprocess.resize);
  if (!(std::floor(scaled) <= static_cast<float>(kMaxResizedSide))) {
    throw ImageError(path + ": an image of " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels is too elongated");
  }
  const auto resized_shorter = static_cast<int32_t>(preprocess.resize);
  const auto resized_longer = static_cast<int32_t>(scaled);
  ImageRequest request{};
  request.reduce = 1;
  request.width = static_cast<int32_t>(width);
  request.height = static_cast<int32_t>(height);
  request.new_width = height > width ? resized_shorter : resized_longer;
  request.new_height = height > width ? resized_longer : resized_shorter;
  request.side = static_cast<int32_t>(preprocess.image_size);
  request.window_left = (request.new_width - request.side) / 2;
  request.window_top = (request.new_height - request.side) / 2;
  request.filter = preprocess.interpolation == Interpolation::kBicubic ? kImageBicubic : kImageBilinear;
  return request;
}

Planes make_planes(const Preprocess &preprocess) { return Planes(preprocess.image_size * preprocess.image_size * 3); }

// Nothing, unless the file is an undamaged everyday JPEG.
std::optional<Planes> load_everyday_jpeg(const uint8_t *data, size_t size, const Preprocess &preprocess,
                                         const std::string &path) {
  int32_t found[2] = {};
  if (jpeg_size(data, size, found) != kImageDone) return std::nullopt;
  const auto width = static_cast<size_t>(found[0]);
  const auto height = static_cast<size_t>(found[1]);
  check_image_size(width, height, path);
  const ImageRequest request = plan_request(width, height, preprocess, path);
  Planes planes = make_planes(preprocess);
  if (jpeg_resized(data, size, &request, planes.data()) != kImageDone) return std::nullopt;
  return planes;
}

}  // namespace

Planes load_planes(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path) {
  auto planes = load_everyday_jpeg(data, size, preprocess, path);
  return planes ? std::move(*planes) : load_planes_of_any(data, size, preprocess, path);
}

Planes load_planes_of_any(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path) {
  const Image image = decode_image(data, size, path);
  const ImageRequest request = plan_request(image.width, image.height, preprocess, path);
  Planes planes = make_planes(preprocess);
  if (pixels_resized(image.pixels.data(), image.width * 3, &request, planes.data()) != kImageDone) {
    throw std::bad_alloc();
  }
  return planes;
}

void normalise(const Planes &planes, const Preprocess &preprocess, bool interleaved, float *target) {
  const size_t plane = planes.size() / 3;
  const size_t step = interleaved ? 3 : 1;
  for (size_t channel = 0; channel < 3; ++channel) {
    // 256 values are divided instead of every pixel: the same division of the same numbers.
    float table[256];
    for (int value = 0; value < 256; ++value) {
      table[value] = (static_cast<float>(value) - preprocess.mean[channel]) / preprocess.std[channel];
    }
    const uint8_t *pixels = planes.data() + channel * plane;
    float *values = target + channel * (interleaved ? 1 : plane);
    for (size_t i = 0; i < plane; ++i) values[step * i] = table[pixels[i]];
  }
}

void interleave(const Planes &planes, uint8_t *target) {
  const size_t plane = planes.size() / 3;
  for (size_t i = 0; i < plane; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) target[3 * i + channel] = planes[channel * plane + i];
  }
}

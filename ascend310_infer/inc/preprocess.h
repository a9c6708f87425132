// What happens to an image before the network; the rules are those of src/preprocess.py, to the byte.
#ifndef ASCEND310_INFER_PREPROCESS_H
#define ASCEND310_INFER_PREPROCESS_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "image.h"

// The longer side after resizing: a sliver of 1 x 60000 pixels would become a picture of gigabytes.
constexpr size_t kMaxResizedSide = 1 << 15;

enum class Interpolation { kBicubic, kBilinear };

struct Preprocess {
  size_t image_size = 224;  // pixels, side of the square that the network sees
  size_t resize = 256;      // pixels, the shorter side after resizing, at least image_size
  Interpolation interpolation = Interpolation::kBicubic;
  std::array<float, 3> mean{127.5F, 127.5F, 127.5F};  // per channel, in units of 0 to 255
  std::array<float, 3> std{127.5F, 127.5F, 127.5F};   // likewise, above 0
};

// The part of an image that is wanted after resizing, in pixels of the resized image.
struct CropBox {
  size_t left = 0;
  size_t top = 0;
  size_t width = 0;
  size_t height = 0;
};

// Pillow's Image.resize((width, height)) followed by crop(box): antialiased, 8 bits, fixed point, first along the rows,
// then along the columns. Only what the box needs is computed.
Image resize_and_crop(const Image &image, size_t width, size_t height, const CropBox &box, Interpolation interpolation);

// The shorter side to `resize`, the centre cut out: image_size x image_size pixels. Throws ImageError, its sentence
// beginning with `path`, if the image is too elongated.
Image crop_for_evaluation(const Image &image, const Preprocess &preprocess, const std::string &path);

// (pixel - mean) / std, channels first, to `target` with room for 3 * image_size * image_size values.
void normalise(const Image &crop, const Preprocess &preprocess, float *target);

#endif

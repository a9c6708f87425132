// What happens to an image before the network; the rules are those of src/images/preprocess.py, to the byte.
#ifndef ASCEND310_INFER_PREPROCESS_H
#define ASCEND310_INFER_PREPROCESS_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Limit of the longer side after resizing: an image of 1 x 60000 pixels would become one of gigabytes.
constexpr size_t kMaxResizedSide = 1 << 15;

enum class Interpolation { kBicubic, kBilinear };

struct Preprocess {
  size_t image_size = 224;  // pixels, side of the square that the network sees
  size_t resize = 256;      // pixels, the shorter side after resizing, at least image_size
  Interpolation interpolation = Interpolation::kBicubic;
  std::array<float, 3> mean{127.5F, 127.5F, 127.5F};  // per channel, in units of 0 to 255
  std::array<float, 3> std{127.5F, 127.5F, 127.5F};   // likewise, above 0
};

// What the network sees of an image: 3 planes (red, green, blue) of image_size x image_size bytes.
using Planes = std::vector<uint8_t>;

// Decodes an image, resizes it and cuts out the centre, byte for byte as Pillow does. Throws ImageError, its sentence
// beginning with `path`, if decode_image cannot read it or it is too elongated; std::bad_alloc without enough memory.
Planes load_planes(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path);

// The same for every image by decode_image; load_planes decodes most JPEGs faster.
Planes load_planes_of_any(const uint8_t *data, size_t size, const Preprocess &preprocess, const std::string &path);

// (pixel - mean) / std, channels first or, interleaved, last, to `target` with room for as many values.
void normalise(const Planes &planes, const Preprocess &preprocess, bool interleaved, float *target);

// Channels last, to `target` with room for as many bytes.
void interleave(const Planes &planes, uint8_t *target);

#endif

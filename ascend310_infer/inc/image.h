// Decoding of image files to RGB, byte for byte as Pillow's convert("RGB") gives it.
#ifndef ASCEND310_INFER_IMAGE_H
#define ASCEND310_INFER_IMAGE_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// An image whose header says it has more pixels is refused as a decompression bomb before anything is decoded.
constexpr uint64_t kMaxPixels = 100'000'000;

// Rows of interleaved R, G, B; no padding.
struct Image {
  size_t width = 0;
  size_t height = 0;
  std::vector<uint8_t> pixels;
};

// Decodes JPEG (grey, RGB, CMYK; baseline and progressive) and PNG (all colour types and depths), whatever the file is
// called. Throws ImageError, its sentence beginning with `path`, if it is empty, of another format, damaged, truncated
// or too large.
Image decode_image(const uint8_t *data, size_t size, const std::string &path);

// The decoders behind decode_image, each in its own file.
Image decode_jpeg(const uint8_t *data, size_t size, const std::string &path);
Image decode_png(const uint8_t *data, size_t size, const std::string &path);

// Throws ImageError if the size is zero or beyond kMaxPixels.
void check_image_size(uint64_t width, uint64_t height, const std::string &path);

#endif

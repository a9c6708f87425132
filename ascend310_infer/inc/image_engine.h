// src/images/engine.c, shared with the Python programs: decodes everyday JPEGs and resizes all images.
#ifndef ASCEND310_INFER_IMAGE_ENGINE_H
#define ASCEND310_INFER_IMAGE_ENGINE_H

#include <cstddef>
#include <cstdint>

extern "C" {

// Decode an image at 1/reduce of its size, resize its box `left, top, width, height` to new_width x new_height, and cut
// out the square of `side` pixels whose upper left corner is window_left, window_top; mirror it if `flip` is 1.
struct ImageRequest {
  int32_t reduce, left, top, width, height, new_width, new_height, window_left, window_top, side, filter, flip;
};

constexpr int32_t kImageDone = 0;
constexpr int32_t kImageBilinear = 0;
constexpr int32_t kImageBicubic = 1;

// Width and height of an undamaged everyday JPEG (baseline, grey or YCbCr, one scan) to size[0] and size[1]; another
// result than kImageDone for all other files.
int32_t jpeg_size(const uint8_t *data, size_t length, int32_t *size);

// The requested square of such a JPEG as three planes of side x side bytes; another result than kImageDone if the JPEG
// turns out to be damaged.
int32_t jpeg_resized(const uint8_t *data, size_t length, const ImageRequest *request, uint8_t *out);

// The same of decoded rows of R, G, B, `stride` bytes apart; another result than kImageDone if memory is short.
int32_t pixels_resized(const uint8_t *pixels, size_t stride, const ImageRequest *request, uint8_t *out);
}

#endif

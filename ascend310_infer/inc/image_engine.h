// The repository's src/images/engine.c, which the Python programs use as well: everyday JPEGs in half the time.
#ifndef ASCEND310_INFER_IMAGE_ENGINE_H
#define ASCEND310_INFER_IMAGE_ENGINE_H

#include <cstddef>
#include <cstdint>

extern "C" {

// What is wanted of an image: the box `left, top, width, height` of the image decoded at 1/reduce, resized to new_width x
// new_height, of which the square of `side` pixels from window_left, window_top on, perhaps mirrored.
struct ImageRequest {
  int32_t reduce, left, top, width, height, new_width, new_height, window_left, window_top, side, filter, flip;
};

constexpr int32_t kImageDone = 0;
constexpr int32_t kImageBilinear = 0;
constexpr int32_t kImageBicubic = 1;

// Width and height of an undamaged JPEG of the usual kind to size[0] and size[1]; another result than kImageDone for all
// other files.
int32_t jpeg_size(const uint8_t *data, size_t length, int32_t *size);

// The part of such a JPEG as three planes of side x side bytes; another result than kImageDone if it is damaged after all.
int32_t jpeg_resized(const uint8_t *data, size_t length, const ImageRequest *request, uint8_t *out);
}

#endif

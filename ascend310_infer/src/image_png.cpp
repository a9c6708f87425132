// PNG by libpng. Only raw samples are taken from it; colours are made here, by Pillow's rules.

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "errors.h"
#include "image.h"

namespace {

struct Reader {
  const uint8_t *data;
  size_t size;
  std::jmp_buf leave;
  char message[200];
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto *reader = static_cast<Reader *>(png_get_error_ptr(png));
  std::snprintf(reader->message, sizeof(reader->message), "%s", message);
  std::longjmp(reader->leave, 1);
}

void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep target, size_t count) {
  auto *reader = static_cast<Reader *>(png_get_io_ptr(png));
  if (count > reader->size) png_error(png, "the image file is truncated");
  std::memcpy(target, reader->data, count);
  reader->data += count;
  reader->size -= count;
}

struct Samples {
  int colour_type = 0;
  int depth = 0;
  uint8_t palette[256][3] = {};  // indices beyond the file's palette are black
};

size_t count_channels(int colour_type) {
  switch (colour_type) {
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      return 2;
    case PNG_COLOR_TYPE_RGB:
      return 3;
    case PNG_COLOR_TYPE_RGB_ALPHA:
      return 4;
    default:
      return 1;
  }
}

// One row of raw samples to RGB. Alpha is dropped. Of 16 bits the high byte counts, except for grey without alpha,
// which Pillow reads as whole numbers and clips at 255.
void convert_row(const uint8_t *row, size_t width, const Samples &samples, uint8_t *rgb) {
  const bool wide = samples.depth == 16;
  const size_t step = count_channels(samples.colour_type) * (wide ? 2 : 1);
  switch (samples.colour_type) {
    case PNG_COLOR_TYPE_PALETTE:
      for (size_t x = 0; x < width; ++x) std::memcpy(rgb + 3 * x, samples.palette[row[x]], 3);
      break;
    case PNG_COLOR_TYPE_GRAY: {
      const int scale = samples.depth < 8 ? 255 / ((1 << samples.depth) - 1) : 1;
      for (size_t x = 0; x < width; ++x) {
        const int value = wide ? std::min(row[2 * x] * 256 + row[2 * x + 1], 255) : row[x] * scale;
        std::memset(rgb + 3 * x, value, 3);
      }
      break;
    }
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      for (size_t x = 0; x < width; ++x) std::memset(rgb + 3 * x, row[step * x], 3);
      break;
    default:
      for (size_t x = 0; x < width; ++x) {
        for (size_t channel = 0; channel < 3; ++channel) rgb[3 * x + channel] = row[step * x + channel * (wide ? 2 : 1)];
      }
  }
}

}  // namespace

// Everything with a destructor is made before setjmp: longjmp runs no destructors.
Image decode_png(const uint8_t *data, size_t size, const std::string &path) {
  Image image;
  Samples samples;
  std::vector<uint8_t> raw;
  std::vector<uint8_t *> rows;
  Reader reader{data, size, {}, {}};
  png_structp png = nullptr;
  png_infop info = nullptr;
  png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error, on_warning);
  if (png != nullptr) info = png_create_info_struct(png);
  if (info == nullptr) {
    png_destroy_read_struct(&png, nullptr, nullptr);
    throw ImageError(path + ": there is not enough memory to decode it");
  }
  if (setjmp(reader.leave) != 0) {
    png_destroy_read_struct(&png, &info, nullptr);
    throw ImageError(path + ": it is not an image that can be decoded (PNG: " + reader.message + ")");
  }
  png_set_read_fn(png, &reader, read_bytes);
  png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_image_size is the limit
  png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_read_info(png, info);
  const size_t width = png_get_image_width(png, info);
  const size_t height = png_get_image_height(png, info);
  try {
    check_image_size(width, height, path);  // before libpng makes room for a row
    image.width = width;
    image.height = height;
    image.pixels.resize(width * height * 3);
  } catch (...) {
    png_destroy_read_struct(&png, &info, nullptr);
    throw;
  }
  samples.colour_type = png_get_color_type(png, info);
  samples.depth = png_get_bit_depth(png, info);
  png_colorp palette = nullptr;
  int palette_size = 0;
  if (samples.colour_type == PNG_COLOR_TYPE_PALETTE && png_get_PLTE(png, info, &palette, &palette_size) != 0) {
    for (int i = 0; i < palette_size && i < 256; ++i) {
      samples.palette[i][0] = palette[i].red;
      samples.palette[i][1] = palette[i].green;
      samples.palette[i][2] = palette[i].blue;
    }
  }
  if (samples.depth < 8) png_set_packing(png);
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const size_t row_bytes = png_get_rowbytes(png, info);
  try {
    raw.resize(row_bytes * (passes > 1 ? height : 1));
    if (passes > 1) {
      rows.resize(height);
      for (size_t y = 0; y < height; ++y) rows[y] = raw.data() + y * row_bytes;
    }
  } catch (...) {
    png_destroy_read_struct(&png, &info, nullptr);
    throw;
  }
  if (passes > 1) {
    png_read_image(png, rows.data());
    for (size_t y = 0; y < height; ++y) convert_row(rows[y], width, samples, image.pixels.data() + y * width * 3);
  } else {
    for (size_t y = 0; y < height; ++y) {
      png_read_row(png, raw.data(), nullptr);
      convert_row(raw.data(), width, samples, image.pixels.data() + y * width * 3);
    }
  }
  // All rows are there: what is wrong after them (a missing end) is nobody's concern.
  png_destroy_read_struct(&png, &info, nullptr);
  return image;
}

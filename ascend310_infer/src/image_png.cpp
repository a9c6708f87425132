// PNG by libpng, which gives raw samples; they become RGB here, by Pillow's rules.

#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "errors.h"
#include "image.h"

namespace {

// The state of decoding one image. It belongs to the caller of the functions that libpng's errors leave by longjmp, so
// that its destructor runs and its values are what they were.
struct Decoding {
  Decoding(const uint8_t *bytes, size_t count) : data(bytes), size(count) {}
  Decoding(const Decoding &) = delete;
  Decoding &operator=(const Decoding &) = delete;
  ~Decoding() { png_destroy_read_struct(&png, &info, nullptr); }

  const uint8_t *data;  // what is not read yet
  size_t size;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::jmp_buf leave{};
  char message[200] = "";

  size_t width = 0;
  size_t height = 0;
  int colour_type = 0;
  int depth = 0;
  int passes = 1;
  uint8_t palette[256][3] = {};  // indices beyond the file's palette are black
  size_t row_bytes = 0;
  std::vector<uint8_t> raw;
  std::vector<uint8_t *> rows;
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto *decoding = static_cast<Decoding *>(png_get_error_ptr(png));
  std::snprintf(decoding->message, sizeof(decoding->message), "%s", message);
  std::longjmp(decoding->leave, 1);
}

void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep target, size_t count) {
  auto *decoding = static_cast<Decoding *>(png_get_io_ptr(png));
  if (count > decoding->size) png_error(png, "the image file is truncated");
  std::memcpy(target, decoding->data, count);
  decoding->data += count;
  decoding->size -= count;
}

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

// One row of raw samples to RGB. Alpha is dropped, and of 16 bits the upper 8 are kept.
void convert_row(const uint8_t *row, size_t width, const Decoding &decoding, uint8_t *rgb) {
  const bool wide = decoding.depth == 16;
  const size_t step = count_channels(decoding.colour_type) * (wide ? 2 : 1);
  switch (decoding.colour_type) {
    case PNG_COLOR_TYPE_PALETTE:
      for (size_t x = 0; x < width; ++x) std::memcpy(rgb + 3 * x, decoding.palette[row[x]], 3);
      break;
    case PNG_COLOR_TYPE_GRAY: {
      const int scale = decoding.depth < 8 ? 255 / ((1 << decoding.depth) - 1) : 1;
      for (size_t x = 0; x < width; ++x) {
        std::memset(rgb + 3 * x, row[step * x] * scale, 3);
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

// Reads the header. False, with a message, for a file that is damaged.
bool read_header(Decoding &decoding) {
  if (setjmp(decoding.leave) != 0) return false;
  decoding.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoding, on_error, on_warning);
  if (decoding.png != nullptr) decoding.info = png_create_info_struct(decoding.png);
  if (decoding.info == nullptr) {
    std::snprintf(decoding.message, sizeof(decoding.message), "there is not enough memory");
    return false;
  }
  png_set_read_fn(decoding.png, &decoding, read_bytes);
  png_set_user_limits(decoding.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // check_image_size is the limit
  png_set_crc_action(decoding.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_read_info(decoding.png, decoding.info);
  decoding.width = png_get_image_width(decoding.png, decoding.info);
  decoding.height = png_get_image_height(decoding.png, decoding.info);
  decoding.colour_type = png_get_color_type(decoding.png, decoding.info);
  decoding.depth = png_get_bit_depth(decoding.png, decoding.info);
  png_colorp palette = nullptr;
  int palette_size = 0;
  if (decoding.colour_type == PNG_COLOR_TYPE_PALETTE) {
    png_get_PLTE(decoding.png, decoding.info, &palette, &palette_size);
  }
  for (int i = 0; i < palette_size && i < 256; ++i) {
    decoding.palette[i][0] = palette[i].red;
    decoding.palette[i][1] = palette[i].green;
    decoding.palette[i][2] = palette[i].blue;
  }
  return true;
}

// Prepares for reading rows; sets `row_bytes` and `passes`.
bool prepare_rows(Decoding &decoding) {
  if (setjmp(decoding.leave) != 0) return false;
  if (decoding.depth < 8) png_set_packing(decoding.png);
  decoding.passes = png_set_interlace_handling(decoding.png);
  png_read_update_info(decoding.png, decoding.info);
  decoding.row_bytes = png_get_rowbytes(decoding.png, decoding.info);
  return true;
}

// Reads all rows into `raw`. Ignores what is wrong after the last pixel, such as a checksum or a missing end.
bool read_rows(Decoding &decoding) {
  if (setjmp(decoding.leave) != 0) {
    return decoding.passes > 1 ? png_get_current_pass_number(decoding.png) == decoding.passes
                               : png_get_current_row_number(decoding.png) == decoding.height;
  }
  png_read_image(decoding.png, decoding.rows.data());
  return true;
}

}  // namespace

Image decode_png(const uint8_t *data, size_t size, const std::string &path) {
  Decoding decoding(data, size);
  const auto refuse = [&] {
    return ImageError(path + ": it is not an image that can be decoded (PNG: " + decoding.message + ")");
  };
  if (!read_header(decoding)) throw refuse();
  check_image_size(decoding.width, decoding.height, path);  // before libpng makes room for a row
  if (!prepare_rows(decoding)) throw refuse();
  decoding.raw.resize(decoding.row_bytes * decoding.height);
  for (size_t y = 0; y < decoding.height; ++y) decoding.rows.push_back(decoding.raw.data() + y * decoding.row_bytes);
  if (!read_rows(decoding)) throw refuse();

  Image image{decoding.width, decoding.height, std::vector<uint8_t>(decoding.width * decoding.height * 3)};
  for (size_t y = 0; y < image.height; ++y) {
    convert_row(decoding.rows[y], image.width, decoding, image.pixels.data() + y * image.width * 3);
  }
  return image;
}

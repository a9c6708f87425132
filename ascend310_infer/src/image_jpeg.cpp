// JPEG by libjpeg-turbo with the settings that Pillow uses: its own defaults (accurate integer DCT, smooth upsampling).

#include <csetjmp>
#include <cstdio>
#include <string>

// jpeglib.h needs size_t and FILE from the headers above.
#include <jpeglib.h>

#include "errors.h"
#include "image.h"

namespace {

// A small progressive file can ask for any number of passes over a large image; encoders make about ten.
constexpr int kMaxScans = 500;

struct ErrorManager {
  jpeg_error_mgr base;  // first, so that libjpeg's pointer to it is a pointer to this
  std::jmp_buf leave;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr decoder) {
  auto *errors = reinterpret_cast<ErrorManager *>(decoder->err);
  decoder->err->format_message(decoder, errors->message);
  std::longjmp(errors->leave, 1);
}

void on_message(j_common_ptr) {}

[[noreturn]] void leave_with(j_decompress_ptr decoder, const char *message) {
  auto *errors = reinterpret_cast<ErrorManager *>(decoder->err);
  std::snprintf(errors->message, sizeof(errors->message), "%s", message);
  std::longjmp(errors->leave, 1);
}

void limit_scans(j_common_ptr decoder) {
  auto *decompress = reinterpret_cast<j_decompress_ptr>(decoder);
  if (decompress->input_scan_number > kMaxScans) leave_with(decompress, "too many scans");
}

// The source: all bytes at once, and none after them. libjpeg's own memory source would make up an end of image and
// give a grey rest of the picture; Pillow calls that truncated, and so does this.
void start_source(j_decompress_ptr) {}
boolean refuse_more(j_decompress_ptr) { return FALSE; }
void end_source(j_decompress_ptr) {}

void skip_input(j_decompress_ptr decoder, long count) {
  if (count <= 0) return;
  const size_t available = decoder->src->bytes_in_buffer;
  const size_t skipped = static_cast<size_t>(count) < available ? static_cast<size_t>(count) : available;
  if (skipped < static_cast<size_t>(count)) leave_with(decoder, "the image file is truncated");
  decoder->src->next_input_byte += skipped;
  decoder->src->bytes_in_buffer -= skipped;
}

// Converts a row of inverted CMYK, as every CMYK JPEG is taken to be, with Pillow's arithmetic.
void convert_cmyk_row(const uint8_t *row, size_t width, uint8_t *rgb) {
  for (size_t x = 0; x < width; ++x) {
    const int not_black = row[4 * x + 3];
    for (size_t channel = 0; channel < 3; ++channel) {
      const int product = (255 - row[4 * x + channel]) * not_black + 128;
      rgb[3 * x + channel] = static_cast<uint8_t>(not_black - ((product >> 8) + product) / 256);
    }
  }
}

}  // namespace

// Everything with a destructor is made before setjmp: longjmp runs no destructors.
Image decode_jpeg(const uint8_t *data, size_t size, const std::string &path) {
  Image image;
  std::vector<uint8_t> row;
  std::string failure;
  jpeg_decompress_struct decoder{};
  ErrorManager errors{};
  jpeg_progress_mgr progress{};
  jpeg_source_mgr source{};
  decoder.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = on_error;
  errors.base.output_message = on_message;
  progress.progress_monitor = limit_scans;
  source.init_source = start_source;
  source.fill_input_buffer = refuse_more;
  source.skip_input_data = skip_input;
  source.resync_to_restart = jpeg_resync_to_restart;
  source.term_source = end_source;
  source.next_input_byte = data;
  source.bytes_in_buffer = size;

  if (setjmp(errors.leave) != 0) {
    jpeg_destroy_decompress(&decoder);
    throw ImageError(path + ": it is not an image that can be decoded (JPEG: " + errors.message + ")");
  }
  jpeg_create_decompress(&decoder);
  decoder.src = &source;
  decoder.progress = &progress;
  if (jpeg_read_header(&decoder, TRUE) == JPEG_SUSPENDED) leave_with(&decoder, "the image file is truncated");
  if (decoder.data_precision != 8) leave_with(&decoder, "only samples of 8 bits are read");
  const size_t width = decoder.image_width;
  const size_t height = decoder.image_height;
  try {
    check_image_size(width, height, path);
    image.width = width;
    image.height = height;
    image.pixels.resize(width * height * 3);
    row.resize(width * 4);
  } catch (...) {
    jpeg_destroy_decompress(&decoder);
    throw;
  }
  switch (decoder.num_components) {
    case 1:
      decoder.out_color_space = JCS_GRAYSCALE;
      break;
    case 3:
      decoder.out_color_space = JCS_RGB;
      break;
    case 4:
      decoder.out_color_space = JCS_CMYK;
      break;
    default:
      leave_with(&decoder, "images of 2 components are not read");
  }
  if (!jpeg_start_decompress(&decoder)) leave_with(&decoder, "the image file is truncated");
  while (decoder.output_scanline < height) {
    uint8_t *rgb = image.pixels.data() + decoder.output_scanline * width * 3;
    JSAMPROW target = decoder.num_components == 3 ? rgb : row.data();
    if (jpeg_read_scanlines(&decoder, &target, 1) != 1) leave_with(&decoder, "the image file is truncated");
    if (decoder.num_components == 4) {
      convert_cmyk_row(row.data(), width, rgb);
    } else if (decoder.num_components == 1) {
      for (size_t x = 0; x < width; ++x) rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = row[x];
    }
  }
  // All rows are there: what is wrong after them (a missing end mark) is nobody's concern.
  jpeg_destroy_decompress(&decoder);
  return image;
}

// JPEG by libjpeg-turbo with the settings that Pillow uses: its own defaults (accurate integer DCT, smooth upsampling).

#include <csetjmp>
#include <cstdio>
#include <string>
#include <utility>

// jpeglib.h needs size_t and FILE from the headers above.
#include <jpeglib.h>

#include "errors.h"
#include "image.h"

namespace {

// A small progressive file can demand any number of passes over a large image; encoders make about ten.
constexpr int kMaxScans = 500;

// The state of decoding one image. It belongs to the caller of the functions that libjpeg's errors leave by longjmp, so
// that its destructor runs and its values are what they were.
struct Decoding {
  Decoding() { decoder.err = jpeg_std_error(&errors); }
  Decoding(const Decoding &) = delete;
  Decoding &operator=(const Decoding &) = delete;
  ~Decoding() { jpeg_destroy_decompress(&decoder); }

  jpeg_decompress_struct decoder{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  jpeg_source_mgr source{};
  std::jmp_buf leave{};
  char message[JMSG_LENGTH_MAX] = "";
  Image image;
  std::vector<uint8_t> row;
};

Decoding &decoding_of(j_common_ptr decoder) { return *static_cast<Decoding *>(decoder->client_data); }

[[noreturn]] void on_error(j_common_ptr decoder) {
  Decoding &decoding = decoding_of(decoder);
  decoder->err->format_message(decoder, decoding.message);
  std::longjmp(decoding.leave, 1);
}

void on_message(j_common_ptr) {}

[[noreturn]] void leave_with(j_common_ptr decoder, const char *message) {
  Decoding &decoding = decoding_of(decoder);
  std::snprintf(decoding.message, sizeof(decoding.message), "%s", message);
  std::longjmp(decoding.leave, 1);
}

[[noreturn]] void leave_truncated(j_decompress_ptr decoder) {
  leave_with(reinterpret_cast<j_common_ptr>(decoder), "the image file is truncated");
}

void limit_scans(j_common_ptr decoder) {
  if (reinterpret_cast<j_decompress_ptr>(decoder)->input_scan_number > kMaxScans) leave_with(decoder, "too many scans");
}

// The source gives all bytes at once, and none after them. libjpeg's own memory source would invent an end marker and
// leave the rest of a truncated picture grey; Pillow refuses such a file, and so does this decoder.
void start_source(j_decompress_ptr) {}
boolean refuse_more(j_decompress_ptr) { return FALSE; }
void end_source(j_decompress_ptr) {}

void skip_input(j_decompress_ptr decoder, long count) {
  if (count <= 0) return;
  if (static_cast<size_t>(count) > decoder->src->bytes_in_buffer) leave_truncated(decoder);
  decoder->src->next_input_byte += count;
  decoder->src->bytes_in_buffer -= static_cast<size_t>(count);
}

// Converts a row of CMYK with Pillow's arithmetic. Like Pillow, takes every CMYK JPEG to be inverted.
void convert_cmyk_row(const uint8_t *row, size_t width, uint8_t *rgb) {
  for (size_t x = 0; x < width; ++x) {
    const int not_black = row[4 * x + 3];
    for (size_t channel = 0; channel < 3; ++channel) {
      const int product = (255 - row[4 * x + channel]) * not_black + 128;
      rgb[3 * x + channel] = static_cast<uint8_t>(not_black - ((product >> 8) + product) / 256);
    }
  }
}

// Reads the header. False, with a message, for a file that is damaged or of a kind that is not read.
bool read_header(Decoding &decoding) {
  jpeg_decompress_struct &decoder = decoding.decoder;
  if (setjmp(decoding.leave) != 0) return false;
  decoder.client_data = &decoding;
  decoding.errors.error_exit = on_error;
  decoding.errors.output_message = on_message;
  jpeg_create_decompress(&decoder);
  decoder.src = &decoding.source;
  decoding.progress.progress_monitor = limit_scans;
  decoder.progress = &decoding.progress;
  if (jpeg_read_header(&decoder, TRUE) == JPEG_SUSPENDED) leave_truncated(&decoder);
  const auto common = reinterpret_cast<j_common_ptr>(&decoder);
  if (decoder.data_precision != 8) leave_with(common, "only samples of 8 bits are read");
  switch (decoder.num_components) {
    case 1:
      decoder.out_color_space = JCS_GRAYSCALE;
      return true;
    case 3:
      decoder.out_color_space = JCS_RGB;
      return true;
    case 4:
      decoder.out_color_space = JCS_CMYK;
      return true;
    default:
      leave_with(common, "images of 2 components are not read");
  }
}

// Reads all rows. Ignores what is wrong after the last one, such as a missing end marker.
bool read_rows(Decoding &decoding) {
  jpeg_decompress_struct &decoder = decoding.decoder;
  if (setjmp(decoding.leave) != 0) return false;
  if (!jpeg_start_decompress(&decoder)) leave_truncated(&decoder);
  const size_t width = decoding.image.width;
  while (decoder.output_scanline < decoder.output_height) {
    uint8_t *rgb = decoding.image.pixels.data() + decoder.output_scanline * width * 3;
    uint8_t *row = decoding.row.data();
    JSAMPROW target = decoder.num_components == 3 ? rgb : row;
    if (jpeg_read_scanlines(&decoder, &target, 1) != 1) leave_truncated(&decoder);
    if (decoder.num_components == 4) {
      convert_cmyk_row(row, width, rgb);
    } else if (decoder.num_components == 1) {
      for (size_t x = 0; x < width; ++x) rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = row[x];
    }
  }
  return true;
}

}  // namespace

Image decode_jpeg(const uint8_t *data, size_t size, const std::string &path) {
  Decoding decoding;
  decoding.source.init_source = start_source;
  decoding.source.fill_input_buffer = refuse_more;
  decoding.source.skip_input_data = skip_input;
  decoding.source.resync_to_restart = jpeg_resync_to_restart;
  decoding.source.term_source = end_source;
  decoding.source.next_input_byte = data;
  decoding.source.bytes_in_buffer = size;
  const auto refuse = [&] {
    return ImageError(path + ": it is not an image that can be decoded (JPEG: " + decoding.message + ")");
  };
  if (!read_header(decoding)) throw refuse();
  Image &image = decoding.image;
  image.width = decoding.decoder.image_width;
  image.height = decoding.decoder.image_height;
  check_image_size(image.width, image.height, path);
  image.pixels.resize(image.width * image.height * 3);
  decoding.row.resize(image.width * 4);
  if (!read_rows(decoding)) throw refuse();
  return std::move(image);
}

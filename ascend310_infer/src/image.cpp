#include "image.h"

#include <cstring>
#include <string_view>

#include "errors.h"

using namespace std::string_view_literals;

namespace {

bool begins_with(const uint8_t *data, size_t size, std::string_view magic) {
  return size >= magic.size() && std::memcmp(data, magic.data(), magic.size()) == 0;
}

// The name of a format that a labelled folder may hold and that is not decoded here, or nullptr.
const char *name_other_format(const uint8_t *data, size_t size) {
  if (begins_with(data, size, "GIF8"sv)) return "GIF";
  if (begins_with(data, size, "BM"sv)) return "BMP";
  if (begins_with(data, size, "RIFF"sv) && size >= 12 && std::memcmp(data + 8, "WEBP", 4) == 0) return "WebP";
  if (begins_with(data, size, "II*\0"sv) || begins_with(data, size, "MM\0*"sv)) return "TIFF";
  if (size >= 2 && data[0] == 'P' && data[1] >= '1' && data[1] <= '7') return "PPM";
  return nullptr;
}

}  // namespace

Image decode_image(const uint8_t *data, size_t size, const std::string &path) {
  if (size == 0) throw ImageError(path + ": the image file is empty");
  if (begins_with(data, size, "\xff\xd8\xff"sv)) return decode_jpeg(data, size, path);
  if (begins_with(data, size, "\x89PNG\r\n\x1a\n"sv)) return decode_png(data, size, path);
  if (const char *name = name_other_format(data, size)) {
    throw ImageError(path + ": it is a " + name + " image; this program reads JPEG and PNG, convert it to one of them");
  }
  throw ImageError(path + ": it is not an image that can be decoded (neither JPEG nor PNG)");
}

void check_image_size(uint64_t width, uint64_t height, const std::string &path) {
  if (width == 0 || height == 0) throw ImageError(path + ": the image has no pixels");
  if (width > kMaxPixels || height > kMaxPixels || width * height > kMaxPixels) {
    throw ImageError(path + ": the image is refused, it has " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels; the limit is " + std::to_string(kMaxPixels));
  }
}

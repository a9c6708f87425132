// Ten bytes choose a part of an image, as training does, the others are the image: whatever part of a JPEG is decoded,
// at whatever size, memory stays intact; at the full size it is the part of the whole decoded image.

#include "errors.h"
#include "image.h"
#include "image_engine.h"

namespace {

constexpr size_t kChoices = 10;
constexpr int32_t kMaxSide = 48;

// A length of 1 to `size` by one byte, and where it begins by another.
void choose(int32_t size, uint8_t share, uint8_t place, int32_t &begin, int32_t &length) {
  length = 1 + (size - 1) * share / 255;
  begin = (size - length) * place / 255;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < kChoices) return 0;
  const uint8_t *choice = data;
  data += kChoices;
  size -= kChoices;
  int32_t found[2] = {};
  if (jpeg_size(data, size, found) != kImageDone || found[0] > 4096 || found[1] > 4096) return 0;
  ImageRequest request{};
  request.reduce = 1 << (choice[0] & 3);
  request.filter = choice[0] & 4 ? kImageBicubic : kImageBilinear;
  request.flip = choice[0] & 8 ? 1 : 0;
  choose((found[0] + request.reduce - 1) / request.reduce, choice[1], choice[2], request.left, request.width);
  choose((found[1] + request.reduce - 1) / request.reduce, choice[3], choice[4], request.top, request.height);
  request.side = 1 + choice[5] % kMaxSide;
  request.new_width = request.side + choice[6];
  request.new_height = request.side + choice[7];
  request.window_left = choice[6] * choice[8] / 255;
  request.window_top = choice[7] * choice[9] / 255;
  std::vector<uint8_t> planes(static_cast<size_t>(request.side) * request.side * 3);
  if (jpeg_resized(data, size, &request, planes.data()) != kImageDone || request.reduce != 1) return 0;
  try {
    const Image image = decode_image(data, size, "fuzz");
    std::vector<uint8_t> expected(planes.size());
    pixels_resized(image.pixels.data(), image.width * 3, &request, expected.data());
    if (planes != expected) __builtin_trap();
  } catch (const ImageError &) {
    __builtin_trap();  // the engine has taken what the decoder refuses
  }
  return 0;
}

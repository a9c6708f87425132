// Pillow's resampling for 8-bit images (its Resample.c): every output pixel is a weighted sum of input pixels, weights
// in fixed point with 22 fractional bits, and the result of the first pass is rounded to 8 bits before the second.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "preprocess.h"

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// The input pixels and weights of some consecutive output pixels.
struct Weights {
  size_t taps = 0;            // room for each output pixel in `fixed`
  std::vector<size_t> first;  // the first input pixel
  std::vector<size_t> count;  // how many input pixels
  std::vector<int32_t> fixed;
};

// Weights for the output pixels begin to begin + length of a line of `in_size` pixels resized to `out_size`.
Weights compute_weights(size_t in_size, size_t out_size, size_t begin, size_t length, Interpolation interpolation) {
  const bool cubic = interpolation == Interpolation::kBicubic;
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = (cubic ? 2.0 : 1.0) * filter_scale;
  const double inverse = 1.0 / filter_scale;
  Weights weights;
  weights.taps = static_cast<size_t>(std::ceil(support)) * 2 + 1;
  weights.first.resize(length);
  weights.count.resize(length);
  weights.fixed.resize(length * weights.taps);
  std::vector<double> exact(weights.taps);
  for (size_t i = 0; i < length; ++i) {
    const double center = (static_cast<double>(begin + i) + 0.5) * scale;
    // Truncation towards zero, then the bounds, as in the original.
    const auto low = static_cast<ptrdiff_t>(center - support + 0.5);
    const auto high = static_cast<ptrdiff_t>(center + support + 0.5);
    const auto first = static_cast<size_t>(std::max<ptrdiff_t>(low, 0));
    const size_t count = std::min(static_cast<size_t>(high), in_size) - first;
    double sum = 0.0;
    for (size_t k = 0; k < count; ++k) {
      const double x = (static_cast<double>(k + first) - center + 0.5) * inverse;
      exact[k] = cubic ? bicubic(x) : bilinear(x);
      sum += exact[k];
    }
    for (size_t k = 0; k < count; ++k) {
      if (sum != 0.0) exact[k] /= sum;
      const double rounding = exact[k] < 0 ? -0.5 : 0.5;
      weights.fixed[i * weights.taps + k] = static_cast<int32_t>(rounding + exact[k] * (1 << kPrecisionBits));
    }
    weights.first[i] = first;
    weights.count[i] = count;
  }
  return weights;
}

inline uint8_t clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255)); }

// On x86-64 the compiler also makes a version for AVX2 and the program takes it where the processor has it; the
// arithmetic is on whole numbers, so the bytes are the same. (ThreadSanitizer runs before the choice can be made.)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

// One row: `width` output pixels of 3 channels.
FOR_EVERY_PROCESSOR
void resize_row(const uint8_t *row, const Weights &weights, size_t width, uint8_t *out) {
  for (size_t x = 0; x < width; ++x) {
    const uint8_t *pixel = row + 3 * weights.first[x];
    const int32_t *weight = weights.fixed.data() + x * weights.taps;
    int32_t red = 1 << (kPrecisionBits - 1);
    int32_t green = red;
    int32_t blue = red;
    for (size_t k = 0; k < weights.count[x]; ++k) {
      red += pixel[3 * k] * weight[k];
      green += pixel[3 * k + 1] * weight[k];
      blue += pixel[3 * k + 2] * weight[k];
    }
    out[3 * x] = clip(red);
    out[3 * x + 1] = clip(green);
    out[3 * x + 2] = clip(blue);
  }
}

// One output row as the weighted sum of `count` input rows of `bytes` bytes, which lie one after the other.
FOR_EVERY_PROCESSOR
void mix_rows(const uint8_t *rows, size_t bytes, const int32_t *weight, size_t count, int32_t *sums, uint8_t *out) {
  for (size_t i = 0; i < bytes; ++i) sums[i] = 1 << (kPrecisionBits - 1);
  for (size_t k = 0; k < count; ++k) {
    const uint8_t *row = rows + k * bytes;
    const int32_t factor = weight[k];
    for (size_t i = 0; i < bytes; ++i) sums[i] += row[i] * factor;
  }
  for (size_t i = 0; i < bytes; ++i) out[i] = clip(sums[i]);
}

}  // namespace

Image resize_and_crop(const Image &image, size_t width, size_t height, const CropBox &box,
                      Interpolation interpolation) {
  const size_t bytes = box.width * 3;
  const bool resize_columns = height != image.height;
  const Weights down = resize_columns
                           ? compute_weights(image.height, height, box.top, box.height, interpolation)
                           : Weights{};
  // The input rows that the box's rows are made of.
  const size_t first_row = resize_columns ? down.first.front() : box.top;
  const size_t last_row = resize_columns ? down.first.back() + down.count.back() : box.top + box.height;

  std::vector<uint8_t> rows((last_row - first_row) * bytes);
  if (width != image.width) {
    const Weights across = compute_weights(image.width, width, box.left, box.width, interpolation);
    for (size_t y = first_row; y < last_row; ++y) {
      resize_row(image.pixels.data() + y * image.width * 3, across, box.width, rows.data() + (y - first_row) * bytes);
    }
  } else {
    for (size_t y = first_row; y < last_row; ++y) {
      std::memcpy(rows.data() + (y - first_row) * bytes, image.pixels.data() + (y * image.width + box.left) * 3, bytes);
    }
  }
  if (!resize_columns) return {box.width, box.height, std::move(rows)};

  Image result{box.width, box.height, std::vector<uint8_t>(box.height * bytes)};
  std::vector<int32_t> sums(bytes);
  for (size_t y = 0; y < box.height; ++y) {
    mix_rows(rows.data() + (down.first[y] - first_row) * bytes, bytes, down.fixed.data() + y * down.taps, down.count[y],
             sums.data(), result.pixels.data() + y * bytes);
  }
  return result;
}

// Resampling as in Pillow's Resample.c for 8-bit images: each output pixel is a weighted sum of input pixels, rows first,
// with weights in fixed point. Part of engine.c.
#ifndef IMAGES_RESAMPLE_H
#define IMAGES_RESAMPLE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { BILINEAR = 0, BICUBIC = 1 };

enum { PRECISION_BITS = 32 - 8 - 2, HALF = 1 << (PRECISION_BITS - 1) };

static double bicubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

static double bilinear(double x) {
  x = fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Which input pixels make each of some consecutive output pixels, and how much of each.
typedef struct {
  int32_t taps;    // room for each output pixel in `fixed`, an even number; what is not used is 0
  int32_t *first;  // the first input pixel
  int32_t *count;  // how many input pixels
  int32_t most;    // the largest of these
  int32_t *fixed;  // weights with 22 fractional bits
  double *exact;   // room for one output pixel's
} Weights;

static void free_weights(Weights *weights) {
  free(weights->first);
  free(weights->count);
  free(weights->fixed);
  free(weights->exact);
}

// Weights for the output pixels begin to begin + length of a line of in_size pixels resized to out_size.
static int compute_weights(Weights *weights, int32_t in_size, int32_t out_size, int32_t begin, int32_t length,
                           int32_t filter) {
  const double scale = (double)in_size / out_size;
  const double filter_scale = scale < 1.0 ? 1.0 : scale;
  const double support = (filter == BICUBIC ? 2.0 : 1.0) * filter_scale;
  const double inverse = 1.0 / filter_scale;
  weights->most = 0;
  weights->taps = ((int32_t)ceil(support) * 2 + 2) & ~1;
  weights->first = malloc(sizeof(int32_t) * (size_t)length);
  weights->count = malloc(sizeof(int32_t) * (size_t)length);
  weights->fixed = calloc((size_t)length * (size_t)weights->taps, sizeof(int32_t));
  weights->exact = malloc(sizeof(double) * (size_t)weights->taps);
  if (!weights->first || !weights->count || !weights->fixed || !weights->exact) return 0;
  for (int32_t i = 0; i < length; ++i) {
    const double center = (begin + i + 0.5) * scale;
    int32_t first = (int32_t)(center - support + 0.5);
    int32_t last = (int32_t)(center + support + 0.5);
    if (first < 0) first = 0;
    if (last > in_size) last = in_size;
    int32_t *fixed = weights->fixed + (size_t)i * (size_t)weights->taps;
    double sum = 0.0;
    for (int32_t k = 0; k < last - first; ++k) {
      const double x = (k + first - center + 0.5) * inverse;
      weights->exact[k] = filter == BICUBIC ? bicubic(x) : bilinear(x);
      sum += weights->exact[k];
    }
    for (int32_t k = 0; k < last - first; ++k) {
      if (sum != 0.0) weights->exact[k] /= sum;
      const double rounding = weights->exact[k] < 0 ? -0.5 : 0.5;
      fixed[k] = (int32_t)(rounding + weights->exact[k] * (1 << PRECISION_BITS));
    }
    weights->first[i] = first;
    weights->count[i] = last - first;
    if (weights->most < last - first) weights->most = last - first;
  }
  return 1;
}

// To a byte's range, in two steps: GCC 12 makes many instructions of one expression with both comparisons.
static inline int32_t clip(int32_t value) {
  if (value < 0) value = 0;
  if (value > 255) value = 255;
  return value;
}

// The weighted sum of `count` pixels of 4 bytes, two at a time: one pixel to `out`.
static inline void mix_pixels(const uint8_t *pixel, const int32_t *weight, int32_t count, uint8_t *out) {
  // The last loops by hand twice, since GCC does not vectorise them so.
#if defined(__AVX2__)
  const __m256i each_four_times = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  __m256i pair = _mm256_setzero_si256();
  for (int32_t k = 0; k < count; k += 2) {
    const __m256i values = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(pixel + 4 * k)));
    const __m256i two = _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(weight + k)));
    const __m256i factors = _mm256_permutevar8x32_epi32(two, each_four_times);
    pair = _mm256_add_epi32(pair, _mm256_mullo_epi32(values, factors));
  }
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
  sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), PRECISION_BITS);
  sum = _mm_packus_epi32(sum, sum);
  const int32_t mixed = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
  memcpy(out, &mixed, 4);
#elif defined(__aarch64__)
  int32x4_t even = vdupq_n_s32(HALF), odd = vdupq_n_s32(0);
  for (int32_t k = 0; k < count; k += 2) {
    const uint16x8_t values = vmovl_u8(vld1_u8(pixel + 4 * k));
    const int32x2_t factors = vld1_s32(weight + k);
    even = vmlaq_lane_s32(even, vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(values))), factors, 0);
    odd = vmlaq_lane_s32(odd, vreinterpretq_s32_u32(vmovl_high_u16(values)), factors, 1);
  }
  const uint16x4_t sum = vqmovun_s32(vshrq_n_s32(vaddq_s32(even, odd), PRECISION_BITS));
  const uint32_t mixed = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(sum, sum))), 0);
  memcpy(out, &mixed, 4);
#else
  int32_t sums[8] = {HALF, HALF, HALF, HALF, 0, 0, 0, 0};
  for (int32_t k = 0; k < count; k += 2) {
    for (int32_t i = 0; i < 8; ++i) sums[i] += pixel[4 * k + i] * weight[k + i / 4];
  }
  for (int32_t i = 0; i < 4; ++i) out[i] = (uint8_t)clip((sums[i] + sums[i + 4]) >> PRECISION_BITS);
#endif
}

static inline __attribute__((always_inline)) void resize_by(const uint8_t *row, int32_t shift, const Weights *across,
                                                            int32_t count, int32_t width, uint8_t *out) {
  for (int32_t x = 0; x < width; ++x) {
    const int32_t *weight = across->fixed + (size_t)x * (size_t)across->taps;
    mix_pixels(row + 4 * (size_t)(shift + across->first[x]), weight, count, out + 4 * (size_t)x);
  }
}

// One row of pixels of 4 bytes to `width` output pixels of 4 bytes. Each takes as many input pixels as any, with weights of
// 0 where it needs fewer, because a processor foresees the end of such loops: reads up to `taps` pixels behind the last
// that counts. `shift` is where the weights' first pixel lies in the row; below 0 where the row begins after it.
static void resize_row(const uint8_t *row, int32_t shift, const Weights *across, int32_t width, uint8_t *out) {
  if (across->most <= 2) return resize_by(row, shift, across, 2, width, out);
  if (across->most <= 4) return resize_by(row, shift, across, 4, width, out);
  resize_by(row, shift, across, across->most, width, out);
}

enum { PART = 16 };

// `pixels` pixels, at most PART, of one output row: the weighted sum of `count` rows, whose sums stay in the first cache.
static inline __attribute__((always_inline)) void mix_part(const uint8_t *rows, size_t stride, const int32_t *weight,
                                                           int32_t count, int32_t pixels, uint8_t *out) {
  int32_t sums[4 * PART];
  for (int32_t i = 0; i < 4 * pixels; ++i) sums[i] = HALF;
  for (int32_t k = 0; k < count; ++k) {
    const uint8_t *row = rows + (size_t)k * stride;
    for (int32_t i = 0; i < 4 * pixels; ++i) sums[i] += row[i] * weight[k];
  }
  for (int32_t i = 0; i < 4 * pixels; ++i) out[i] = (uint8_t)clip(sums[i] >> PRECISION_BITS);
}

// One output row as the weighted sum of `count` rows of `width` pixels of 4 bytes; to three planes, mirrored if `flip`.
// `mixed` has room for a row of such pixels.
static void mix_rows(const uint8_t *rows, size_t stride, const int32_t *weight, int32_t count, int32_t width,
                     int32_t flip, uint8_t *mixed, uint8_t *out, size_t plane) {
  int32_t x = 0;
  for (; x + PART <= width; x += PART) mix_part(rows + 4 * x, stride, weight, count, PART, mixed + 4 * x);
  mix_part(rows + 4 * x, stride, weight, count, width - x, mixed + 4 * x);
  for (int32_t channel = 0; channel < 3; ++channel) {
    uint8_t *target = out + (size_t)channel * plane;
    if (flip) {
      for (int32_t i = 0; i < width; ++i) target[width - 1 - i] = mixed[4 * i + channel];
    } else {
      for (int32_t i = 0; i < width; ++i) target[i] = mixed[4 * i + channel];
    }
  }
}

#endif

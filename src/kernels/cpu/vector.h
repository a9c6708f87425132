// Vectors of floats as wide as the machine's registers, in the compiler's own vector types: one source for AVX-512, AVX2,
// SSE2 and NEON. The build sets VECTOR_BYTES together with the flags of the instruction set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif

using Index = std::ptrdiff_t;

// Channels of a tensor between the layers are padded with zeros to a multiple of this, so that no loop has a tail.
constexpr Index kChannelBlock = 16;
constexpr Index kLanes = VECTOR_BYTES / sizeof(float);

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef std::int32_t IntVector __attribute__((vector_size(VECTOR_BYTES)));
typedef float UnalignedVector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

inline Index padded(Index channels) { return (channels + kChannelBlock - 1) / kChannelBlock * kChannelBlock; }

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline Vector broadcast(float value) { return value - Vector{}; }

inline Vector square_root(Vector x) {
  for (Index lane = 0; lane < kLanes; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}

// x within bounds; what is not a number stays so. Compilers make two instructions of each comparison where one does it.
inline Vector between(Vector x, float least, float most) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  // With a mask, because GCC warns of its own header without one.
  return _mm512_maskz_min_ps(0xFFFF, broadcast(most), _mm512_maskz_max_ps(0xFFFF, broadcast(least), x));
#elif defined(__AVX__) && VECTOR_BYTES == 32
  return _mm256_min_ps(broadcast(most), _mm256_max_ps(broadcast(least), x));
#else
  x = x < broadcast(least) ? broadcast(least) : x;
  return x > broadcast(most) ? broadcast(most) : x;
#endif
}

// e^x with a relative error below 2e-7 for |x| <= 87; beyond, the value at the bound.
inline Vector exponential(Vector x) {
  x = between(x, -87.0f, 87.0f);
  // x = n * ln 2 + r. Adding 1.5 * 2^23 leaves the rounded n in the lowest bits of the sum.
  const Vector rounder = broadcast(12582912.0f);
  const Vector shifted = x * broadcast(1.44269504f) + rounder;
  const Vector n = shifted - rounder;
  // ln 2 in two parts, of which n times the first is exact.
  const Vector r = (x - n * broadcast(0.693359375f)) + n * broadcast(2.12194440e-4f);
  // The polynomial of degree 6 that begins with 1 + r and comes closest to e^r for |r| <= ln 2 / 2: within 4e-9.
  Vector sum = broadcast(1.3814540580e-3f);
  sum = sum * r + broadcast(8.3687454462e-3f);
  sum = sum * r + broadcast(4.1668388993e-2f);
  sum = sum * r + broadcast(1.6666521132e-1f);
  sum = sum * r + broadcast(4.9999994040e-1f);
  sum = sum * r + broadcast(1.0f);
  sum = sum * r + broadcast(1.0f);
  // 2^n by writing n into the exponent.
  const IntVector exponent = (reinterpret_cast<IntVector>(shifted) - 0x4B400000 + 127) << 23;
  return sum * reinterpret_cast<Vector>(exponent);
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

// The activations behind a norm, as types, so that loops over them have no branches; the numbers are those of
// operators.py's ACTIVATIONS.
enum class Activation { kNone, kSwish, kRelu6 };

// act(x) and its derivative, which have the costly part in common.
struct ValueAndSlope {
  Vector value, slope;
};

// value: act(x); gradient: of x, from the gradient `upper` of act(x).
struct Linear {
  static Vector value(Vector x) { return x; }
  static Vector gradient(Vector, Vector upper) { return upper; }
  static ValueAndSlope both(Vector x) { return {x, broadcast(1.0f)}; }
};

struct Swish {
  static Vector value(Vector x) { return x / (1.0f + exponential(-x)); }
  static Vector gradient(Vector x, Vector upper) {
    const Vector gate = sigmoid(x);
    return upper * (gate * (1.0f + x * (1.0f - gate)));
  }
  static ValueAndSlope both(Vector x) {
    const Vector gate = sigmoid(x);
    return {x * gate, gate * (1.0f + x * (1.0f - gate))};
  }
};

// NaN stays NaN. At the bounds the gradient is that of MindSpore's ReLU6Grad on a CPU: 0 at 0, `upper` at 6.
struct Relu6 {
  static Vector value(Vector x) {
    return between(x, 0.0f, 6.0f);
  }
  static Vector gradient(Vector x, Vector upper) {
    const Vector zero = {};
    upper = x <= zero ? zero : upper;
    return x > broadcast(6.0f) ? zero : upper;
  }
  static ValueAndSlope both(Vector x) { return {value(x), gradient(x, broadcast(1.0f))}; }
};

// Calls task(activation's type).
template <typename Task>
inline void dispatch(Activation activation, const Task& task) {
  if (activation == Activation::kSwish) {
    task(Swish());
  } else if (activation == Activation::kRelu6) {
    task(Relu6());
  } else {
    task(Linear());
  }
}

// The activations behind a norm, as types, so that loops over them have no branches.
#pragma once

#include "vector.h"

// The numbers of operators.py's ACTIVATIONS.
enum class Activation { kNone, kSwish, kRelu6 };

// value: act(x); gradient: of x, from the gradient `upper` of act(x).
struct Linear {
  static Vector value(Vector x) { return x; }
  static Vector gradient(Vector, Vector upper) { return upper; }
};

struct Swish {
  static Vector value(Vector x) { return x / (1.0f + exponential(-x)); }
  static Vector gradient(Vector x, Vector upper) {
    const Vector gate = sigmoid(x);
    return upper * (gate * (1.0f + x * (1.0f - gate)));
  }
};

// NaN stays NaN. At the bounds the gradient is that of MindSpore's ReLU6Grad on a CPU: 0 at 0, `upper` at 6.
struct Relu6 {
  static Vector value(Vector x) {
    const Vector low = Vector{}, high = broadcast(6.0f);
    x = x < low ? low : x;
    return x > high ? high : x;
  }
  static Vector gradient(Vector x, Vector upper) {
    const Vector zero = {};
    upper = x <= zero ? zero : upper;
    return x > broadcast(6.0f) ? zero : upper;
  }
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

// RMSProp with momentum for all parameters at once, epsilon inside the square root as TensorFlow's.
#pragma once

#include <cmath>
#include <utility>

#include "pool.h"

struct RmsProp {
  float learning_rate, decay, momentum, epsilon;

  // Updates `count` numbers of one parameter and of its state in place.
  void update(float weight_decay, float* weight, float* mean_square, float* moment, const float* gradient,
              Index count) const {
    Index i = 0;
    for (; i + kLanes <= count; i += kLanes) update(weight_decay, weight + i, mean_square + i, moment + i, gradient + i);
    if (i == count) return;
    // The rest of a parameter in the same vectors, so that every element gets the same formula.
    float rest[4][kLanes] = {};
    const float* const from[] = {weight + i, mean_square + i, moment + i, gradient + i};
    for (int t = 0; t < 4; ++t) std::copy(from[t], from[t] + (count - i), rest[t]);
    update(weight_decay, rest[0], rest[1], rest[2], rest[3]);
    float* const to[] = {weight + i, mean_square + i, moment + i};
    for (int t = 0; t < 3; ++t) std::copy(rest[t], rest[t] + (count - i), to[t]);
  }

 private:
  void update(float weight_decay, float* weight, float* mean_square, float* moment, const float* gradient) const {
    const Vector w = load(weight);
    const Vector g = load(gradient) + weight_decay * w;
    const Vector before = load(mean_square);
    const Vector square = before + (g * g - before) * (1.0f - decay);
    const Vector step = load(moment) * momentum + learning_rate * g / square_root(square + epsilon);
    store(mean_square, square);
    store(moment, step);
    store(weight, w - step);
  }
};

// Squeeze-and-excitation, and the mean over an image's positions.
#pragma once

#include "norm.h"

// mean[c] = the mean of x over the positions, for one image.
inline void mean_over_positions(const float* x, Index positions, Index width, float* mean) {
  for (Index c = 0; c < width; c += kChannelBlock) {
    Vector sum[kChannelBlock / kLanes] = {};
    for (Index p = 0; p < positions; ++p)
      for (Index v = 0; v < kChannelBlock / kLanes; ++v) sum[v] += load(x + p * width + c + v * kLanes);
    for (Index v = 0; v < kChannelBlock / kLanes; ++v)
      store(mean + c + v * kLanes, sum[v] / broadcast(static_cast<float>(positions)));
  }
}

struct Squeeze {
  Index images, positions, channels, squeezed;

  Index width() const { return padded(channels); }

  // The gate of channel c is sigmoid(expand[c] . act(hidden) + expand_bias[c]), hidden = reduce * mean + reduce_bias.
  template <typename Act>
  void forward(const float* x, const float* reduce, const float* reduce_bias, const float* expand,
               const float* expand_bias, float* out, float* mean, float* hidden, float* gate) const {
    parallel(images, [&](Index image) {
      const float* in = x + image * positions * width();
      float* means = mean + image * width();
      float* gates = gate + image * width();
      mean_over_positions(in, positions, width(), means);
      excite<Act>(reduce, reduce_bias, expand, expand_bias, means, hidden + image * squeezed, gates);
      float* to = out + image * positions * width();
      for (Index p = 0; p < positions; ++p)
        for (Index c = 0; c < width(); c += kLanes)
          store(to + p * width() + c, load(in + p * width() + c) * load(gates + c));
    });
  }

  // The gates of one image from its means.
  template <typename Act>
  void excite(const float* reduce, const float* reduce_bias, const float* expand, const float* expand_bias,
              const float* means, float* hidden, float* gates) const {
    const Scratch active(squeezed);
    for (Index s = 0; s < squeezed; ++s) {
      hidden[s] = reduce_bias[s] + dot(reduce + s * channels, means, channels);
      active[s] = Act::value(broadcast(hidden[s]))[0];
    }
    for (Index c = 0; c < width(); ++c)
      gates[c] = c < channels ? expand_bias[c] + dot(expand + c * squeezed, active, squeezed) : 0.0f;
    for (Index c = 0; c < width(); c += kLanes) store(gates + c, sigmoid(load(gates + c)));
  }

  template <typename Act>
  void backward(const float* upper, const float* x, const float* reduce, const float* expand, const float* mean,
                const float* hidden, const float* gate, float* x_gradient, float* reduce_gradient,
                float* reduce_bias_gradient, float* expand_gradient, float* expand_bias_gradient) const {
    // Gradients before the sigmoid and before the activation.
    const Scratch outer(images * width()), inner(images * squeezed), active(images * squeezed);
    parallel(images, [&](Index image) {
      const Index offset = image * positions * width();
      gate_gradient(upper + offset, x + offset, gate + image * width(), outer + image * width());
      const Scratch means(width());
      excite_back<Act>(reduce, expand, hidden + image * squeezed, outer + image * width(), inner + image * squeezed,
                       active + image * squeezed, means);
      for (Index p = 0; p < positions; ++p)
        for (Index c = 0; c < width(); c += kLanes) {
          const Index at = offset + p * width() + c;
          store(x_gradient + at, load(upper + at) * load(gate + image * width() + c) + load(means + c));
        }
    });
    weight_gradients(outer, inner, active, mean, reduce_gradient, reduce_bias_gradient, expand_gradient,
                     expand_bias_gradient);
  }

  // For one image, from the gradient `outer` in front of the sigmoid: `inner`, that in front of the activation; `active`,
  // what the expanding convolution has read; `means`, the gradient that each position's x gets through the means.
  template <typename Act>
  void excite_back(const float* reduce, const float* expand, const float* hidden, const float* outer, float* inner,
                   float* active, float* means) const {
    std::fill(inner, inner + squeezed, 0.0f);
    for (Index c = 0; c < channels; ++c) add_scaled(outer[c], expand + c * squeezed, squeezed, inner);
    for (Index s = 0; s < squeezed; ++s) {
      const Vector before = broadcast(hidden[s]);
      active[s] = Act::value(before)[0];
      inner[s] = Act::gradient(before, broadcast(inner[s]))[0];
    }
    std::fill(means, means + width(), 0.0f);
    for (Index s = 0; s < squeezed; ++s)
      add_scaled(inner[s] / static_cast<float>(positions), reduce + s * channels, channels, means);
  }

  // From what `excite_back` has left, for all images.
  void weight_gradients(const float* outer, const float* inner, const float* active, const float* mean,
                        float* reduce_gradient, float* reduce_bias_gradient, float* expand_gradient,
                        float* expand_bias_gradient) const {
    outer_products(outer, width(), channels, active, squeezed, squeezed, expand_gradient, expand_bias_gradient);
    outer_products(inner, squeezed, squeezed, mean, width(), channels, reduce_gradient, reduce_bias_gradient);
  }

 private:
  static float dot(const float* a, const float* b, Index count) {
    Vector sum = {};
    Index i = 0;
    for (; i + kLanes <= count; i += kLanes) sum += load(a + i) * load(b + i);
    float total = 0.0f;
    for (Index lane = 0; lane < kLanes; ++lane) total += sum[lane];
    for (; i < count; ++i) total += a[i] * b[i];
    return total;
  }

  // to[i] += factor * from[i].
  static void add_scaled(float factor, const float* from, Index count, float* to) {
    Index i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(to + i) + broadcast(factor) * load(from + i));
    for (; i < count; ++i) to[i] += factor * from[i];
  }

  // The gradient before the sigmoid, for one image.
  void gate_gradient(const float* upper, const float* x, const float* gate, float* gradient) const {
    for (Index c = 0; c < width(); c += kChannelBlock) {
      Vector sum[kChannelBlock / kLanes] = {};
      for (Index p = 0; p < positions; ++p)
        for (Index v = 0; v < kChannelBlock / kLanes; ++v) {
          const Index at = p * width() + c + v * kLanes;
          sum[v] += load(upper + at) * load(x + at);
        }
      for (Index v = 0; v < kChannelBlock / kLanes; ++v) {
        const Vector open = load(gate + c + v * kLanes);
        store(gradient + c + v * kLanes, sum[v] * open * (1.0f - open));
      }
    }
  }

  // weight[r, c] = sum over the images of left[image, r] * right[image, c], bias[r] that of left[image, r].
  void outer_products(const float* left, Index left_step, Index rows, const float* right, Index right_step,
                      Index columns, float* weight, float* bias) const {
    constexpr Index step = 32;
    parallel((rows + step - 1) / step, [&](Index task) {
      for (Index r = task * step; r < std::min(rows, (task + 1) * step); ++r) {
        float* to = weight + r * columns;
        bias[r] = 0.0f;
        for (Index c = 0; c < columns; ++c) to[c] = 0.0f;
        for (Index image = 0; image < images; ++image) {
          const float factor = left[image * left_step + r];
          bias[r] += factor;
          add_scaled(factor, right + image * right_step, columns, to);
        }
      }
    });
  }
};

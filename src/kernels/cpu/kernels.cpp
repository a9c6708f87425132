// The operators as MindSpore's ops.Custom(func_type="aot") calls them: arrays of pointers, ranks, shapes and types of the
// inputs and, behind them, the outputs. Everything is float32. A result other than 0 ends the run with an error.
//
// Activations are (images, height, width, channels padded to a multiple of 16, zeros there); images at the network's
// entrance are (images, channels, height, width). Weights and vectors of channels have the shapes of the checkpoint.

#include "call.h"
#include "dense.h"
#include "depthwise.h"
#include "pointwise.h"
#include "rmsprop.h"
#include "squeeze.h"

namespace {

// The kinds of convolution: how the shapes of x and the weight are read, and what needs which gradient.
template <typename Kind>
constexpr bool kFromImages = std::is_same_v<Kind, Dense>;

template <typename Kind>
Layer read_layer(const Call& call, int x, int weight, const Settings& settings) {
  Layer layer{};
  const bool images = kFromImages<Kind>;
  layer.images = call.size(x, 0);
  layer.in_height = call.size(x, images ? 2 : 1);
  layer.in_width = call.size(x, images ? 3 : 2);
  layer.out_channels = call.size(weight, 0);
  layer.in_channels = call.size(weight, 1);
  layer.kernel = call.size(weight, 2);
  layer.stride = settings.stride;
  layer.out_height = (layer.in_height + layer.stride - 1) / layer.stride;
  layer.out_width = (layer.in_width + layer.stride - 1) / layer.stride;
  layer.top = padding_before(layer.in_height, layer.out_height, layer.kernel, layer.stride, settings.symmetric);
  layer.left = padding_before(layer.in_width, layer.out_width, layer.kernel, layer.stride, settings.symmetric);
  return layer;
}

template <typename Kind>
bool fits(const Call& call, int x, int weight, int y, const Settings& settings) {
  if (call.rank(x) != 4 || call.rank(weight) != 4 || call.size(weight, 2) != call.size(weight, 3)) return false;
  if (settings.stride < 1 || settings.activation > Activation::kRelu6) return false;
  const Layer layer = read_layer<Kind>(call, x, weight, settings);
  const Index channels = std::is_same_v<Kind, Depthwise> ? layer.out_channels : layer.in_channels;
  const Index in = kFromImages<Kind> ? call.size(x, 1) : call.size(x, 3);
  if (in != (kFromImages<Kind> ? channels : padded(channels))) return false;
  if (std::is_same_v<Kind, Depthwise> && layer.in_channels != 1) return false;
  if (std::is_same_v<Kind, Pointwise> && (layer.kernel != 1 || layer.stride != 1)) return false;
  return call.is(y, {layer.images, layer.out_height, layer.out_width, padded(layer.out_channels)});
}

// Inputs: x, weight, gamma, beta, moving mean and moving variance (which it moves on), settings.
// Outputs: out, y (the convolution's), mean and variance of the batch.
template <typename Kind>
int train(const Call& call) {
  const Settings settings(call[6]);
  if (!call.has(11) || !fits<Kind>(call, 0, 1, 7, settings)) return kWrongCall;
  const Layer layer = read_layer<Kind>(call, 0, 1, settings);
  const Kind convolution(layer, call[0], call[1]);
  float *out = call[7], *y = call[8];
  const Index width = padded(layer.out_channels), positions = layer.positions();
  const Scratch mean(width), variance(width);
  {
    const BlockSums sums(convolution.blocks(), width);
    convolution.forward(y, [&](Index block, const float* rows, Index count, Index first, Index last) {
      block_moments(sums, block, rows, count, width, first, last);
    });
    combine_moments(sums, mean, variance);
  }
  // As in MindSpore's BatchNorm, the moving variance takes up the variance divided by one less than the count.
  const float unbiased = static_cast<float>(positions) / static_cast<float>(std::max<Index>(1, positions - 1));
  for (Index c = 0; c < layer.out_channels; ++c) {
    call[9][c] = mean[c];
    call[10][c] = variance[c];
    call[4][c] = settings.momentum * call[4][c] + (1.0f - settings.momentum) * mean[c];
    call[5][c] = settings.momentum * call[5][c] + (1.0f - settings.momentum) * variance[c] * unbiased;
  }
  const Norm norm(layer.out_channels, settings.epsilon, mean, variance, call[2], call[3]);
  const Index rows = std::max<Index>(16, 32768 / width);
  parallel((positions + rows - 1) / rows, [&](Index block) {
    const Index offset = block * rows * width;
    apply_norm(norm, settings.activation, y + offset, out + offset, std::min(rows, positions - block * rows), width, 0,
               width);
  });
  return 0;
}

// Inputs: as `train`. Output: out, from the moving statistics.
template <typename Kind>
int infer(const Call& call) {
  const Settings settings(call[6]);
  if (!call.has(8) || !fits<Kind>(call, 0, 1, 7, settings)) return kWrongCall;
  const Layer layer = read_layer<Kind>(call, 0, 1, settings);
  const Norm norm(layer.out_channels, settings.epsilon, call[4], call[5], call[2], call[3]);
  const Kind convolution(layer, call[0], call[1]);
  convolution.forward(call[7], [&](Index, float* rows, Index count, Index first, Index last) {
    apply_norm(norm, settings.activation, rows, rows, count, norm.width(), first, last);
  });
  return 0;
}

// Inputs: x, weight, settings. Output: y, the convolution alone.
template <typename Kind>
int convolve(const Call& call) {
  const Settings settings(call[2]);
  if (!call.has(4) || !fits<Kind>(call, 0, 1, 3, settings)) return kWrongCall;
  const Kind convolution(read_layer<Kind>(call, 0, 1, settings), call[0], call[1]);
  convolution.forward(call[3], [](Index, float*, Index, Index, Index) {});
  return 0;
}

// Inputs: gradient of out, x, weight, y, mean, variance, gamma, beta, settings.
// Outputs: gradients of x (not for images), weight, gamma, beta.
template <typename Kind>
int backward(const Call& call) {
  const Settings settings(call[8]);
  constexpr int first = kFromImages<Kind> ? 8 : 9;  // in front of the weight's gradient
  if (!call.has(first + 4) || !fits<Kind>(call, 1, 2, 3, settings)) return kWrongCall;
  const Layer layer = read_layer<Kind>(call, 1, 2, settings);
  const float *upper = call[0], *y = call[3];
  Norm norm(layer.out_channels, settings.epsilon, call[4], call[5], call[6], call[7]);
  const Index width = norm.width();
  parameter_gradients(norm, settings, upper, y, layer.positions(), call[first + 2], call[first + 3]);
  const Kind convolution(layer, call[1], call[2]);
  const auto rows_gradient = [&](Index row, Index rows, float* to) {
    input_gradient(norm, settings.activation, upper + row * width, y + row * width, rows, width, to, width, 0, width);
  };
  if constexpr (std::is_same_v<Kind, Depthwise>) {
    convolution.backward(
        [&](Index row, Index rows, Index from, Index last, float* to) {
          input_gradient(norm, settings.activation, upper + row * width, y + row * width, rows, width, to, kChunk, from,
                         last);
        },
        call[9], call[10]);
  } else if constexpr (kFromImages<Kind>) {
    convolution.backward(rows_gradient, call[9]);
  } else {
    convolution.backward(rows_gradient, call[9], call[10]);
  }
  return 0;
}

// Inputs: as `backward`. Output: gradient of the images.
int backward_images(const Call& call) {
  const Settings settings(call[8]);
  if (!call.has(10) || !fits<Dense>(call, 1, 2, 3, settings)) return kWrongCall;
  const Layer layer = read_layer<Dense>(call, 1, 2, settings);
  Norm norm(layer.out_channels, settings.epsilon, call[4], call[5], call[6], call[7]);
  const Index width = norm.width();
  const Scratch gamma(width), beta(width);
  parameter_gradients(norm, settings, call[0], call[3], layer.positions(), gamma, beta);
  const Dense convolution(layer, call[1], call[2]);
  convolution.backward_input(
      [&](Index row, Index rows, float* to) {
        input_gradient(norm, settings.activation, call[0] + row * width, call[3] + row * width, rows, width, to, width,
                       0, width);
      },
      call[9]);
  return 0;
}

Squeeze read_squeeze(const Call& call, int x, int reduce) {
  return {call.size(x, 0), call.size(x, 1) * call.size(x, 2), call.size(reduce, 1), call.size(reduce, 0)};
}

// Inputs: x, weight and bias of the reducing convolution, of the expanding one.
// Outputs: out, mean over the positions, hidden (before the activation), gate.
template <typename Act>
int squeeze(const Call& call) {
  if (!call.has(9) || call.rank(0) != 4 || call.rank(1) != 4) return kWrongCall;
  const Squeeze layer = read_squeeze(call, 0, 1);
  if (call.size(0, 3) != layer.width() || !call.is(3, {layer.channels, layer.squeezed, 1, 1})) return kWrongCall;
  layer.forward<Act>(call[0], call[1], call[2], call[3], call[4], call[5], call[6], call[7], call[8]);
  return 0;
}

// Inputs: gradient of out, x, both weights, mean, hidden, gate.
// Outputs: gradients of x and of weight and bias of both convolutions.
template <typename Act>
int squeeze_backward(const Call& call) {
  if (!call.has(12) || call.rank(1) != 4 || call.rank(2) != 4) return kWrongCall;
  const Squeeze layer = read_squeeze(call, 1, 2);
  if (call.size(1, 3) != layer.width() || !call.is(3, {layer.channels, layer.squeezed, 1, 1})) return kWrongCall;
  layer.backward<Act>(call[0], call[1], call[2], call[3], call[4], call[5], call[6], call[7], call[8], call[9],
                      call[10], call[11]);
  return 0;
}

// Input: x. Output: (images, channels), the mean over the positions.
int mean(const Call& call) {
  if (!call.has(2) || call.rank(0) != 4 || call.rank(1) != 2) return kWrongCall;
  const Index positions = call.size(0, 1) * call.size(0, 2), width = call.size(0, 3), channels = call.size(1, 1);
  if (width != padded(channels)) return kWrongCall;
  parallel(call.size(0, 0), [&](Index image) {
    const Scratch means(width);
    mean_over_positions(call[0] + image * positions * width, positions, width, means);
    std::memcpy(call[1] + image * channels, means, sizeof(float) * channels);
  });
  return 0;
}

// Inputs: gradient of the mean, x (its shape). Output: gradient of x.
int mean_backward(const Call& call) {
  if (!call.has(3) || call.rank(0) != 2 || call.rank(2) != 4) return kWrongCall;
  const Index positions = call.size(2, 1) * call.size(2, 2), width = call.size(2, 3), channels = call.size(0, 1);
  if (width != padded(channels)) return kWrongCall;
  parallel(call.size(2, 0), [&](Index image) {
    for (Index p = 0; p < positions; ++p) {
      float* to = call[2] + (image * positions + p) * width;
      for (Index c = 0; c < width; ++c)
        to[c] = c < channels ? call[0][image * channels + c] / static_cast<float>(positions) : 0.0f;
    }
  });
  return 0;
}

// Inputs: learning rate, settings (decay, momentum, epsilon), the weight decay of each parameter; then all parameters, all
// mean squares, all moments (these are updated), all gradients. Output: one number without a meaning.
int rmsprop(const Call& call) {
  const Index parameters = call.size(2, 0);
  if (!call.has(static_cast<int>(4 * parameters + 4))) return kWrongCall;
  const RmsProp rule{call[0][0], call[1][0], call[1][1], call[1][2]};
  const auto tensor = [&](Index kind, Index parameter) { return static_cast<int>(3 + kind * parameters + parameter); };
  constexpr Index step = 16384;
  std::vector<std::pair<Index, Index>> tasks;  // parameter and first number
  for (Index p = 0; p < parameters; ++p) {
    for (Index kind = 1; kind < 4; ++kind)
      if (call.count(tensor(kind, p)) != call.count(tensor(0, p))) return kWrongCall;
    for (Index first = 0; first < call.count(tensor(0, p)); first += step) tasks.push_back({p, first});
  }
  // Small parameters are many: several tasks at a time.
  constexpr std::size_t group = 8;
  parallel((tasks.size() + group - 1) / group, [&](Index i) {
    for (std::size_t t = i * group; t < std::min(tasks.size(), (i + 1) * group); ++t) {
      const auto [p, first] = tasks[t];
      rule.update(call[2][p], call[tensor(0, p)] + first, call[tensor(1, p)] + first, call[tensor(2, p)] + first,
                  call[tensor(3, p)] + first, std::min(step, call.count(tensor(0, p)) - first));
    }
  });
  call[static_cast<int>(4 * parameters + 3)][0] = 0.0f;
  return 0;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

#define OPERATOR(name, operation)                                                                                  \
  EXPORTED int name(int count, void** data, int* ranks, std::int64_t** shapes, const char** types, void*, void*) { \
    return run(operation, count, data, ranks, shapes, types);                                                      \
  }

OPERATOR(pointwise_train, train<Pointwise>)
OPERATOR(pointwise_infer, infer<Pointwise>)
OPERATOR(pointwise_convolve, convolve<Pointwise>)
OPERATOR(pointwise_backward, backward<Pointwise>)
OPERATOR(depthwise_train, train<Depthwise>)
OPERATOR(depthwise_infer, infer<Depthwise>)
OPERATOR(depthwise_convolve, convolve<Depthwise>)
OPERATOR(depthwise_backward, backward<Depthwise>)
OPERATOR(dense_train, train<Dense>)
OPERATOR(dense_infer, infer<Dense>)
OPERATOR(dense_convolve, convolve<Dense>)
OPERATOR(dense_backward, backward<Dense>)
OPERATOR(dense_backward_images, backward_images)
OPERATOR(squeeze_swish, squeeze<Swish>)
OPERATOR(squeeze_swish_backward, squeeze_backward<Swish>)
OPERATOR(squeeze_relu6, squeeze<Relu6>)
OPERATOR(squeeze_relu6_backward, squeeze_backward<Relu6>)
OPERATOR(rmsprop_update, rmsprop)
OPERATOR(position_mean, mean)
OPERATOR(position_mean_backward, mean_backward)

EXPORTED void kernels_set_threads(int threads) { Pool::instance().set_threads(threads); }

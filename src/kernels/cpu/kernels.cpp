// The operators as MindSpore's ops.Custom(func_type="aot") calls them: arrays of pointers, ranks, shapes and types of the
// inputs and, behind them, the outputs. Everything is float32. A result other than 0 ends the run with an error.
//
// Activations are (images, height, width, channels padded to a multiple of 16, zeros there); images at the network's
// entrance are (images, channels, height, width). Weights and vectors of channels have the shapes of the checkpoint.

#include "call.h"
#include "dense.h"
#include "evaluation.h"
#include "mbconv.h"
#include "ranks.h"
#include "rmsprop.h"

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

// Whether a tensor is the weight of such a convolution.
template <typename Kind>
bool is_weight(const Call& call, int weight, const Settings& settings) {
  if (call.rank(weight) != 4 || call.size(weight, 2) != call.size(weight, 3)) return false;
  if (settings.stride < 1 || settings.activation > Activation::kRelu6) return false;
  const Index kernel = call.size(weight, 2);
  if (std::is_same_v<Kind, Depthwise> && (call.size(weight, 1) != 1 || kernel > kMostRows)) return false;
  return !std::is_same_v<Kind, Pointwise> || (kernel == 1 && settings.stride == 1);
}

bool is_output(const Call& call, int y, const Layer& layer) {
  return call.is(y, {layer.images, layer.out_height, layer.out_width, padded(layer.out_channels)});
}

template <typename Kind>
bool fits(const Call& call, int x, int weight, int y, const Settings& settings) {
  if (call.rank(x) != 4 || !is_weight<Kind>(call, weight, settings)) return false;
  const Layer layer = read_layer<Kind>(call, x, weight, settings);
  const Index channels = std::is_same_v<Kind, Depthwise> ? layer.out_channels : layer.in_channels;
  const Index in = kFromImages<Kind> ? call.size(x, 1) : call.size(x, 3);
  return in == (kFromImages<Kind> ? channels : padded(channels)) && is_output(call, y, layer);
}

// Inputs: x, weight, gamma, beta, moving mean and moving variance (which it moves on), settings.
// Outputs: out, y (the convolution's), mean and variance of the batch.
template <typename Kind>
int train(const Call& call) {
  const Settings settings(call[6]);
  if (!call.has(11) || !fits<Kind>(call, 0, 1, 7, settings)) return kWrongCall;
  const Layer layer = read_layer<Kind>(call, 0, 1, settings);
  const Kind convolution(layer, call[0], call[1]);
  PHASE(kFromImages<Kind> ? "stem" : "head");
  convolve_and_measure(layer, convolution, settings.momentum, call[8], call[9], call[10], call[4], call[5]);
  const Norm norm(layer.out_channels, settings.epsilon, call[9], call[10], call[2], call[3]);
  apply_norm_to_all(norm, settings.activation, call[8], call[7], layer.positions());
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
  PHASE(kFromImages<Kind> ? "stem, backward" : "head, backward");
  Norm norm(layer.out_channels, settings.epsilon, call[4], call[5], call[6], call[7]);
  const Index width = norm.width();
  parameter_gradients(norm, settings.activation, settings.training, upper, y, layer.positions(), call[first + 2], call[first + 3]);
  const Kind convolution(layer, call[1], call[2]);
  [[maybe_unused]] const auto rows_gradient = [&](Index row, Index rows, float* to) {
    input_gradient(norm, settings.activation, upper + row * width, y + row * width, rows, {to, width, 0});
  };
  if constexpr (std::is_same_v<Kind, Depthwise>) {
    convolution.backward(
        [&](Index row, Index rows, float* to, Index chunk_step) {
          input_gradient(norm, settings.activation, upper + row * width, y + row * width, rows, {to, kChunk, chunk_step});
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
  parameter_gradients(norm, settings.activation, settings.training, call[0], call[3], layer.positions(), gamma, beta);
  const Dense convolution(layer, call[1], call[2]);
  convolution.backward_input(
      [&](Index row, Index rows, float* to) {
        input_gradient(norm, settings.activation, call[0] + row * width, call[3] + row * width, rows, {to, width, 0});
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

// Where the parts of an MBConv block are among a call's tensors; each is behind the other, as far as the block has it.
struct Places {
  int expand, depthwise, squeeze, project, end;

  Places(int first, bool expands, bool squeezes, int of_convolution, int of_squeeze)
      : expand(first),
        depthwise(expand + (expands ? of_convolution : 0)),
        squeeze(depthwise + of_convolution),
        project(squeeze + (squeezes ? of_squeeze : 0)),
        end(project + of_convolution) {}
};

MBConv::Weights weights_at(const Call& call, const Places& at) {
  const auto layer = [&](int i) { return ConvNormTensors{call[i], call[i + 1], call[i + 2]}; };
  return {layer(at.expand), layer(at.depthwise), layer(at.project),
          {call[at.squeeze], call[at.squeeze + 1], call[at.squeeze + 2], call[at.squeeze + 3]}};
}

// An expanding convolution's y of one number is not kept.
MBConv::Kept kept_at(const Call& call, const Places& at) {
  const auto layer = [&](int i) { return Convolved{call.count(i) == 1 ? nullptr : call[i], call[i + 1], call[i + 2]}; };
  return {layer(at.expand), layer(at.depthwise), layer(at.project),
          {call[at.squeeze], call[at.squeeze + 1], call[at.squeeze + 2]}};
}

MBConv::Kept statistics_at(const Call& call, const Places& at) {
  const auto layer = [&](int i) { return Convolved{nullptr, call[i], call[i + 1]}; };
  return {layer(at.expand), layer(at.depthwise), layer(at.project), {}};
}

// Reads the block's shapes from x and the weights; false where they do not go together.
bool read_block(const Call& call, int x, const Places& weights, MBConv& block) {
  const Settings& wide = block.settings;
  Settings narrow = wide;
  narrow.stride = 1;
  if (call.rank(x) != 4 || !is_weight<Depthwise>(call, weights.depthwise, wide)) return false;
  if (block.expands && !is_weight<Pointwise>(call, weights.expand, narrow)) return false;
  if (!is_weight<Pointwise>(call, weights.project, narrow)) return false;
  const Layer& layer = block.depthwise = read_layer<Depthwise>(call, x, weights.depthwise, wide);
  const Index hidden = layer.out_channels;
  if (block.expands) block.expand = read_layer<Pointwise>(call, x, weights.expand, narrow);
  block.project = read_layer<Pointwise>(call, x, weights.project, narrow);
  block.project.in_height = block.project.out_height = layer.out_height;
  block.project.in_width = block.project.out_width = layer.out_width;
  block.squeeze = {layer.images, layer.out_height * layer.out_width, hidden,
                   block.squeezes ? call.size(weights.squeeze, 0) : 0};
  if (call.size(x, 3) != padded(block.expands ? block.expand.in_channels : hidden)) return false;
  if ((block.expands && block.expand.out_channels != hidden) || block.project.in_channels != hidden) return false;
  // All of the depthwise convolution's input is read.
  if (layer.kernel < layer.stride) return false;
  // A residual connection's x has the output's form.
  if (block.residual && !is_output(call, x, block.project)) return false;
  return !block.squeezes || (call.is(weights.squeeze, {block.squeeze.squeezed, hidden, 1, 1}) &&
                             call.is(weights.squeeze + 2, {hidden, block.squeeze.squeezed, 1, 1}));
}

// Whether the mask and what the forward pass keeps have the block's shapes.
bool fit_training(const Call& call, int mask, const Places& kept, const MBConv& block) {
  if (block.residual && !call.is(mask, {block.depthwise.images})) return false;
  if (block.expands && call.count(kept.expand) != 1 && !is_output(call, kept.expand, block.expand)) return false;
  return is_output(call, kept.depthwise, block.depthwise) && is_output(call, kept.project, block.project);
}

MBConv block_with(const Call& call) {
  MBConv block{call[0][6] != 0.0f, call[0][7] != 0.0f, call[0][8] != 0.0f, {}, {}, {}, {}, Settings(call[0])};
  return block;
}

// Inputs: settings, and whether the block expands, squeezes and has a residual connection; x; the mask of drop-connect, one
// number for each image; weight, gamma and beta of each convolution, and in front of the last's, weights and biases of
// squeeze-and-excitation; moving mean and variance of each norm, which move on in training and count otherwise.
// Outputs: out; y, mean and variance of each convolution, and in front of the last's, mean, hidden and gate of
// squeeze-and-excitation. Where the expanding convolution's y is one number, the backward pass makes it anew.
int mbconv_forward(const Call& call) {
  MBConv block = block_with(call);
  const Places weights(3, block.expands, block.squeezes, 3, 4), moving(weights.end, block.expands, false, 2, 0);
  const Places kept(moving.end + 1, block.expands, block.squeezes, 3, 3);
  if (!call.has(kept.end) || !read_block(call, 1, weights, block) || !fit_training(call, 2, kept, block)) return kWrongCall;
  block.forward(call[1], call[2], weights_at(call, weights), kept_at(call, kept), statistics_at(call, moving),
                call[moving.end]);
  return 0;
}

// Inputs: settings, x and mask as above; the gradient of out; the weights; what the forward pass left.
// Outputs: gradients of x and of the weights; space of the size of the depthwise convolution's y, then of the expanding
// one's.
int mbconv_back(const Call& call) {
  MBConv block = block_with(call);
  const Places weights(4, block.expands, block.squeezes, 3, 4), kept(weights.end, block.expands, block.squeezes, 3, 3);
  const Places gradients(kept.end + 1, block.expands, block.squeezes, 3, 4);
  const int space = gradients.end;
  if (!call.has(space + 1 + block.expands)) return kWrongCall;
  if (!read_block(call, 1, weights, block) || !fit_training(call, 2, kept, block)) return kWrongCall;
  block.backward(call[3], call[1], call[2], weights_at(call, weights), kept_at(call, kept), call[kept.end],
                 weights_at(call, gradients), block.expands ? call[space + 1] : nullptr, call[space]);
  return 0;
}

// Inputs: settings and x as above, the weights, the moving statistics. Output: out.
int mbconv_evaluate(const Call& call) {
  MBConv block = block_with(call);
  const Places weights(2, block.expands, block.squeezes, 3, 4), moving(weights.end, block.expands, false, 2, 0);
  if (!call.has(moving.end + 1) || !read_block(call, 1, weights, block)) return kWrongCall;
  if (!is_output(call, moving.end, block.project)) return kWrongCall;
  MBConvEvaluation(block, weights_at(call, weights), statistics_at(call, moving)).run(call[1], call[moving.end]);
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
  PHASE("RMSProp");
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

// Inputs: tensors, the same on all ranks that have joined. Outputs: their means, as many and of the same sizes.
int mean_of_ranks(const Call& call) {
  PHASE("mean over ranks");
  const int tensors = call.count() / 2;
  if (!call.has(2 * tensors)) return kWrongCall;
  std::vector<std::pair<const float*, Index>> inputs;
  std::vector<float*> outputs;
  for (int i = 0; i < tensors; ++i) {
    if (call.count(i) != call.count(tensors + i)) return kWrongCall;
    inputs.push_back({call[i], call.count(i)});
    outputs.push_back(call[tensors + i]);
  }
  return Ranks::instance().mean(inputs, outputs);
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
OPERATOR(mbconv_train, mbconv_forward)
OPERATOR(mbconv_infer, mbconv_evaluate)
OPERATOR(mbconv_backward, mbconv_back)
OPERATOR(rmsprop_update, rmsprop)
OPERATOR(mean_over_ranks, mean_of_ranks)
OPERATOR(position_mean, mean)
OPERATOR(position_mean_backward, mean_backward)

EXPORTED void kernels_set_threads(int threads) { Pool::instance().set_threads(threads); }

// The bytes of the file that ranks share, and whether this rank could join: see class Ranks.
EXPORTED std::int64_t kernels_shared_bytes(std::int64_t ranks, std::int64_t floats) { return Ranks::bytes(ranks, floats); }
EXPORTED int kernels_join_ranks(int file, std::int64_t rank, std::int64_t ranks, std::int64_t floats) {
  return Ranks::instance().join(file, rank, ranks, floats);
}

#ifdef KERNELS_PROFILE
// Calls visit(name, seconds) for each phase, and begins anew.
EXPORTED void kernels_phases(void (*visit)(const char*, double)) {
  for (const auto& [name, seconds] : Phase::seconds()) visit(name.c_str(), seconds);
  Phase::seconds().clear();
}

// Multiplies on all threads what stays in the first cache, and returns how many multiplications and additions that were.
EXPORTED double kernels_multiply() {
  constexpr Index rows = kRowBlock, depth = 96, times = 20000, tasks = 64;
  parallel(tasks, [](Index) {
    const Scratch a(rows * depth), b(depth * kPanel), c(rows * kPanel);
    std::fill(a.data(), a.data() + rows * depth, 0.0f);
    std::fill(b.data(), b.data() + depth * kPanel, 0.0f);
    for (Index i = 0; i < times / tasks; ++i)
      product(Rows{a, depth}, b, kPanel, rows, depth, c, kPanel, kPanel, false);
  });
  return 2.0 * rows * depth * kPanel * (times / tasks * tasks);
}
#endif

// An MBConv block, as one operator: expanding 1x1 convolution, depthwise convolution, squeeze-and-excitation, projecting
// 1x1 convolution. Here it is in training; evaluation.h has a faster way where no gradient is asked for. Of the wide tensors
// between them only the convolutions' outputs exist, and that of the expanding one only where it is to be kept. Each layer
// applies the norm, the activation and the gate of the one before to what it reads, in blocks that stay in the cache, and
// the backward pass does so again.
#pragma once

#include "call.h"
#include "depthwise.h"
#include "pointwise.h"
#include "squeeze.h"

// A convolution with its norm.
struct ConvNormTensors {
  float *weight, *gamma, *beta;
};

// What its forward pass leaves for the backward pass: its output and the batch's statistics.
struct Convolved {
  float *y, *mean, *variance;
};

struct SqueezeTensors {
  float *reduce, *reduce_bias, *expand, *expand_bias;
};

// What the forward pass leaves of it: means, values in front of the activation, gates.
struct Excited {
  float *mean, *hidden, *gate;
};

// The parts of the block. What belongs to a part that a block does not have is never touched.
template <typename ConvNorm, typename Gate>
struct Parts {
  ConvNorm expand, depthwise, project;
  Gate squeeze;
};

// For each channel of an image, what the gradients of its gate and of the depthwise convolution's norm are made of. The
// rows of a block may belong to several images; each part of a block has sums of its own.
class PartSums {
 public:
  // Over positions: g is the gradient of what the projection has read, a the activation, d its derivative, n the
  // normalised value.
  enum Sum { kGA, kGD, kD, kGDN, kDN, kSums };

  PartSums(const Pointwise& project, const Squeeze& squeeze)
      : rows_(project.rows()),
        positions_(squeeze.positions),
        width_(squeeze.width()),
        sums_((project.blocks() + squeeze.images) * kSums * width_) {}

  // From one part to the next the block rises, or the image, or both; so their sum is the part's own.
  float* of(Index block, Index image, Sum sum) const { return sums_ + ((block + image) * kSums + sum) * width_; }

  // to[c] = the sum over an image.
  void total(Index image, Sum sum, float* to) const {
    const Index last = ((image + 1) * positions_ - 1) / rows_;
    std::fill(to, to + width_, 0.0f);
    for (Index block = image * positions_ / rows_; block <= last; ++block) {
      const float* part = of(block, image, sum);
      for (Index c = 0; c < width_; c += kLanes) store(to + c, load(to + c) + load(part + c));
    }
  }

 private:
  Index rows_, positions_, width_;
  Scratch sums_;
};

struct MBConv {
  using Weights = Parts<ConvNormTensors, SqueezeTensors>;
  using Kept = Parts<Convolved, Excited>;

  bool expands, squeezes, residual;
  Layer expand, depthwise, project;
  Squeeze squeeze;
  Settings settings;

  Norm norm(const Layer& layer, const Convolved& statistics, const ConvNormTensors& weights) const {
    return Norm(layer.out_channels, settings.epsilon, statistics.mean, statistics.variance, weights.gamma, weights.beta);
  }

  // `moving`: the moving statistics, which move on in training; `mask`: of drop-connect, a number for each image, where
  // there is a residual connection. Without a place for it, the expanding convolution's y is made anew where it is read.
  void forward(const float* x, const float* mask, const Weights& weights, const Kept& kept, const Kept& moving,
               float* out) const {
    if (expands) {
      PHASE("expand");
      measure(expand, Pointwise(expand, x, weights.expand.weight), kept.expand, moving.expand);
    }
    const Norm first = norm(expand, kept.expand, weights.expand);
    {
      PHASE("depthwise");
      const Expansion again(makes_anew(kept), expand, x, weights.expand.weight);
      measure(depthwise, Depthwise(depthwise, expanded(x, kept, first, again), weights.depthwise.weight), kept.depthwise,
              moving.depthwise);
    }
    const Norm second = norm(depthwise, kept.depthwise, weights.depthwise);
    if (squeezes) excite(second, weights.squeeze, kept);
    PHASE("project");
    measure(project, Pointwise(project, gated(kept, second), weights.project.weight), kept.project, moving.project);
    const Norm third = norm(project, kept.project, weights.project);
    if (!residual) return apply_norm_to_all(third, Activation::kNone, kept.project.y, out, project.positions());
    each_position(third.width(), [&](Index image, Index at, Index c) {
      store(out + at, load(x + at) + broadcast(mask[image]) * normed(third, load(kept.project.y + at), c));
    });
  }

  // From the gradient `upper` of the output. `expand_gradient` and `depthwise_gradient` are space for the gradients of the
  // two norms' outputs, with the shapes of what is kept of these parts.
  void backward(const float* upper, const float* x, const float* mask, const Weights& weights, const Kept& kept,
                float* x_gradient, const Weights& gradients, float* expand_gradient, float* depthwise_gradient) const {
    const Index width = padded(project.out_channels);
    const Scratch masked(residual ? project.positions() * width : 0);
    if (residual)
      each_position(width, [&](Index image, Index at, Index) {
        store(masked + at, load(upper + at) * broadcast(mask[image]));
      });
    Norm first = norm(expand, kept.expand, weights.expand);
    const Expansion again(makes_anew(kept), expand, x, weights.expand.weight);
    const Source source = expanded(x, kept, first, again);
    filter_backward(residual ? masked.data() : upper, source, weights, kept, x_gradient, gradients, expand_gradient,
                    depthwise_gradient, first);
    if (expands) expand_backward(x, source, weights, first, expand_gradient, gradients.expand, x_gradient);
    if (residual)
      each_position(width, [&](Index, Index at, Index) {
        store(x_gradient + at, load(x_gradient + at) + load(upper + at));
      });
  }

 private:
  // Calls visit(image, place in the tensor, channel) for each vector of an output.
  template <typename Visit>
  void each_position(Index width, const Visit& visit) const {
    parallel_rows(project.positions(), width, [&](Index, Index row, Index rows) {
      each_image(squeeze.positions, row, rows, [&](Index image, Index first, Index count) {
        for (Index r = first; r < first + count; ++r)
          for (Index c = 0; c < width; c += kLanes) visit(image, r * width + c, c);
      });
    });
  }

  // As far as the depthwise convolution, which has read `source`; of the expansion only its norm.
  void filter_backward(const float* upper, const Source& source, const Weights& weights, const Kept& kept,
                       float* x_gradient, const Weights& gradients, float* expand_gradient, float* depthwise_gradient,
                       Norm& first) const {
    const Index width = squeeze.width();
    Norm second = norm(depthwise, kept.depthwise, weights.depthwise);
    // Without squeeze-and-excitation all gates are open, and nothing comes through them.
    const Scratch gates(squeeze.images * width), through_gates(squeeze.images * width);
    {
      const Pointwise projection(project, gated(kept, second), weights.project.weight);
      const PartSums sums(projection, squeeze);
      project_backward(upper, projection, second, weights, kept, gradients, depthwise_gradient, sums);
      squeeze_backward(sums, weights.squeeze, kept.squeeze, gradients.squeeze, gates, through_gates);
      depthwise_norm_backward(sums, gates, through_gates, second, gradients.depthwise);
    }
    PHASE("depthwise, backward");
    const Depthwise filter(depthwise, source, weights.depthwise.weight);
    const auto filter_gradient = [&](Index row, Index rows, float* to, Index chunk_step) {
      const Index image = row / squeeze.positions * width;
      const float *gate = gates + image, *through = through_gates + image, *from = depthwise_gradient + row * width;
      const auto upper_at = [&](Index r, Index c) {
        return load(from + r * width + c) * load(gate + c) + load(through + c);
      };
      dispatch(settings.activation, [&](auto act) {
        input_gradient<decltype(act)>(second, upper_at, kept.depthwise.y + row * width, rows, {to, kChunk, chunk_step});
      });
    };
    if (!expands) return filter.backward(filter_gradient, x_gradient, gradients.depthwise.weight);
    const BlockSums sums(filter.blocks(), width);
    filter.backward(filter_gradient, expand_gradient, gradients.depthwise.weight, &sums);
    combine_gradients(first, sums, counted(expand), gradients.expand.gamma, gradients.expand.beta);
  }

  // The positions whose statistics a norm takes; none where they are constants.
  Index counted(const Layer& layer) const { return settings.training ? layer.positions() : 0; }

  template <typename Kind>
  void measure(const Layer& layer, const Kind& convolution, const Convolved& kept, const Convolved& moving) const {
    if (!settings.training) {
      if (kept.y) convolution.forward(kept.y, [](Index, float*, Index, Index, Index) {});
      std::copy_n(moving.mean, layer.out_channels, kept.mean);
      std::copy_n(moving.variance, layer.out_channels, kept.variance);
      return;
    }
    convolve_and_measure(layer, convolution, settings.momentum, kept.y, kept.mean, kept.variance, moving.mean,
                         moving.variance);
  }

  bool makes_anew(const Kept& kept) const { return expands && !kept.expand.y; }

  // What the depthwise convolution reads.
  Source expanded(const float* x, const Kept& kept, const Norm& first, const Expansion& again) const {
    if (!expands) return Source(x);
    Source source(kept.expand.y, first, settings.activation);
    if (makes_anew(kept)) source.expansion = &again;
    return source;
  }

  // What the projection reads.
  Source gated(const Kept& kept, const Norm& second) const {
    Source source(kept.depthwise.y, second, settings.activation);
    if (squeezes) source.gate = kept.squeeze.gate, source.image_positions = squeeze.positions;
    return source;
  }

  void excite(const Norm& second, const SqueezeTensors& weights, const Kept& kept) const {
    PHASE("squeeze and excite");
    // Few images: the channels are split as well, so that all threads have work.
    const Index width = squeeze.width(), blocks = width / kChannelBlock;
    const Index splits = std::clamp<Index>(16 / squeeze.images, 1, blocks);
    const Excited& to = kept.squeeze;
    dispatch(settings.activation, [&](auto act) {
      using Act = decltype(act);
      parallel(squeeze.images * splits, [&](Index task) {
        const Index image = task / splits, split = task % splits;
        mean_activated<Act>(second, kept.depthwise.y + image * squeeze.positions * width, squeeze.positions,
                            blocks * split / splits * kChannelBlock, blocks * (split + 1) / splits * kChannelBlock,
                            to.mean + image * width);
      });
      parallel(squeeze.images, [&](Index image) {
        squeeze.excite<Act>(weights.reduce, weights.reduce_bias, weights.expand, weights.expand_bias,
                            to.mean + image * width, to.hidden + image * squeeze.squeezed, to.gate + image * width);
      });
    });
  }

  // The gradients of what the projection has read, of its weight and norm; and their sums.
  void project_backward(const float* upper, const Pointwise& projection, const Norm& second, const Weights& weights,
                        const Kept& kept, const Weights& gradients, float* depthwise_gradient,
                        const PartSums& sums) const {
    PHASE("project, backward");
    Norm third = norm(project, kept.project, weights.project);
    const Index out = third.width(), width = squeeze.width();
    parameter_gradients(third, Activation::kNone, settings.training, upper, kept.project.y, project.positions(),
                        gradients.project.gamma, gradients.project.beta);
    const Source source = gated(kept, second);
    projection.backward(
        [&](Index row, Index rows, float* to) {
          input_gradient(third, Activation::kNone, upper + row * out, kept.project.y + row * out, rows, {to, out, 0});
        },
        depthwise_gradient, gradients.project.weight, [&](Index block, Index row, Index rows, float* read) {
          each_image(squeeze.positions, row, rows, [&](Index image, Index first, Index count) {
            dispatch(settings.activation, [&](auto act) {
              read_and_sum<decltype(act)>(source, block, image, first, count, depthwise_gradient + first * width,
                                          read + (first - row) * width, sums);
            });
          });
        });
  }

  // For some rows of one image: writes what the projection has read, and sums up. `gradient` is that of what was read.
  template <typename Act>
  static void read_and_sum(const Source& source, Index block, Index image, Index first, Index count,
                           const float* gradient, float* read, const PartSums& sums) {
    constexpr int vectors = kLanes < kChannelBlock ? 1 : 2;
    const Index width = source.norm->width();
    Index c = 0;
    for (; c + vectors * kLanes <= width; c += vectors * kLanes)
      read_and_sum<Act, vectors>(source, block, image, first, count, c, gradient, read, sums);
    if (c < width) read_and_sum<Act, 1>(source, block, image, first, count, c, gradient, read, sums);
  }

  template <typename Act, int vectors>
  static void read_and_sum(const Source& source, Index block, Index image, Index first, Index count, Index channel,
                           const float* gradient, float* read, const PartSums& sums) {
    const Norm& norm = *source.norm;
    const Index width = norm.width();
    const float* values = source.values + first * width;
    Vector sum[PartSums::kSums][vectors] = {};
    for (Index r = 0; r < count; ++r, values += width, gradient += width, read += width)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const Index c = channel + v * kLanes;
        const Vector g = load(gradient + c), centred = load(values + c) - load(norm.mean() + c);
        const ValueAndSlope act = Act::both(scaled(norm, centred, c));
        store(read + c, source.gate ? act.value * load(source.gate + image * width + c) : act.value);
        sum[PartSums::kGA][v] += g * act.value;
        sum[PartSums::kGD][v] += g * act.slope;
        sum[PartSums::kD][v] += act.slope;
        sum[PartSums::kGDN][v] += g * act.slope * centred;
        sum[PartSums::kDN][v] += act.slope * centred;
      }
    for (int v = 0; v < vectors; ++v) {
      const Index c = channel + v * kLanes;
      const Vector inverse = load(norm.inverse() + c);
      store(sums.of(block, image, PartSums::kGA) + c, sum[PartSums::kGA][v]);
      store(sums.of(block, image, PartSums::kGD) + c, sum[PartSums::kGD][v]);
      store(sums.of(block, image, PartSums::kD) + c, sum[PartSums::kD][v]);
      store(sums.of(block, image, PartSums::kGDN) + c, sum[PartSums::kGDN][v] * inverse);
      store(sums.of(block, image, PartSums::kDN) + c, sum[PartSums::kDN][v] * inverse);
    }
  }

  // The gradients of squeeze-and-excitation; writes the gates, and what comes through them to each position.
  void squeeze_backward(const PartSums& sums, const SqueezeTensors& weights, const Excited& kept,
                        const SqueezeTensors& gradients, float* gates, float* through_gates) const {
    PHASE("squeeze and excite, backward");
    const Index width = squeeze.width(), count = squeeze.images * width;
    std::fill(gates, gates + count, 1.0f);
    std::fill(through_gates, through_gates + count, 0.0f);
    if (!squeezes) return;
    std::copy(kept.gate, kept.gate + count, gates);
    const Scratch outer(count), inner(squeeze.images * squeeze.squeezed), active(squeeze.images * squeeze.squeezed);
    parallel(squeeze.images, [&](Index image) {
      float* gradient = outer + image * width;
      sums.total(image, PartSums::kGA, gradient);
      for (Index c = 0; c < width; c += kLanes) {
        const Vector gate = load(gates + image * width + c);
        store(gradient + c, load(gradient + c) * gate * (1.0f - gate));
      }
      const Index hidden = image * squeeze.squeezed;
      dispatch(settings.activation, [&](auto act) {
        squeeze.excite_back<decltype(act)>(weights.reduce, weights.expand, kept.hidden + hidden, gradient, inner + hidden,
                                           active + hidden, through_gates + image * width);
      });
    });
    squeeze.weight_gradients(outer, inner, active, kept.mean, gradients.reduce, gradients.reduce_bias, gradients.expand,
                             gradients.expand_bias);
  }

  void depthwise_norm_backward(const PartSums& sums, const float* gates, const float* through_gates, Norm& second,
                               const ConvNormTensors& gradients) const {
    const Index width = squeeze.width();
    const BlockSums by_image(squeeze.images, width);
    parallel(squeeze.images, [&](Index image) {
      const Scratch parts(4 * width);
      const PartSums::Sum order[] = {PartSums::kGD, PartSums::kD, PartSums::kGDN, PartSums::kDN};
      for (Index i = 0; i < 4; ++i) sums.total(image, order[i], parts + i * width);
      for (Index c = 0; c < width; c += kLanes) {
        const Vector gate = load(gates + image * width + c), through = load(through_gates + image * width + c);
        store(by_image.first(image) + c, gate * load(parts + c) + through * load(parts + width + c));
        store(by_image.second(image) + c, gate * load(parts + 2 * width + c) + through * load(parts + 3 * width + c));
      }
    });
    combine_gradients(second, by_image, counted(depthwise), gradients.gamma, gradients.beta);
  }

  // From the gradient of the expansion's norm, `first`, whose means of gradients are known.
  void expand_backward(const float* x, const Source& source, const Weights& weights, const Norm& first,
                       const float* gradient, const ConvNormTensors& gradients, float* x_gradient) const {
    PHASE("expand, backward");
    const Index width = first.width();
    Pointwise(expand, x, weights.expand.weight)
        .backward(
            [&](Index row, Index rows, float* to) {
              const Scratch space(source.expansion ? rows * width : 0);
              input_gradient(first, Activation::kNone, gradient + row * width, source.rows(row, rows, width, space), rows,
                             {to, width, 0});
            },
            x_gradient, gradients.weight);
  }
};

// What the three kinds of convolution have in common.
#pragma once

#include "gemm.h"
#include "norm.h"

class Expansion;

// What a layer reads. Within an MBConv block, norm and activation are computed where they are read: what they give is
// neither written nor kept for the backward pass, only what they are computed from.
struct Source {
  const float* values;         // positions x channels
  const Norm* norm = nullptr;  // the layer reads act(norm(values)); without one, the values
  Activation activation = Activation::kNone;
  const float* gate = nullptr;  // times this, images x channels
  Index image_positions = 0;
  const Expansion* expansion = nullptr;  // makes the values, where they are not kept

  Source(const float* values) : values(values) {}
  Source(const float* values, const Norm& norm, Activation activation)
      : values(values), norm(&norm), activation(activation) {}

  bool plain() const { return !norm; }
  // So many rows of the values, `width` channels, which may be made in `space`.
  const float* rows(Index row, Index count, Index width, float* space) const;
};

// Calls visit(image, first row, count) for the parts of some rows that belong to one image each.
template <typename Visit>
void each_image(Index image_positions, Index row, Index rows, const Visit& visit) {
  for (const Index end = row + rows; row < end;) {
    const Index image = row / image_positions, count = std::min(end, (image + 1) * image_positions) - row;
    visit(image, row, count);
    row += count;
  }
}

// Writes rows of a source that has a norm to `to`, all `width` channels.
inline void read_rows(const Source& source, Index row, Index rows, Index width, float* to) {
  apply_norm(*source.norm, source.activation, source.values + row * width, to, rows, width, 0, width);
  if (!source.gate) return;
  each_image(source.image_positions, row, rows, [&](Index image, Index, Index count) {
    const float* gate = source.gate + image * width;
    for (; count > 0; --count, to += width)
      for (Index c = 0; c < width; c += kLanes) store(to + c, load(to + c) * load(gate + c));
  });
}

// mean[c] = the mean of act(norm(in)) over an image's positions, for channels first ... last - 1.
template <typename Act>
void mean_activated(const Norm& norm, const float* in, Index positions, Index first, Index last, float* mean) {
  std::fill(mean + first, mean + last, 0.0f);
  for (Index p = 0; p < positions; ++p, in += norm.width())
    for (Index c = first; c < last; c += kLanes)
      store(mean + c, load(mean + c) + Act::value(normed(norm, load(in + c), c)));
  for (Index c = first; c < last; c += kLanes)
    store(mean + c, load(mean + c) / broadcast(static_cast<float>(positions)));
}

// The tensors of a layer. Weights are MindSpore's: (out channels, in channels / groups, kernel, kernel).
struct Layer {
  Index images, in_height, in_width, in_channels;  // in_channels: as in the weight, not padded
  Index out_height, out_width, out_channels;
  Index kernel, stride;
  Index top, left;  // rows and columns of padding before the first

  Index positions() const { return images * out_height * out_width; }
};

// An expanding 1x1 convolution whose output is made wherever it is read, if it is `wanted`.
class Expansion {
 public:
  Expansion(bool wanted, const Layer& layer, const float* x, const float* weight)
      : x_(x),
        depth_(layer.in_channels),
        in_(padded(depth_)),
        out_(wanted ? padded(layer.out_channels) : 0),
        packed_(depth_ * out_) {
    for (Index column = 0; column < out_; column += kPanel)
      pack_panel(weight, 1, depth_, depth_, column, layer.out_channels, panel_width(column, out_),
                 packed_ + column * depth_);
  }

  void make(Index row, Index rows, float* to) const {
    Panels{packed_, depth_, out_}.multiply(Rows{x_ + row * in_, in_}, rows, 0, out_, to, out_);
  }

 private:
  const float* x_;
  Index depth_, in_, out_;
  Scratch packed_;
};

inline const float* Source::rows(Index row, Index count, Index width, float* space) const {
  if (!expansion) return values + row * width;
  expansion->make(row, count, space);
  return space;
}

// Padding before the first pixel: the half of TensorFlow's that is rounded down, or PyTorch's.
inline Index padding_before(Index in, Index out, Index kernel, Index stride, bool symmetric) {
  if (symmetric) return (kernel - 1) / 2;
  return std::max<Index>(0, (out - 1) * stride + kernel - in) / 2;
}

// Weight gradients are summed up in at most so many groups of tasks, whose sums are then added in their order.
constexpr Index kMostGroups = 16;

inline Index group_count(Index blocks) { return std::min(blocks, kMostGroups); }

// to[i] = the sum over the groups of partial[group * size + i].
inline void add_groups(const float* partial, Index groups, Index size, float* to) {
  constexpr Index step = 4096;
  parallel((size + step - 1) / step, [&](Index task) {
    const Index first = task * step, last = std::min(size, first + step);
    for (Index i = first; i < last; ++i) to[i] = partial[i];
    for (Index g = 1; g < groups; ++g)
      for (Index i = first; i < last; ++i) to[i] += partial[g * size + i];
  });
}

// y = the convolution, its mean and variance; moves the moving statistics on.
template <typename Kind>
void convolve_and_measure(const Layer& layer, const Kind& convolution, float momentum, float* y, float* mean,
                          float* variance, float* moving_mean, float* moving_variance) {
  const Index width = padded(layer.out_channels), positions = layer.positions();
  const Scratch means(width), variances(width);
  const BlockSums sums(convolution.blocks(), width);
  convolution.forward(y, [&](Index block, const float* rows, Index count, Index first, Index last) {
    block_moments(sums, block, rows, count, width, first, last);
  });
  combine_moments(sums, means, variances);
  // As in MindSpore's BatchNorm, the moving variance takes up the variance divided by one less than the count.
  const float unbiased = static_cast<float>(positions) / static_cast<float>(std::max<Index>(1, positions - 1));
  for (Index c = 0; c < layer.out_channels; ++c) {
    mean[c] = means[c];
    variance[c] = variances[c];
    moving_mean[c] = momentum * moving_mean[c] + (1.0f - momentum) * means[c];
    moving_variance[c] = momentum * moving_variance[c] + (1.0f - momentum) * variances[c] * unbiased;
  }
}

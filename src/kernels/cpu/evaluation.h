// An MBConv block in evaluation, as one operator. Norms are part of the weights. Image by image, the expanding and the
// depthwise convolution go down some channels together: of what lies between them, only the rows that a filter sees exist.
#pragma once

#include <optional>

#include "mbconv.h"

// A 1x1 convolution with its norm: packed weights, multiplied by the norm's scale, and what is added to the product.
class Folded {
 public:
  // `panel`: output channels of a panel, see gemm.h.
  Folded(const Layer& layer, const ConvNormTensors& tensors, const Norm& norm, Index panel)
      : width_(norm.width()), depth_(layer.in_channels), panel_(panel), packed_(depth_ * width_), shift_(width_) {
    parallel((width_ + panel - 1) / panel, [&](Index i) {
      const Index column = i * panel, width = std::min(panel, width_ - column);
      pack_panel(tensors.weight, 1, depth_, depth_, column, layer.out_channels, width, packed_ + column * depth_,
                 norm.scale());
    });
    shift_of(norm, shift_);
  }

  static void shift_of(const Norm& norm, float* to) {
    for (Index c = 0; c < norm.width(); c += kLanes)
      store(to + c, load(norm.beta() + c) - load(norm.mean() + c) * load(norm.scale() + c));
  }

  // The product for channels first ... last - 1, without the shift, to the beginning of out's rows.
  void multiply(const float* x, Index x_step, Index rows, Index first, Index last, float* out, Index out_step) const {
    multiply(packed_, x, x_step, rows, first, last, out, out_step);
  }
  void multiply(const float* packed, const float* x, Index x_step, Index rows, Index first, Index last, float* out,
                Index out_step) const {
    Panels{packed, depth_, width_, panel_}.multiply(Rows{x, x_step}, rows, first, last, out, out_step);
  }

  // The packed weights for inputs that have a gate.
  void gate(const float* gates, float* to) const {
    const float* from = packed_;
    for (Index column = 0; column < width_; column += panel_)
      for (Index k = 0; k < depth_; ++k)
        for (Index c = 0; c < std::min(panel_, width_ - column); c += kLanes, from += kLanes, to += kLanes)
          store(to, load(from) * broadcast(gates[k]));
  }

  Index floats() const { return depth_ * width_; }
  const float* shift() const { return shift_; }

 private:
  Index width_, depth_, panel_;
  Scratch packed_, shift_;
};

class MBConvEvaluation {
 public:
  // `moving`: the statistics of the norms.
  MBConvEvaluation(const MBConv& block, const MBConv::Weights& weights, const MBConv::Kept& moving)
      : layer_(block.depthwise),
        squeeze_(block.squeeze),
        gates_(weights.squeeze),
        activation_(block.settings.activation),
        squeezes_(block.squeezes),
        residual_(block.residual),
        wide_(padded(layer_.out_channels)),
        out_(padded(block.project.out_channels)),
        in_(block.expands ? padded(block.expand.in_channels) : wide_),
        taps_(layer_.kernel * layer_.kernel * wide_),
        shift_(wide_),
        project_(block.project, weights.project, block.norm(block.project, moving.project, weights.project), kPanel) {
    if (block.expands)
      expand_.emplace(block.expand, weights.expand, block.norm(block.expand, moving.expand, weights.expand),
                      std::min(kPanel, kChunk));
    const Norm second = block.norm(layer_, moving.depthwise, weights.depthwise);
    const Index size = layer_.kernel * layer_.kernel;
    for (Index c = 0; c < wide_; ++c)
      for (Index t = 0; t < size; ++t) {
        const float tap = c < layer_.out_channels ? weights.depthwise.weight[c * size + t] * second.scale()[c] : 0.0f;
        taps_[(c / kLanes * size + t) * kLanes + c % kLanes] = tap;
      }
    Folded::shift_of(second, shift_);
    const Index row = (layer_.in_width + layer_.kernel) * kChunk;
    rows_ = std::clamp<Index>((kKeptFloats / row - layer_.kernel) / layer_.stride + 1, 1, layer_.out_height);
  }

  // A thread takes whole images, where there are enough of them: it finds in its cache what it has left there.
  void run(const float* x, float* out) const {
    const Index images = layer_.images, after = layer_.out_height * layer_.out_width;
    const Index chunks = (wide_ + kChunk - 1) / kChunk, blocks = (after + kRows - 1) / kRows;
    const auto x_of = [&](Index image) { return x + image * layer_.in_height * layer_.in_width * in_; };
    const auto out_of = [&](Index image) { return out + image * after * out_; };
    if (images >= Pool::instance().threads()) {
      parallel(images, [&](Index image) {
        const Scratch y(after * wide_), means(wide_), gates(wide_);
        filter(x_of(image), 0, chunks, y, means);
        open_gates(means, gates);
        for (Index block = 0; block < blocks; ++block) project(y, gates, x_of(image), block, out_of(image));
      });
      return;
    }
    const Scratch y(images * after * wide_), means(images * wide_), gates(images * wide_);
    parallel(images * chunks, [&](Index task) {
      const Index image = task / chunks, chunk = task % chunks;
      filter(x_of(image), chunk, chunk + 1, y + image * after * wide_, means + image * wide_);
    });
    parallel(images, [&](Index image) { open_gates(means + image * wide_, gates + image * wide_); });
    parallel(images * blocks, [&](Index task) {
      const Index image = task / blocks;
      project(y + image * after * wide_, gates + image * wide_, x_of(image), task % blocks, out_of(image));
    });
  }

 private:
  // Of a chunk's kept rows, so that they stay in the first cache, and of all that are kept at once, in the second.
  static constexpr Index kKeptFloats = 10240, kMostKeptFloats = 49152;
  // Positions that are expanded at once, and projected.
  static constexpr Index kPositions = 192, kRows = 192;

  // What the projection reads of an image, before the gates, for chunks first ... last - 1; and its means.
  void filter(const float* x, Index first, Index last, float* y, float* means) const {
    const Index kept = (rows_ - 1) * layer_.stride + layer_.kernel;
    const Index right = (layer_.out_width - 1) * layer_.stride - layer_.left + layer_.kernel - layer_.in_width;
    const Index group = std::clamp<Index>(kMostKeptFloats / (kept * layer_.in_width * kChunk), 1, last - first);
    const KeptRows in(kept, layer_.in_height, layer_.in_width, layer_.left, std::max<Index>(0, right), group * kChunk);
    const Index step = std::max<Index>(1, kPositions / layer_.in_width);
    const Scratch space(std::max(step * layer_.in_width, rows_ * layer_.out_width) * kChunk);
    std::fill(means + first * kChunk, means + std::min(wide_, last * kChunk), 0.0f);
    dispatch(activation_, [&](auto act) {
      using Act = decltype(act);
      for (; first < last; first += group) {
        const Index end = std::min(last, first + group);
        for (Index top = 0, read = 0; top < layer_.out_height; top += rows_) {
          const Index bottom = std::min(layer_.out_height, top + rows_);
          const Index seen = std::min(layer_.in_height, top_of(bottom - 1) + layer_.kernel);
          for (Index chunk = first; chunk < end; ++chunk) {
            const Index channel = chunk * kChunk, place = (chunk - first) * in.chunk_step();
            // The last chunk may be a half.
            const auto advance = [&](auto vectors) {
              for (Index row = read; row < seen; row += step)
                fill<Act, vectors>(x, row, std::min(step, seen - row), channel, space, in, place);
              convolve<Act, vectors>(in, place, top, bottom, channel, space, y, means);
            };
            if (wide_ - channel >= kChunk) {
              advance(std::integral_constant<int, kChunk / kLanes>());
            } else {
              advance(std::integral_constant<int, kChannelBlock / kLanes>());
            }
          }
          read = std::max(read, seen);
        }
      }
    });
  }

  // First row of input that an output sees.
  Index top_of(Index row) const { return row * layer_.stride - layer_.top; }

  // Rows of what the depthwise convolution reads, for the chunk that begins with a channel and has so many vectors.
  template <typename Act, int vectors>
  void fill(const float* x, Index row, Index rows, Index channel, float* space, const KeptRows& in, Index place) const {
    const Index width = layer_.in_width;
    x += row * width * in_;
    if (expand_) expand_->multiply(x, in_, rows * width, channel, channel + vectors * kLanes, space, kChunk);
    for (Index r = row; r < row + rows; ++r) {
      float* to = in.row(r) + place;
      if (expand_) {
        const float* shift = expand_->shift() + channel;
        for (Index w = 0; w < width; ++w, space += kChunk, to += kChunk)
#pragma GCC unroll 8
          for (Index v = 0; v < vectors * kLanes; v += kLanes) store(to + v, Act::value(load(space + v) + load(shift + v)));
      } else {
        for (Index w = 0; w < width; ++w, x += in_, to += kChunk)
#pragma GCC unroll 8
          for (Index v = 0; v < vectors * kLanes; v += kLanes) store(to + v, load(x + channel + v));
      }
    }
  }

  // The depthwise convolution for rows top ... bottom - 1 and these channels; adds what it gives to `means`.
  template <typename Act, int vectors>
  void convolve(const KeptRows& in, Index place, Index top, Index bottom, Index channel, float* space, float* y,
                float* means) const {
    const Index kernel = layer_.kernel, width = layer_.out_width;
    const Vector* taps = reinterpret_cast<const Vector*>(taps_ + channel * kernel * kernel);
    const float* rows[kMostRows];
    for (Index v = 0; v < vectors; ++v)
      for (Index h = top; h < bottom; ++h) {
        for (Index r = 0; r < kernel; ++r)
          rows[r] = in.seen(top_of(h) + r) + place - layer_.left * kChunk + v * kLanes;
        correlate(kernel, kernel, rows, layer_.stride * kChunk, taps + v * kernel * kernel, width,
                  space + (h - top) * width * kChunk + v * kLanes, kChunk);
      }
    const float* shift = shift_ + channel;
    Vector sums[vectors] = {};
    y += top * width * wide_ + channel;
    for (Index p = 0; p < (bottom - top) * width; ++p, space += kChunk, y += wide_)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const Vector value = Act::value(load(space + v * kLanes) + load(shift + v * kLanes));
        sums[v] += value;
        store(y + v * kLanes, value);
      }
    const Vector positions = broadcast(static_cast<float>(layer_.out_height * width));
    for (int v = 0; v < vectors; ++v) {
      float* mean = means + channel + v * kLanes;
      store(mean, load(mean) + sums[v] / positions);
    }
  }

  void open_gates(const float* means, float* gates) const {
    if (!squeezes_) return;
    const Scratch hidden(squeeze_.squeezed);
    dispatch(activation_, [&](auto act) {
      squeeze_.excite<decltype(act)>(gates_.reduce, gates_.reduce_bias, gates_.expand, gates_.expand_bias, means, hidden,
                                     gates);
    });
  }

  // A block of an image's positions.
  void project(const float* y, const float* gates, const float* x, Index block, float* out) const {
    const Index row = block * kRows, rows = std::min(kRows, layer_.out_height * layer_.out_width - row);
    y += row * wide_, out += row * out_, x += row * out_;
    if (!squeezes_) {
      project_.multiply(y, wide_, rows, 0, out_, out, out_);
    } else if (rows > 2 * out_) {
      // The weights are fewer than the values.
      const Scratch packed(project_.floats());
      project_.gate(gates, packed);
      project_.multiply(packed, y, wide_, rows, 0, out_, out, out_);
    } else {
      const Scratch gated(rows * wide_);
      float* to = gated;
      for (Index r = 0; r < rows; ++r, y += wide_, to += wide_)
        for (Index c = 0; c < wide_; c += kLanes) store(to + c, load(y + c) * load(gates + c));
      project_.multiply(gated, wide_, rows, 0, out_, out, out_);
    }
    for (Index r = 0; r < rows; ++r, out += out_, x += out_)
      for (Index c = 0; c < out_; c += kLanes) {
        const Vector value = load(out + c) + load(project_.shift() + c);
        store(out + c, residual_ ? value + load(x + c) : value);
      }
  }

  const Layer& layer_;  // the depthwise convolution
  const Squeeze& squeeze_;
  SqueezeTensors gates_;
  Activation activation_;
  bool squeezes_, residual_;
  Index wide_, out_, in_;  // channels, padded
  Scratch taps_, shift_;
  std::optional<Folded> expand_;
  Folded project_;
  Index rows_;  // of output, that are made at once
};

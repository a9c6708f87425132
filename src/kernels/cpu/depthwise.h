// Depthwise convolution: a filter of its own for every channel.
//
// A task takes a band of rows of an image and copies it, some channels at a time, into a small block with zeros around it.
// There every pixel has the same form of neighbourhood, and its channels lie side by side for vectors.
#pragma once

#include "convolution.h"

// Channels of a block; a constant, so that the distance between pixels is known to the compiler.
constexpr Index kChunk = 2 * kChannelBlock;

// out[j] = sum over the taps of in[row * row_step + j * step + column * kChunk] * weights[row * columns + column].
template <int rows, int columns>
void correlate(const float* in, Index row_step, Index step, const Vector* weights, Index count, float* out,
               Index out_step) {
  Vector taps[rows * columns];
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) taps[t] = weights[t];
  Index j = 0;
  // Two pixels at once hide the latency of the additions.
  for (; j + 2 <= count; j += 2, in += 2 * step, out += 2 * out_step) {
    Vector left = {}, right = {};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        left += load(in + r * row_step + c * kChunk) * taps[r * columns + c];
        right += load(in + step + r * row_step + c * kChunk) * taps[r * columns + c];
      }
    store(out, left);
    store(out + out_step, right);
  }
  if (j < count) {
    Vector sum = {};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum += load(in + r * row_step + c * kChunk) * taps[r * columns + c];
    store(out, sum);
  }
}

inline void correlate_any(Index rows, Index columns, const float* in, Index row_step, Index step,
                          const Vector* weights, Index count, float* out, Index out_step) {
  for (Index j = 0; j < count; ++j) {
    Vector sum = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c)
        sum += load(in + j * step + r * row_step + c * kChunk) * weights[r * columns + c];
    store(out + j * out_step, sum);
  }
}

// The network's kernels are 3 and 5; with stride 2 a pixel's gradient comes from every second tap of them.
inline void correlate(Index rows, Index columns, const float* in, Index row_step, Index step, const Vector* weights,
                      Index count, float* out, Index out_step) {
  switch (rows * 16 + columns) {
    case 0x11:
      return correlate<1, 1>(in, row_step, step, weights, count, out, out_step);
    case 0x12:
      return correlate<1, 2>(in, row_step, step, weights, count, out, out_step);
    case 0x21:
      return correlate<2, 1>(in, row_step, step, weights, count, out, out_step);
    case 0x22:
      return correlate<2, 2>(in, row_step, step, weights, count, out, out_step);
    case 0x23:
      return correlate<2, 3>(in, row_step, step, weights, count, out, out_step);
    case 0x32:
      return correlate<3, 2>(in, row_step, step, weights, count, out, out_step);
    case 0x33:
      return correlate<3, 3>(in, row_step, step, weights, count, out, out_step);
    case 0x55:
      return correlate<5, 5>(in, row_step, step, weights, count, out, out_step);
    default:
      return correlate_any(rows, columns, in, row_step, step, weights, count, out, out_step);
  }
}

// sums[row * columns + column] += sum over a band of gradient[h, j] * in[h * stride + row, j * stride + column].
template <int rows, int columns>
void correlate_gradient(const float* in, Index in_row_step, const float* gradient, Index row_step, Index stride,
                        Index height, Index count, float* sums, Index sums_step) {
  Vector sum[rows * columns];
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) sum[t] = load(sums + t * sums_step);
  for (Index h = 0; h < height; ++h) {
    const float* x = in + h * stride * in_row_step;
    const float* g = gradient + h * row_step;
    for (Index j = 0; j < count; ++j, x += stride * kChunk, g += kChunk) {
      const Vector upper = load(g);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) sum[r * columns + c] += upper * load(x + r * in_row_step + c * kChunk);
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) store(sums + t * sums_step, sum[t]);
}

inline void correlate_gradient(Index kernel, const float* in, Index in_row_step, const float* gradient,
                               Index row_step, Index stride, Index height, Index count, float* sums,
                               Index sums_step) {
#if VECTOR_BYTES == 64
  // All sums of a filter stay in registers.
  if (kernel == 3)
    return correlate_gradient<3, 3>(in, in_row_step, gradient, row_step, stride, height, count, sums, sums_step);
  if (kernel == 5)
    return correlate_gradient<5, 5>(in, in_row_step, gradient, row_step, stride, height, count, sums, sums_step);
#endif
  for (Index r = 0; r < kernel; ++r) {
    const float* x = in + r * in_row_step;
    float* to = sums + r * kernel * sums_step;
    if (kernel == 3) {
      correlate_gradient<1, 3>(x, in_row_step, gradient, row_step, stride, height, count, to, sums_step);
    } else if (kernel == 5) {
      correlate_gradient<1, 5>(x, in_row_step, gradient, row_step, stride, height, count, to, sums_step);
    } else {
      for (Index c = 0; c < kernel; ++c)
        correlate_gradient<1, 1>(x + c * kChunk, in_row_step, gradient, row_step, stride, height, count,
                                 to + c * sums_step, sums_step);
    }
  }
}

// A part of an image, some channels of it, with zeros where it reaches beyond the image.
class Window {
 public:
  // Rows top ... bottom - 1 and columns left ... right - 1, which may lie outside of the image.
  Window(Index top, Index bottom, Index left, Index right) : top_(top), bottom_(bottom), left_(left), right_(right) {}

  static Index floats(Index rows, Index columns) { return rows * columns * kChunk; }
  Index row_step() const { return (right_ - left_) * kChunk; }
  Index floats() const { return floats(bottom_ - top_, right_ - left_); }
  const float* at(const float* block, Index row, Index column) const {
    return block + (row - top_) * row_step() + (column - left_) * kChunk;
  }

  // fill(row, to): writes row `row` of the image, columns 0 ... width - 1, to `to`.
  template <typename Fill>
  void copy(Index height, Index width, const Fill& fill, float* block) const {
    for (Index row = top_; row < bottom_; ++row) {
      float* to = block + (row - top_) * row_step();
      if (row < 0 || row >= height) {
        std::memset(to, 0, sizeof(float) * row_step());
        continue;
      }
      std::memset(to, 0, sizeof(float) * -left_ * kChunk);
      fill(row, to - left_ * kChunk);
      std::memset(to + (width - left_) * kChunk, 0, sizeof(float) * (right_ - width) * kChunk);
    }
  }

 private:
  Index top_, bottom_, left_, right_;
};

inline Index floor_divide(Index a, Index b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline Index ceil_divide(Index a, Index b) { return -floor_divide(-a, b); }

class Depthwise {
 public:
  Depthwise(const Layer& layer, const float* x, const float* weight)
      : layer_(layer), x_(x), width_(padded(layer.out_channels)), taps_(layer.kernel * layer.kernel * width_) {
    // Rows of output of a band: its block of input takes about 200 kB.
    const Index columns = (layer.out_width - 1) * layer.stride + layer.kernel;
    const Index rows = 49152 / (columns * kChunk);
    band_ = std::clamp<Index>((rows - layer.kernel) / layer.stride + 1, 1, layer.out_height);
    bands_ = (layer.out_height + band_ - 1) / band_;
    const Index size = layer.kernel * layer.kernel;
    std::memset(taps_.data(), 0, sizeof(float) * size * width_);
    for (Index c = 0; c < layer.out_channels; ++c)
      for (Index t = 0; t < size; ++t) taps_[t * width_ + c] = weight[c * size + t];
  }

  Index blocks() const { return layer_.images * bands_; }

  // As Pointwise::forward.
  template <typename Finish>
  void forward(float* y, const Finish& finish) const {
    parallel(blocks(), [&](Index block) {
      const Band band = this->band(block);
      const Window window = input_window(band);
      const Scratch in(window.floats()), weights(filter_floats());
      float* to = y + (band.image * layer_.out_height + band.first) * layer_.out_width * width_;
      for (Index first = 0; first < width_; first += kChunk) {
        const Index last = std::min(width_, first + kChunk);
        copy_input(window, band.image, first, last, in);
        for (Index c = first; c < last; c += kLanes) {
          forward_channels(band, window, in + (c - first), c, weights, to + c);
        }
        finish(block, to, (band.last - band.first) * layer_.out_width, first, last);
      }
    });
  }

  // As Pointwise::backward; `write(row, rows, first, last, to)` writes channels first ... last - 1 of the gradient of y,
  // for a row of pixels, kChunk apart.
  template <typename OutputGradient>
  void backward(const OutputGradient& output_gradient, float* x_gradient, float* weight_gradient) const {
    const Index groups = group_count(blocks()), size = layer_.kernel * layer_.kernel;
    const Scratch partial(groups * size * width_);
    parallel(groups, [&](Index group) {
      float* sums = partial + group * size * width_;
      std::memset(sums, 0, sizeof(float) * size * width_);
      for (Index block = blocks() * group / groups; block < blocks() * (group + 1) / groups; ++block)
        backward_block(band(block), output_gradient, x_gradient, sums);
    });
    const Scratch sum(size * width_);
    add_groups(partial, groups, size * width_, sum);
    for (Index c = 0; c < layer_.out_channels; ++c)
      for (Index t = 0; t < size; ++t) weight_gradient[c * size + t] = sum[t * width_ + c];
  }

 private:
  struct Band {
    Index image, first, last;  // rows of output
  };

  Band band(Index block) const {
    const Index first = block % bands_ * band_;
    return {block / bands_, first, std::min(layer_.out_height, first + band_)};
  }

  // What the band's outputs see.
  Window input_window(const Band& band) const {
    const Index top = band.first * layer_.stride - layer_.top;
    const Index right = (layer_.out_width - 1) * layer_.stride - layer_.left + layer_.kernel;
    return {top, (band.last - 1) * layer_.stride - layer_.top + layer_.kernel, -layer_.left,
            std::max(layer_.in_width, right)};
  }

  void copy_input(const Window& window, Index image, Index first, Index last, float* block) const {
    window.copy(
        layer_.in_height, layer_.in_width,
        [&](Index row, float* to) {
          const float* from = x_ + (image * layer_.in_height + row) * layer_.in_width * width_;
          for (Index w = 0; w < layer_.in_width; ++w, from += width_, to += kChunk)
            for (Index c = first; c < last; c += kLanes) store(to + c - first, load(from + c));
        },
        block);
  }

  // A filter for as many channels as a vector has.
  Index filter_floats() const { return layer_.kernel * layer_.kernel * kLanes; }

  // `space`: of filter_floats().
  void forward_channels(const Band& band, const Window& window, const float* in, Index channel, float* space,
                        float* to) const {
    const Index kernel = layer_.kernel;
    Vector* weights = reinterpret_cast<Vector*>(space);
    for (Index t = 0; t < kernel * kernel; ++t) weights[t] = load(taps_ + t * width_ + channel);
    for (Index h = band.first; h < band.last; ++h, to += layer_.out_width * width_)
      correlate(kernel, kernel, window.at(in, h * layer_.stride - layer_.top, -layer_.left), window.row_step(),
                layer_.stride * kChunk, weights, layer_.out_width, to, width_);
  }

  template <typename OutputGradient>
  void backward_block(const Band& band, const OutputGradient& output_gradient, float* x_gradient, float* sums) const {
    const Index stride = layer_.stride, kernel = layer_.kernel;
    // Rows of input whose gradient this band makes, and the outputs that saw them.
    const Index first_row = band.first * stride, last_row = std::min(layer_.in_height, band.last * stride);
    const Window upper(ceil_divide(first_row + layer_.top - kernel + 1, stride),
                       floor_divide(last_row - 1 + layer_.top, stride) + 1,
                       ceil_divide(layer_.left - kernel + 1, stride),
                       std::max(layer_.out_width, floor_divide(layer_.in_width - 1 + layer_.left, stride) + 1));
    const Window window = input_window(band);
    const Scratch in(window.floats()), gradient(upper.floats()), weights(filter_floats());
    for (Index first = 0; first < width_; first += kChunk) {
      const Index last = std::min(width_, first + kChunk);
      copy_input(window, band.image, first, last, in);
      upper.copy(
          layer_.out_height, layer_.out_width,
          [&](Index row, float* to) {
            output_gradient((band.image * layer_.out_height + row) * layer_.out_width, layer_.out_width, first, last,
                            to);
          },
          gradient);
      for (Index c = first; c < last; c += kLanes) {
        correlate_gradient(kernel, in + (c - first), window.row_step(),
                           upper.at(gradient + (c - first), band.first, 0), upper.row_step(), stride,
                           band.last - band.first, layer_.out_width, sums + c, width_);
        for (Index row = first_row; row < last_row; ++row)
          backward_row(row, upper, gradient + (c - first), c, weights,
                       x_gradient + (band.image * layer_.in_height + row) * layer_.in_width * width_ + c);
      }
    }
  }

  // The gradient of a row of input. The taps that reach a pixel from whole outputs are every stride-th, beginning with
  // the one that belongs to the first of these outputs. `space`: of filter_floats().
  void backward_row(Index row, const Window& upper, const float* gradient, Index channel, float* space,
                    float* to) const {
    const Index stride = layer_.stride, kernel = layer_.kernel;
    Vector* weights = reinterpret_cast<Vector*>(space);
    const Index rows = taps_at(row + layer_.top), top = last_tap(row + layer_.top);
    for (Index start = 0; start < std::min(stride, layer_.in_width); ++start) {
      const Index columns = taps_at(start + layer_.left), left = last_tap(start + layer_.left);
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < columns; ++c)
          weights[r * columns + c] = load(taps_ + ((top - r * stride) * kernel + left - c * stride) * width_ + channel);
      const Index count = (layer_.in_width - start + stride - 1) / stride;
      const float* from = rows && columns ? upper.at(gradient, (row + layer_.top - top) / stride,
                                                     floor_divide(start + layer_.left - left, stride))
                                          : gradient;
      correlate(rows, columns, from, upper.row_step(), kChunk, weights, count, to + start * width_, stride * width_);
    }
  }

  // Of the taps t with t = position (mod stride) and t < kernel: how many, and the last.
  Index taps_at(Index position) const {
    const Index first = position % layer_.stride;
    return first < layer_.kernel ? (layer_.kernel - 1 - first) / layer_.stride + 1 : 0;
  }
  Index last_tap(Index position) const {
    return position % layer_.stride + (taps_at(position) - 1) * layer_.stride;
  }

  Layer layer_;
  const float* x_;
  Index width_;
  Scratch taps_;
  Index band_, bands_;
};

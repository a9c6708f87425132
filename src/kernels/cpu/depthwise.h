// Depthwise convolution: a filter of its own for every channel.
//
// A task goes down some rows of an image and keeps, of what it reads, the rows that a filter sees at once. There each
// channel's filter finds pixels at constant distances, and zeros around the image.
#pragma once

#include "convolution.h"

// Channels that lie side by side in kept rows; a constant, so that the distance between pixels is known to the compiler.
constexpr Index kChunk = 2 * kChannelBlock;
// The largest kernel has so many.
constexpr Index kMostRows = 32;

// out[j] = sum over the taps of in[row][j * step + column * kChunk] * weights[row * columns + column].
template <int rows, int columns>
void correlate(const float* const* in, Index step, const Vector* weights, Index count, float* out, Index out_step) {
  Vector taps[rows * columns];
  const float* from[rows];
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) taps[t] = weights[t];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) from[r] = in[r];
  Index j = 0, at = 0;
  // Two pixels at once hide the latency of the additions.
  for (; j + 2 <= count; j += 2, at += 2 * step, out += 2 * out_step) {
    Vector left = {}, right = {};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        left += load(from[r] + at + c * kChunk) * taps[r * columns + c];
        right += load(from[r] + at + step + c * kChunk) * taps[r * columns + c];
      }
    store(out, left);
    store(out + out_step, right);
  }
  if (j < count) {
    Vector sum = {};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum += load(from[r] + at + c * kChunk) * taps[r * columns + c];
    store(out, sum);
  }
}

inline void correlate_any(Index rows, Index columns, const float* const* in, Index step, const Vector* weights,
                          Index count, float* out, Index out_step) {
  for (Index j = 0; j < count; ++j) {
    Vector sum = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < columns; ++c) sum += load(in[r] + j * step + c * kChunk) * weights[r * columns + c];
    store(out + j * out_step, sum);
  }
}

// The network's kernels are 3 and 5; with stride 2 a pixel's gradient comes from every second tap of them.
inline void correlate(Index rows, Index columns, const float* const* in, Index step, const Vector* weights, Index count,
                      float* out, Index out_step) {
  switch (rows * 16 + columns) {
    case 0x11:
      return correlate<1, 1>(in, step, weights, count, out, out_step);
    case 0x12:
      return correlate<1, 2>(in, step, weights, count, out, out_step);
    case 0x21:
      return correlate<2, 1>(in, step, weights, count, out, out_step);
    case 0x22:
      return correlate<2, 2>(in, step, weights, count, out, out_step);
    case 0x23:
      return correlate<2, 3>(in, step, weights, count, out, out_step);
    case 0x32:
      return correlate<3, 2>(in, step, weights, count, out, out_step);
    case 0x33:
      return correlate<3, 3>(in, step, weights, count, out, out_step);
    case 0x55:
      return correlate<5, 5>(in, step, weights, count, out, out_step);
    default:
      return correlate_any(rows, columns, in, step, weights, count, out, out_step);
  }
}

// sums[row * columns + column] += sum over a row's pixels of gradient[j] * in[row][j * step + column * kChunk].
template <int rows, int columns>
void correlate_gradient(const float* const* in, Index step, const float* gradient, Index count, float* sums,
                        Index sums_step) {
  Vector sum[rows * columns];
  const float* from[rows];
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) sum[t] = load(sums + t * sums_step);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) from[r] = in[r];
  for (Index j = 0, at = 0; j < count; ++j, at += step, gradient += kChunk) {
    const Vector upper = load(gradient);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r * columns + c] += upper * load(from[r] + at + c * kChunk);
  }
#pragma GCC unroll 32
  for (int t = 0; t < rows * columns; ++t) store(sums + t * sums_step, sum[t]);
}

inline void correlate_gradient(Index kernel, const float* const* in, Index step, const float* gradient, Index count,
                               float* sums, Index sums_step) {
#if VECTOR_BYTES == 64
  // All sums of a filter stay in registers.
  if (kernel == 3) return correlate_gradient<3, 3>(in, step, gradient, count, sums, sums_step);
  if (kernel == 5) return correlate_gradient<5, 5>(in, step, gradient, count, sums, sums_step);
#endif
  for (Index r = 0; r < kernel; ++r) {
    float* to = sums + r * kernel * sums_step;
    if (kernel == 3) {
      correlate_gradient<1, 3>(in + r, step, gradient, count, to, sums_step);
    } else if (kernel == 5) {
      correlate_gradient<1, 5>(in + r, step, gradient, count, to, sums_step);
    } else {
      for (Index c = 0; c < kernel; ++c) {
        const float* tap = in[r] + c * kChunk;
        correlate_gradient<1, 1>(&tap, step, gradient, count, to + c * sums_step, sums_step);
      }
    }
  }
}

inline Index floor_divide(Index a, Index b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline Index ceil_divide(Index a, Index b) { return -floor_divide(-a, b); }

// The rows of an image that were read last, chunk by chunk, with zeros around the image.
class KeptRows {
 public:
  // `before`, `after`: columns of zeros; `planes`: tensors of this form.
  KeptRows(Index kept, Index height, Index columns, Index before, Index after, Index width, int planes = 1)
      : kept_(kept),
        height_(height),
        planes_(planes),
        before_(before * kChunk),
        // An odd number of cache lines, so that chunks do not get into each other's way in the cache.
        chunk_step_((before + columns + after) * kChunk + kChannelBlock),
        row_step_((width + kChunk - 1) / kChunk * chunk_step_),
        values_((planes * kept + 1) * row_step_) {
    const Index end = (before + columns) * kChunk;
    for (Index chunk = 0; chunk < kept * row_step_; chunk += chunk_step_) {
      std::memset(values_ + chunk, 0, sizeof(float) * before_);
      std::memset(values_ + chunk + end, 0, sizeof(float) * after * kChunk);
    }
    std::memset(values_ + planes * kept * row_step_, 0, sizeof(float) * row_step_);
    outside_ = values_ + planes * kept * row_step_ + before_;
  }

  Index chunk_step() const { return chunk_step_; }
  int planes() const { return planes_; }
  Index plane_step() const { return kept_ * row_step_; }
  // Column 0 of a row of the image.
  float* row(Index row) const { return values_ + row % kept_ * row_step_ + before_; }
  // The same, and zeros above and below the image.
  const float* seen(Index row) const { return row < 0 || row >= height_ ? outside_ : this->row(row); }

 private:
  Index kept_, height_;
  int planes_;
  Index before_, chunk_step_, row_step_;
  Scratch values_;
  const float* outside_;
};

class Depthwise {
 public:
  Depthwise(const Layer& layer, const Source& source, const float* weight)
      : layer_(layer), source_(source), width_(padded(layer.out_channels)), taps_(layer.kernel * layer.kernel * width_) {
    // Rows of output of a block: what it reads takes about 150 kB.
    const Index row = layer.in_width * width_;
    block_rows_ = std::clamp<Index>((40960 / row - layer.kernel) / layer.stride + 1, 1, layer.out_height);
    image_blocks_ = (layer.out_height + block_rows_ - 1) / block_rows_;
    const Index size = layer.kernel * layer.kernel;
    std::memset(taps_.data(), 0, sizeof(float) * size * width_);
    for (Index c = 0; c < layer.out_channels; ++c)
      for (Index t = 0; t < size; ++t) taps_[t * width_ + c] = weight[c * size + t];
  }

  Index blocks() const { return layer_.images * image_blocks_; }

  // As Pointwise::forward.
  template <typename Finish>
  void forward(float* y, const Finish& finish) const {
    in_groups(std::max<Index>(layer_.images, 64), [&](Index begin, Index end, Index) {
      const KeptRows in = kept_input(1);
      const Scratch weights(filter_floats() + made_floats());
      float* line = weights + filter_floats();
      Index loaded = 0;  // rows of the image in front of this one were read
      for (Index b = begin; b < end; ++b) {
        const Block block = this->block(b, b == begin);
        load_input(block, in, loaded, line);
        float* to = y + (block.image * layer_.out_height + block.first) * layer_.out_width * width_;
        for (Index c = 0; c < width_; c += kLanes) forward_channels(block, in, c, weights, to + c);
        finish(b, to, (block.last - block.first) * layer_.out_width, 0, width_);
      }
    });
  }

  // As Pointwise::backward; output_gradient(row, rows, to, chunk_step) writes the gradient of y for a row of pixels, chunk
  // by chunk. Of a source with a norm, x_gradient is the gradient of the norm's output, and `sums` takes up that and its
  // products with the normalised values, over blocks.
  template <typename OutputGradient>
  void backward(const OutputGradient& output_gradient, float* x_gradient, float* weight_gradient,
                const BlockSums* sums = nullptr) const {
    const Index groups = group_count(blocks()), size = layer_.kernel * layer_.kernel;
    const Scratch partial(groups * size * width_);
    in_groups(groups, [&](Index begin, Index end, Index group) {
      const KeptRows in = kept_input(source_.plain() ? 1 : 2), upper = kept_gradient(), made = made_gradient();
      const Scratch weights(filter_floats() + made_floats());
      float* line = weights + filter_floats();
      float* weight_sums = partial + group * size * width_;
      std::memset(weight_sums, 0, sizeof(float) * size * width_);
      Index loaded = 0, known = 0;
      for (Index b = begin; b < end; ++b) {
        const Block block = this->block(b, b == begin);
        load_input(block, in, loaded, line);
        known = block.fresh ? std::max<Index>(0, block.first - reach()) : known;
        for (; known < block.last; ++known)
          output_gradient((block.image * layer_.out_height + known) * layer_.out_width, layer_.out_width,
                          upper.row(known), upper.chunk_step());
        for (Index c = 0; c < width_; c += kLanes) {
          weight_channels(block, in, upper, c, weight_sums + c);
          backward_channels(block, upper, c, weights, made);
        }
        finish_gradient(block, in, made, b, x_gradient, sums, line);
      }
    });
    const Scratch sum(size * width_);
    add_groups(partial, groups, size * width_, sum);
    for (Index c = 0; c < layer_.out_channels; ++c)
      for (Index t = 0; t < size; ++t) weight_gradient[c * size + t] = sum[t * width_ + c];
  }

 private:
  struct Block {
    Index image, first, last;  // rows of output
    bool fresh;                // nothing of the image has been read
  };

  Block block(Index number, bool fresh) const {
    const Index first = number % image_blocks_ * block_rows_;
    return {number / image_blocks_, first, std::min(layer_.out_height, first + block_rows_), fresh || first == 0};
  }

  // Calls task(first block, end, group) for at most so many groups of blocks.
  template <typename Task>
  void in_groups(Index most, const Task& task) const {
    const Index groups = std::min(most, blocks());
    parallel(groups, [&](Index group) { task(blocks() * group / groups, blocks() * (group + 1) / groups, group); });
  }

  // First row of input that an output sees.
  Index top_of(Index row) const { return row * layer_.stride - layer_.top; }
  // Rows of input whose gradient a block makes: those whose last output is in it, or behind the image's last.
  Index made_first(const Block& block) const { return std::max<Index>(0, top_of(block.first)); }
  Index made_end(const Block& block) const {
    return block.last == layer_.out_height ? layer_.in_height : std::min(layer_.in_height, top_of(block.last));
  }
  // Outputs above an output that see its first row of input.
  Index reach() const { return (layer_.kernel - 1) / layer_.stride; }

  KeptRows kept_input(int planes) const {
    const Index right = (layer_.out_width - 1) * layer_.stride - layer_.left + layer_.kernel;
    return {(block_rows_ - 1) * layer_.stride + layer_.kernel, layer_.in_height, layer_.in_width, layer_.left,
            std::max<Index>(0, right - layer_.in_width), width_, planes};
  }
  KeptRows kept_gradient() const {
    const Index left = reach(), right = floor_divide(layer_.in_width - 1 + layer_.left, layer_.stride) + 1;
    return {block_rows_ + reach(), layer_.out_height, layer_.out_width, left,
            std::max<Index>(0, right - layer_.out_width), width_};
  }
  KeptRows made_gradient() const {
    return {block_rows_ * layer_.stride + layer_.kernel, layer_.in_height, layer_.in_width, 0, 0, width_};
  }

  // Reads what the block's outputs see and was not read yet. Of a source with a norm that is its activation, and in the
  // second plane, if there is one, the activation's derivative.
  void load_input(const Block& block, const KeptRows& in, Index& loaded, float* line) const {
    if (block.fresh) loaded = std::max<Index>(0, top_of(block.first));
    const Index end = std::min(layer_.in_height, top_of(block.last - 1) + layer_.kernel);
    for (; loaded < end; ++loaded) {
      const Index row = (block.image * layer_.in_height + loaded) * layer_.in_width;
      const float* from = source_.rows(row, layer_.in_width, width_, line);
      float* to = in.row(loaded);
      if (source_.plain()) {
        each_vector(layer_.in_width, in, [&](Index at, Index, Index place) { store(to + place, load(from + at)); });
        continue;
      }
      const auto normalised = [&](Index at, Index c) { return normed(*source_.norm, load(from + at), c); };
      dispatch(source_.activation, [&](auto act) {
        using Act = decltype(act);
        if (in.planes() == 1)
          return each_vector(layer_.in_width, in, [&](Index at, Index c, Index place) {
            store(to + place, Act::value(normalised(at, c)));
          });
        each_vector(layer_.in_width, in, [&](Index at, Index c, Index place) {
          const ValueAndSlope both = Act::both(normalised(at, c));
          store(to + place, both.value);
          store(to + place + in.plane_step(), both.slope);
        });
      });
    }
  }

  // Calls visit(place in a tensor's row, channel, place in a kept row) for each vector of a row of pixels.
  template <typename Visit>
  void each_vector(Index columns, const KeptRows& rows, const Visit& visit) const {
    for (Index w = 0, at = 0; w < columns; ++w)
      for (Index first = 0, place = w * kChunk; first < width_; first += kChunk, place += rows.chunk_step())
        for (Index c = first; c < std::min(width_, first + kChunk); c += kLanes, at += kLanes)
          visit(at, c, place + c - first);
  }

  static Index place_of(Index channel, const KeptRows& rows) {
    return channel / kChunk * rows.chunk_step() + channel % kChunk;
  }

  // A row of what is read, where it is made.
  Index made_floats() const { return source_.expansion ? layer_.in_width * width_ : 0; }
  // A filter for as many channels as a vector has.
  Index filter_floats() const { return layer_.kernel * layer_.kernel * kLanes; }

  // `space`: of filter_floats().
  void forward_channels(const Block& block, const KeptRows& in, Index channel, float* space, float* to) const {
    const Index kernel = layer_.kernel, place = place_of(channel, in) - layer_.left * kChunk;
    Vector* weights = reinterpret_cast<Vector*>(space);
    for (Index t = 0; t < kernel * kernel; ++t) weights[t] = load(taps_ + t * width_ + channel);
    const float* rows[kMostRows];
    for (Index h = block.first; h < block.last; ++h, to += layer_.out_width * width_) {
      for (Index r = 0; r < kernel; ++r) rows[r] = in.seen(top_of(h) + r) + place;
      correlate(kernel, kernel, rows, layer_.stride * kChunk, weights, layer_.out_width, to, width_);
    }
  }

  void weight_channels(const Block& block, const KeptRows& in, const KeptRows& upper, Index channel, float* sums) const {
    const Index place = place_of(channel, in) - layer_.left * kChunk;
    const float* rows[kMostRows];
    for (Index h = block.first; h < block.last; ++h) {
      for (Index r = 0; r < layer_.kernel; ++r) rows[r] = in.seen(top_of(h) + r) + place;
      correlate_gradient(layer_.kernel, rows, layer_.stride * kChunk, upper.row(h) + place_of(channel, upper),
                         layer_.out_width, sums, width_);
    }
  }

  // The gradient of what was read. The taps that reach a pixel from whole outputs are every stride-th, beginning with the
  // one that belongs to the first of these outputs. `space`: of filter_floats().
  void backward_channels(const Block& block, const KeptRows& upper, Index channel, float* space,
                         const KeptRows& made) const {
    const Index stride = layer_.stride, kernel = layer_.kernel;
    Vector* weights = reinterpret_cast<Vector*>(space);
    const float* from[kMostRows];
    for (Index row_start = 0; row_start < stride; ++row_start)
      for (Index start = 0; start < std::min(stride, layer_.in_width); ++start) {
        const Index rows = taps_at(row_start), top = last_tap(row_start);
        const Index columns = taps_at(start + layer_.left), left = last_tap(start + layer_.left);
        for (Index r = 0; r < rows; ++r)
          for (Index c = 0; c < columns; ++c)
            weights[r * columns + c] = load(taps_ + ((top - r * stride) * kernel + left - c * stride) * width_ + channel);
        const Index count = (layer_.in_width - start + stride - 1) / stride;
        const Index place = place_of(channel, upper) +
                            (columns ? floor_divide(start + layer_.left - left, stride) * kChunk : 0);
        for (Index row = made_first(block); row < made_end(block); ++row) {
          if ((row + layer_.top) % stride != row_start) continue;
          for (Index r = 0; r < rows; ++r) from[r] = upper.seen(floor_divide(row + layer_.top - top, stride) + r) + place;
          correlate(rows, columns, from, kChunk, weights, count,
                    made.row(row) + place_of(channel, made) + start * kChunk, stride * kChunk);
        }
      }
  }

  // Writes the rows of gradient that the block has made.
  void finish_gradient(const Block& block, const KeptRows& in, const KeptRows& made, Index number, float* x_gradient,
                       const BlockSums* sums, float* line) const {
    float *gradients = nullptr, *products = nullptr;
    if (sums) {
      gradients = sums->first(number), products = sums->second(number);
      std::fill(gradients, gradients + width_, 0.0f);
      std::fill(products, products + width_, 0.0f);
    }
    for (Index row = made_first(block); row < made_end(block); ++row) {
      const Index position = (block.image * layer_.in_height + row) * layer_.in_width;
      const float* from = made.row(row);
      float* to = x_gradient + position * width_;
      if (source_.plain()) {
        each_vector(layer_.in_width, made, [&](Index at, Index, Index place) { store(to + at, load(from + place)); });
        continue;
      }
      const float* slopes = in.row(row) + in.plane_step();
      const Norm& norm = *source_.norm;
      const float* values = source_.rows(position, layer_.in_width, width_, line);
      const Index more = in.chunk_step() - made.chunk_step();
      each_vector(layer_.in_width, made, [&](Index at, Index c, Index place) {
        const Vector gradient = load(from + place) * load(slopes + place + c / kChunk * more);
        const Vector normalised = (load(values + at) - load(norm.mean() + c)) * load(norm.inverse() + c);
        store(to + at, gradient);
        store(gradients + c, load(gradients + c) + gradient);
        store(products + c, load(products + c) + gradient * normalised);
      });
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
  Source source_;
  Index width_;
  Scratch taps_;
  Index block_rows_, image_blocks_;
};

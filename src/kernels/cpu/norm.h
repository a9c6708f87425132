// Batch norm and the activation behind it, if any, over matrices of positions x channels (channels padded, zeros there).
#pragma once

#include <cmath>
#include <cstring>

#include "pool.h"

// What the layer computes, from the operator's tensor of settings.
struct Settings {
  Index stride;
  bool symmetric;  // PyTorch's padding; else TensorFlow's "same"
  Activation activation;
  bool training;   // the batch's statistics count, not the moving ones
  float epsilon;
  float momentum;  // share of the old moving statistics that stays

  explicit Settings(const float* from)
      : stride(static_cast<Index>(from[0])),
        symmetric(from[1] != 0.0f),
        activation(static_cast<Activation>(from[2])),
        training(from[3] != 0.0f),
        epsilon(from[4]),
        momentum(from[5]) {}
};

// Statistics and parameters of the channels, padded with zeros.
class Norm {
 public:
  Norm(Index channels, float epsilon, const float* mean, const float* variance, const float* gamma, const float* beta)
      : channels_(channels), width_(padded(channels)), terms_(6 * width_) {
    std::memset(terms_.data(), 0, sizeof(float) * 6 * width_);
    for (Index c = 0; c < channels; ++c) {
      this->mean()[c] = mean[c];
      inverse()[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(variance[c]) + epsilon));
      scale()[c] = gamma[c] * inverse()[c];
      this->beta()[c] = beta[c];
    }
  }

  Index channels() const { return channels_; }
  Index width() const { return width_; }
  float* mean() const { return terms_; }
  float* inverse() const { return terms_ + width_; }
  float* scale() const { return terms_ + 2 * width_; }
  float* beta() const { return terms_ + 3 * width_; }
  // Means over the positions of the norm's output gradient, and of that times the normalised input.
  float* mean_gradient() const { return terms_ + 4 * width_; }
  float* mean_product() const { return terms_ + 5 * width_; }

 private:
  Index channels_, width_;
  Scratch terms_;
};

// The norm's output for a vector of channels, from its input less the mean, and from its input.
inline Vector scaled(const Norm& norm, Vector centred, Index c) {
  return centred * load(norm.scale() + c) + load(norm.beta() + c);
}
inline Vector normed(const Norm& norm, Vector in, Index c) { return scaled(norm, in - load(norm.mean() + c), c); }

// Calls task(block, first row, rows) for blocks of rows that stay in the cache.
inline Index block_rows(Index width) { return std::max<Index>(16, 32768 / width); }
template <typename Task>
void parallel_rows(Index rows, Index width, const Task& task) {
  const Index step = block_rows(width);
  parallel((rows + step - 1) / step, [&](Index b) { task(b, b * step, std::min(step, rows - b * step)); });
}

// A tensor between two layers: rows are positions (of all images), `width` channels apart.
// out = act(norm(in)); `in` and `out` may be the same.
template <typename Act>
void apply_norm(const Norm& norm, const float* in, float* out, Index rows, Index width, Index first, Index last) {
  for (Index r = 0; r < rows; ++r, in += width, out += width)
    for (Index c = first; c < last; c += kLanes) store(out + c, Act::value(normed(norm, load(in + c), c)));
}

inline void apply_norm(const Norm& norm, Activation activation, const float* in, float* out, Index rows, Index width,
                       Index first, Index last) {
  dispatch(activation, [&](auto act) { apply_norm<decltype(act)>(norm, in, out, rows, width, first, last); });
}

// The same for all positions.
inline void apply_norm_to_all(const Norm& norm, Activation activation, const float* in, float* out, Index positions) {
  const Index width = norm.width();
  parallel_rows(positions, width, [&](Index, Index row, Index rows) {
    apply_norm(norm, activation, in + row * width, out + row * width, rows, width, 0, width);
  });
}

// Gradient of the norm's output from that of the activation's.
template <typename Act>
inline Vector norm_gradient(const Norm& norm, Vector centred, Vector upper, Index c) {
  return Act::gradient(scaled(norm, centred, c), upper);
}

// Where a gradient goes: channels side by side in chunks, a pixel's chunk behind its neighbour's, chunks `step` apart.
struct Chunks {
  float* to;
  Index size, step;
};

// Gradient of the norm's input, from that of the activation's output, upper_at(row, channel), and the norm's input.
template <typename Act, typename Upper>
void input_gradient(const Norm& norm, const Upper& upper_at, const float* in, Index rows, const Chunks& out) {
  const Index width = norm.width();
  for (Index r = 0; r < rows; ++r, in += width) {
    float* to = out.to + r * out.size;
    for (Index first = 0; first < width; first += out.size, to += out.step)
      for (Index c = first; c < std::min(width, first + out.size); c += kLanes) {
        const Vector centred = load(in + c) - load(norm.mean() + c);
        const Vector gradient = norm_gradient<Act>(norm, centred, upper_at(r, c), c);
        const Vector normalised = centred * load(norm.inverse() + c);
        store(to + c - first, load(norm.scale() + c) * (gradient - load(norm.mean_gradient() + c) -
                                                          normalised * load(norm.mean_product() + c)));
      }
  }
}

inline void input_gradient(const Norm& norm, Activation activation, const float* upper, const float* in, Index rows,
                           const Chunks& out) {
  dispatch(activation, [&](auto act) {
    const auto upper_at = [&](Index r, Index c) { return load(upper + r * norm.width() + c); };
    input_gradient<decltype(act)>(norm, upper_at, in, rows, out);
  });
}

// Sums over blocks of positions, each block in a place of its own.
class BlockSums {
 public:
  BlockSums(Index blocks, Index width) : blocks_(blocks), width_(width), sums_(2 * blocks * width), counts_(blocks) {}

  Index blocks() const { return blocks_; }
  Index width() const { return width_; }
  float* first(Index block) const { return sums_ + 2 * block * width_; }
  float* second(Index block) const { return sums_ + (2 * block + 1) * width_; }
  float& count(Index block) const { return counts_[block]; }

 private:
  Index blocks_, width_;
  Scratch sums_;
  Scratch counts_;
};

constexpr Index kMostVectorsAtOnce = 4;

// Writes the mean and the sum of squared deviations of `rows` rows for channels first ... last - 1.
template <int vectors>
inline void moments(const float* in, Index rows, Index width, float* mean, float* square) {
  Vector sum[vectors] = {};
  for (Index r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[v] += load(in + r * width + v * kLanes);
  Vector deviation[vectors] = {};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) sum[v] = sum[v] / broadcast(static_cast<float>(rows));
  for (Index r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Vector difference = load(in + r * width + v * kLanes) - sum[v];
      deviation[v] += difference * difference;
    }
  for (int v = 0; v < vectors; ++v) {
    store(mean + v * kLanes, sum[v]);
    store(square + v * kLanes, deviation[v]);
  }
}

inline void block_moments(const BlockSums& sums, Index block, const float* in, Index rows, Index width, Index first,
                          Index last) {
  // One of the tasks that share the block's channels.
  if (first == 0) sums.count(block) = static_cast<float>(rows);
  Index c = first;
  for (; c + kMostVectorsAtOnce * kLanes <= last; c += kMostVectorsAtOnce * kLanes)
    moments<kMostVectorsAtOnce>(in + c, rows, width, sums.first(block) + c, sums.second(block) + c);
  for (; c < last; c += kLanes) moments<1>(in + c, rows, width, sums.first(block) + c, sums.second(block) + c);
}

// Calls task(first, last) for ranges of channels.
template <typename Task>
void parallel_channels(Index width, const Task& task) {
  constexpr Index step = 4 * kChannelBlock;
  parallel((width + step - 1) / step, [&](Index i) { task(i * step, std::min(width, (i + 1) * step)); });
}

// Mean and variance (divided by the count) from the moments of blocks: Chan, Golub and LeVeque 1979.
inline void combine_moments(const BlockSums& sums, float* mean, float* variance) {
  parallel_channels(sums.width(), [&](Index first, Index last) {
    double total[4 * kChannelBlock] = {}, square[4 * kChannelBlock] = {};
    double count = 0.0;
    for (Index b = 0; b < sums.blocks(); ++b) {
      const double more = sums.count(b), share = more / (count + more);
      for (Index c = first; c < last; ++c) {
        const double difference = sums.first(b)[c] - total[c - first];
        square[c - first] += sums.second(b)[c] + difference * difference * count * share;
        total[c - first] += difference * share;
      }
      count += more;
    }
    for (Index c = first; c < last; ++c) {
      mean[c] = static_cast<float>(total[c - first]);
      variance[c] = static_cast<float>(square[c - first] / count);
    }
  });
}

template <typename Act, int vectors>
inline void gradient_sums(const Norm& norm, const float* upper, const float* in, Index rows, Index width, Index c,
                          float* gradients, float* products) {
  Vector sum[vectors] = {}, product[vectors] = {};
  for (Index r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Index at = c + v * kLanes;
      const Vector centred = load(in + r * width + at) - load(norm.mean() + at);
      const Vector gradient = norm_gradient<Act>(norm, centred, load(upper + r * width + at), at);
      sum[v] += gradient;
      product[v] += gradient * centred;
    }
  for (int v = 0; v < vectors; ++v) {
    const Index at = c + v * kLanes;
    store(gradients + at, sum[v]);
    store(products + at, product[v] * load(norm.inverse() + at));
  }
}

template <typename Act>
void block_gradient_sums(const Norm& norm, const BlockSums& sums, Index block, const float* upper, const float* in,
                         Index rows) {
  const Index width = norm.width();
  Index c = 0;
  for (; c + 2 * kLanes <= width; c += 2 * kLanes)
    gradient_sums<Act, 2>(norm, upper, in, rows, width, c, sums.first(block), sums.second(block));
  for (; c < width; c += kLanes)
    gradient_sums<Act, 1>(norm, upper, in, rows, width, c, sums.first(block), sums.second(block));
}

// Gradients of gamma and beta from their sums over blocks. Sets the norm's means of gradients over so many positions; they
// stay 0 where the statistics are constants, which 0 positions say.
inline void combine_gradients(Norm& norm, const BlockSums& sums, Index positions, float* gamma_gradient,
                              float* beta_gradient) {
  parallel_channels(norm.width(), [&](Index first, Index last) {
    double gradients[4 * kChannelBlock] = {}, products[4 * kChannelBlock] = {};
    for (Index b = 0; b < sums.blocks(); ++b)
      for (Index c = first; c < last; ++c) {
        gradients[c - first] += sums.first(b)[c];
        products[c - first] += sums.second(b)[c];
      }
    for (Index c = first; c < std::min(last, norm.channels()); ++c) {
      beta_gradient[c] = static_cast<float>(gradients[c - first]);
      gamma_gradient[c] = static_cast<float>(products[c - first]);
      if (!positions) continue;
      norm.mean_gradient()[c] = static_cast<float>(gradients[c - first] / positions);
      norm.mean_product()[c] = static_cast<float>(products[c - first] / positions);
    }
  });
}

// The same from the gradient of the activation's output.
inline void parameter_gradients(Norm& norm, Activation activation, bool training, const float* upper, const float* in,
                                Index positions, float* gamma_gradient, float* beta_gradient) {
  const Index width = norm.width();
  const BlockSums sums((positions + block_rows(width) - 1) / block_rows(width), width);
  parallel_rows(positions, width, [&](Index b, Index row, Index rows) {
    dispatch(activation, [&](auto act) {
      block_gradient_sums<decltype(act)>(norm, sums, b, upper + row * width, in + row * width, rows);
    });
  });
  combine_gradients(norm, sums, training ? positions : 0, gamma_gradient, beta_gradient);
}

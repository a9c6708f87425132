// What a layer reads. Within an MBConv block, norm and activation are computed where they are read: what they give is
// neither written nor kept for the backward pass, only what they are computed from.
#pragma once

#include "norm.h"

struct Source {
  const float* values;         // positions x channels
  const Norm* norm = nullptr;  // the layer reads act(norm(values)); without one, the values
  Activation activation = Activation::kNone;
  const float* gate = nullptr;  // times this, images x channels
  Index image_positions = 0;

  Source(const float* values) : values(values) {}
  Source(const float* values, const Norm& norm, Activation activation)
      : values(values), norm(&norm), activation(activation) {}

  bool plain() const { return !norm; }
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

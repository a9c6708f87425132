// Convolution of all channels by all, for the stem: images come as MindSpore's (N, C, H, W), few channels.
#pragma once

#include "convolution.h"

class Dense {
 public:
  Dense(const Layer& layer, const float* x, const float* weight)
      : layer_(layer),
        x_(x),
        weight_(weight),
        depth_(layer.in_channels * layer.kernel * layer.kernel),
        columns_(padded(depth_)),
        out_(padded(layer.out_channels)),
        band_(std::clamp<Index>(192 / layer.out_width, 1, layer.out_height)),
        bands_((layer.out_height + band_ - 1) / band_) {}

  Index blocks() const { return layer_.images * bands_; }

  // As Pointwise::forward.
  template <typename Finish>
  void forward(float* y, const Finish& finish) const {
    const Scratch packed(depth_ * out_);
    for (Index column = 0; column < out_; column += kPanel)
      pack_panel(weight_, 1, depth_, depth_, column, layer_.out_channels, panel_width(column, out_),
                 packed + column * depth_);
    const Index kernel = layer_.kernel, stride = layer_.stride, width = layer_.out_width;
    parallel(blocks(), [&](Index block) {
      const Band band = this->band(block);
      const Index height = (band.positions / width - 1) * stride + kernel, across = (width - 1) * stride + kernel;
      const Scratch seen(layer_.in_channels * height * across);
      read(band, height, across, seen);
      std::vector<const float*> taps(depth_);
      for (Index row = 0; row < band.positions / width; ++row) {
        for (Index tap = 0; tap < depth_; ++tap)
          taps[tap] = seen + (tap / kernel / kernel * height + row * stride + tap / kernel % kernel) * across + tap % kernel;
        float* to = y + (band.position + row * width) * out_;
        Panels{packed, depth_, out_}.multiply(Taps{taps.data(), stride}, width, 0, out_, to, out_);
      }
      finish(block, y + band.position * out_, band.positions, 0, out_);
    });
  }

  // The weight's gradient; see Pointwise::backward.
  template <typename OutputGradient>
  void backward(const OutputGradient& output_gradient, float* weight_gradient) const {
    const Index groups = group_count(blocks()), size = depth_ * out_;
    const Scratch partial(groups * size);
    parallel(groups, [&](Index group) {
      const Scratch patches(band_ * layer_.out_width * depth_), gradient(band_ * layer_.out_width * out_);
      const Index begin = blocks() * group / groups, end = blocks() * (group + 1) / groups;
      for (Index block = begin; block < end; ++block) {
        const Band band = this->band(block);
        unfold(band, patches);
        output_gradient(band.position, band.positions, gradient);
        for (Index column = 0; column < out_; column += kPanel)
          product(Rows{patches, band.positions}, gradient + column, out_, depth_, band.positions,
                  partial + group * size + column, out_, panel_width(column, out_), block > begin);
      }
    });
    const Scratch sum(size);
    add_groups(partial, groups, size, sum);
    for (Index o = 0; o < layer_.out_channels; ++o)
      for (Index tap = 0; tap < depth_; ++tap) weight_gradient[o * depth_ + tap] = sum[tap * out_ + o];
  }

  // The images' gradient, which training does not need.
  template <typename OutputGradient>
  void backward_input(const OutputGradient& output_gradient, float* x_gradient) const {
    const Scratch packed(layer_.out_channels * columns_);
    for (Index column = 0; column < columns_; column += kPanel)
      pack_panel(weight_, depth_, 1, layer_.out_channels, column, depth_, panel_width(column, columns_),
                 packed + column * layer_.out_channels);
    const Index size = layer_.in_channels * layer_.in_height * layer_.in_width;
    std::memset(x_gradient, 0, sizeof(float) * layer_.images * size);
    parallel(layer_.images, [&](Index image) {
      const Scratch patches(band_ * layer_.out_width * columns_), gradient(band_ * layer_.out_width * out_);
      for (Index block = image * bands_; block < (image + 1) * bands_; ++block) {
        const Band band = this->band(block);
        output_gradient(band.position, band.positions, gradient);
        Panels{packed, layer_.out_channels, columns_}.multiply(Rows{gradient, out_}, band.positions, 0, columns_, patches,
                                                               columns_);
        const float* patch = patches;
        each_tap(band, [&](Index position, Index tap, Index offset) {
          x_gradient[image * size + offset] += patch[position * columns_ + tap];
        });
      }
    });
  }

 private:
  struct Band {
    Index image, row;            // first row of output
    Index position, positions;  // the first of all positions, and how many
  };

  Band band(Index block) const {
    const Index image = block / bands_, row = block % bands_ * band_;
    const Index rows = std::min(band_, layer_.out_height - row);
    return {image, row, (image * layer_.out_height + row) * layer_.out_width, rows * layer_.out_width};
  }

  // Calls visit(position in the band, number of the tap, offset of its pixel in the image) where there is a pixel.
  template <typename Visit>
  void each_tap(const Band& band, const Visit& visit) const {
    const Index kernel = layer_.kernel;
    for (Index position = 0; position < band.positions; ++position) {
      const Index top = (band.row + position / layer_.out_width) * layer_.stride - layer_.top;
      const Index left = position % layer_.out_width * layer_.stride - layer_.left;
      for (Index channel = 0; channel < layer_.in_channels; ++channel)
        for (Index r = std::max<Index>(0, -top); r < std::min(kernel, layer_.in_height - top); ++r)
          for (Index c = std::max<Index>(0, -left); c < std::min(kernel, layer_.in_width - left); ++c)
            visit(position, (channel * kernel + r) * kernel + c,
                  (channel * layer_.in_height + top + r) * layer_.in_width + left + c);
    }
  }

  // What a band sees of each channel, so many rows and columns, with zeros where there is no pixel.
  void read(const Band& band, Index height, Index width, float* seen) const {
    const float* image = x_ + band.image * layer_.in_channels * layer_.in_height * layer_.in_width;
    const Index left = std::min(width, layer_.left), end = std::min(width, layer_.left + layer_.in_width);
    for (Index channel = 0; channel < layer_.in_channels; ++channel, image += layer_.in_height * layer_.in_width)
      for (Index row = 0; row < height; ++row, seen += width) {
        const Index from = band.row * layer_.stride - layer_.top + row;
        float* last = seen + left;
        if (from >= 0 && from < layer_.in_height) last = std::copy_n(image + from * layer_.in_width, end - left, last);
        std::fill(seen, seen + left, 0.0f);
        std::fill(last, seen + width, 0.0f);
      }
  }

  // For each tap, what the positions see through it, side by side: zeros where there is no pixel.
  void unfold(const Band& band, float* patches) const {
    const Index kernel = layer_.kernel, stride = layer_.stride, width = layer_.out_width;
    const float* image = x_ + band.image * layer_.in_channels * layer_.in_height * layer_.in_width;
    for (Index tap = 0; tap < depth_; ++tap, image += tap % (kernel * kernel) ? 0 : layer_.in_height * layer_.in_width) {
      const Index down = tap / kernel % kernel - layer_.top, across = tap % kernel - layer_.left;
      // The first output whose pixel is not left of the image, and the first whose pixel is right of it.
      const Index first = std::min(width, std::max<Index>(0, (stride - 1 - across) / stride));
      const Index end = std::clamp((layer_.in_width - across + stride - 1) / stride, first, width);
      for (Index row = band.row; row < band.row + band.positions / width; ++row, patches += width) {
        const Index from = row * stride + down;
        if (from < 0 || from >= layer_.in_height) {
          std::fill(patches, patches + width, 0.0f);
          continue;
        }
        std::fill(patches, patches + first, 0.0f);
        const float* pixels = image + from * layer_.in_width + across;
        for (Index w = first; w < end; ++w) patches[w] = pixels[w * stride];
        std::fill(patches + end, patches + width, 0.0f);
      }
    }
  }

  Layer layer_;
  const float* x_;
  const float* weight_;
  Index depth_, columns_, out_;
  Index band_, bands_;
};

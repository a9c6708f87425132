// 1x1 convolution: the product of positions x in channels with in channels x out channels.
#pragma once

#include "convolution.h"

class Pointwise {
 public:
  Pointwise(const Layer& layer, const Source& source, const float* weight)
      : layer_(layer),
        source_(source),
        weight_(weight),
        in_(padded(layer.in_channels)),
        out_(padded(layer.out_channels)),
        rows_(std::clamp<Index>(98304 / (in_ + out_) / kRowBlock, 1, 5) * kRowBlock) {}

  Index blocks() const { return (layer_.positions() + rows_ - 1) / rows_; }
  Index rows() const { return rows_; }  // of a block

  // y = x * weight'; finish(block, y of the block, rows, first, last) follows for each group of channels. Without a place for
  // y that is all that sees it.
  template <typename Finish>
  void forward(float* y, const Finish& finish) const {
    const Scratch packed(layer_.in_channels * out_);
    pack(weight_, 1, layer_.in_channels, layer_.in_channels, layer_.out_channels, packed);
    // Few positions: the channels are split as well, so that all threads have work.
    const Index panels = (out_ + kPanel - 1) / kPanel;
    const Index splits = std::min<Index>(panels, std::max<Index>(1, 16 / blocks()));
    parallel(blocks() * splits, [&](Index task) {
      const Index block = task / splits, split = task % splits;
      const Index first = panels * split / splits * kPanel;
      const Index last = std::min(out_, panels * (split + 1) / splits * kPanel);
      const Index row = block * rows_, rows = std::min(rows_, layer_.positions() - row);
      const Scratch space(copied_floats(rows)), own(y ? 0 : rows * out_);
      float* to = y ? y + row * out_ : own.data();
      const float* x = source_.values + row * in_;
      if (!source_.plain()) {
        read_rows(source_, row, rows, in_, space);
        x = space;
      }
      Panels{packed, layer_.in_channels, out_}.multiply(Rows{x, in_}, rows, first, last, to + first, out_);
      finish(block, to, rows, first, last);
    });
  }

  // Gradients of x and the weight; output_gradient(row, rows, to) writes the gradient of y for these rows.
  template <typename OutputGradient>
  void backward(const OutputGradient& output_gradient, float* x_gradient, float* weight_gradient) const {
    backward(output_gradient, x_gradient, weight_gradient, [](Index, Index, Index, float*) {});
  }

  // The same of a source with a norm: read(block, row, rows, to) follows when x's gradient of these rows is there, and
  // writes what the layer has read.
  template <typename OutputGradient, typename Read>
  void backward(const OutputGradient& output_gradient, float* x_gradient, float* weight_gradient,
                const Read& read) const {
    const Scratch packed(layer_.out_channels * in_);
    pack(weight_, layer_.in_channels, 1, layer_.out_channels, layer_.in_channels, packed);
    const Index size = out_ * in_;
    if (size > kLargeWeight)
      return backward_in_slices(output_gradient, packed, x_gradient, weight_gradient, read);
    const Index groups = group_count(blocks());
    const Scratch partial(groups * size);
    parallel(groups, [&](Index group) {
      const Scratch gradient(rows_ * out_), space(copied_floats(rows_));
      const Index begin = blocks() * group / groups, end = blocks() * (group + 1) / groups;
      for (Index block = begin; block < end; ++block) {
        const Index row = block * rows_, rows = std::min(rows_, layer_.positions() - row);
        output_gradient(row, rows, gradient);
        multiply_back(gradient, packed, row, rows, x_gradient);
        read(block, row, rows, space);
        const float* x = source_.plain() ? source_.values + row * in_ : space;
        for (Index column = 0; column < in_; column += kPanel)
          product(Columns{gradient, out_}, x + column, in_, out_, rows, partial + group * size + column, in_,
                  panel_width(column, in_), block > begin);
      }
    });
    const Scratch sum(size);
    add_groups(partial, groups, size, sum);
    unpad(sum, weight_gradient);
  }

 private:
  // What is kept of a source for some rows.
  Index copied_floats(Index rows) const { return source_.plain() ? 0 : rows * in_; }

  // Beyond this many floats, partial sums of the weight's gradient would not stay in the cache.
  static constexpr Index kLargeWeight = 16384;

  // Panels of matrix(k, column) = from[k * row_step + column * column_step], behind each other.
  static void pack(const float* from, Index row_step, Index column_step, Index depth, Index columns, float* to) {
    const Index width = padded(columns);
    parallel((width + kPanel - 1) / kPanel, [&](Index panel) {
      const Index column = panel * kPanel;
      pack_panel(from, row_step, column_step, depth, column, columns, panel_width(column, width), to + column * depth);
    });
  }

  // x_gradient = gradient * weight for a block of rows.
  void multiply_back(const float* gradient, const float* packed, Index row, Index rows, float* x_gradient) const {
    Panels{packed, layer_.out_channels, in_}.multiply(Rows{gradient, out_}, rows, 0, in_, x_gradient + row * in_, in_);
  }

  // The same where the weight is large and the positions are few: the gradient of y is kept as a whole, and each task
  // makes a slice of the weight's gradient from all positions.
  template <typename OutputGradient, typename Read>
  void backward_in_slices(const OutputGradient& output_gradient, const float* packed, float* x_gradient,
                          float* weight_gradient, const Read& read) const {
    const Index positions = layer_.positions();
    const Scratch gradient(positions * out_), sum(out_ * in_), space(copied_floats(positions));
    const float* x = source_.plain() ? source_.values : space;
    parallel(blocks(), [&](Index block) {
      const Index row = block * rows_, rows = std::min(rows_, positions - row);
      output_gradient(row, rows, gradient + row * out_);
      multiply_back(gradient + row * out_, packed, row, rows, x_gradient);
      read(block, row, rows, space + row * (source_.plain() ? 0 : in_));
    });
    constexpr Index height = 2 * kRowBlock, width = 144, depth = 256;
    const Index across = (in_ + width - 1) / width, down = (out_ + height - 1) / height;
    parallel(across * down, [&](Index task) {
      const Index top = task / across * height, bottom = std::min(out_, top + height);
      const Index left = task % across * width, right = std::min(in_, left + width);
      for (Index row = 0; row < positions; row += depth)
        for (Index column = left; column < right; column += kPanel)
          product(Columns{gradient + row * out_ + top, out_}, x + row * in_ + column, in_, bottom - top,
                  std::min(depth, positions - row), sum + top * in_ + column, in_, panel_width(column, right), row > 0);
    });
    unpad(sum, weight_gradient);
  }

  void unpad(const float* sum, float* weight_gradient) const {
    for (Index o = 0; o < layer_.out_channels; ++o)
      std::memcpy(weight_gradient + o * layer_.in_channels, sum + o * in_, sizeof(float) * layer_.in_channels);
  }

  Layer layer_;
  Source source_;
  const float* weight_;
  Index in_, out_;
  Index rows_;  // of a block
};

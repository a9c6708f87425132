// The CPU kernels under the sanitizers, and on machines that only an emulator stands for: every operator on layers of odd
// sizes, in buffers of exactly the size that the operator may touch. Convolutions are compared with four nested loops, and
// gradients by what makes them gradients: for an output linear in x and in the weight, <output, u> = <x, gradient of x> =
// <weight, gradient of the weight>.
//
// With the argument "failures": what happens where memory, or a thread, cannot be had. Needs the linker's option
// --wrap=aligned_alloc, and -DKEEP_NO_BLOCKS.

#include "../../src/kernels/cpu/kernels.cpp"

#include <pthread.h>

#include <chrono>
#include <cstdio>
#include <memory>

// All memory that the kernels take for themselves.
std::atomic<long> allocations{0}, allowed{1L << 40};
extern "C" void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
extern "C" void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
  return ++allocations > allowed ? nullptr : __real_aligned_alloc(alignment, size);
}

namespace {

using Shape = std::vector<std::int64_t>;

int failures = 0;

void expect(bool holds, const char* what, const char* kind, const Layer& layer) {
  if (holds) return;
  ++failures;
  std::printf("%s: %s, %td images of %td x %td, kernel %td, stride %td, to %td channels\n", kind, what, layer.images,
              layer.in_height, layer.in_width, layer.kernel, layer.stride, layer.out_channels);
}

// A tensor of its own block of memory, so that the sanitizer sees where it ends.
class Tensor {
 public:
  explicit Tensor(Shape shape) : shape_(std::move(shape)), size_(1) {
    for (auto side : shape_) size_ *= side;
    data_.reset(new float[size_]);
    std::fill(data_.get(), data_.get() + size_, NAN);
  }
  Tensor& random() {
    for (Index i = 0; i < size_; ++i) data_[i] = next();
    return *this;
  }
  Tensor& fill(float value) {
    std::fill(data_.get(), data_.get() + size_, value);
    return *this;
  }
  // Zeros where channels have been added.
  Tensor& pad(Index channels) {
    for (Index i = 0; i < size_; ++i)
      if (i % shape_.back() >= channels) data_[i] = 0.0f;
    return *this;
  }
  bool is_padded(Index channels) const {
    for (Index i = 0; i < size_; ++i)
      if (i % shape_.back() >= channels ? data_[i] != 0.0f : !std::isfinite(data_[i])) return false;
    return true;
  }
  float& operator[](Index i) { return data_[i]; }
  float operator[](Index i) const { return data_[i]; }
  Shape& shape() { return shape_; }
  float* data() { return data_.get(); }
  Index size() const { return size_; }

 private:
  static float next() {
    static std::uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
  }

  Shape shape_;
  Index size_;
  std::unique_ptr<float[]> data_;
};

double product(const Tensor& a, const Tensor& b) {
  double sum = 0.0;
  for (Index i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

template <typename Operator>
int call(Operator* function, std::vector<Tensor*> tensors) {
  std::vector<void*> data;
  std::vector<int> ranks;
  std::vector<std::int64_t*> shapes;
  std::vector<const char*> types(tensors.size(), "float32");
  for (Tensor* tensor : tensors) {
    data.push_back(tensor->data());
    ranks.push_back(static_cast<int>(tensor->shape().size()));
    shapes.push_back(tensor->shape().data());
  }
  return function(static_cast<int>(tensors.size()), data.data(), ranks.data(), shapes.data(), types.data(), nullptr,
                  nullptr);
}

bool close(double a, double b, double size) { return std::abs(a - b) <= 1e-4 * size; }

struct Operators {
  const char* kind;
  decltype(&pointwise_train) train, infer, convolve, backward, backward_images;
};

// A kind of layer from end to end. `groups` says that each channel has a filter of its own.
void check(const Operators& operators, Index count, Index in, Index out, Index height, Index width, Index kernel,
           Index stride, bool symmetric) {
  const bool images = operators.backward_images != nullptr, groups = operators.train == depthwise_train;
  Tensor x(images ? Shape{count, in, height, width} : Shape{count, height, width, padded(in)});
  x.random();
  if (!images) x.pad(in);
  Tensor weight({out, groups ? 1 : in, kernel, kernel});
  weight.random();
  Layer layer{count, height, width, groups ? 1 : in, (height + stride - 1) / stride, (width + stride - 1) / stride,
              out, kernel, stride, 0, 0};
  layer.top = padding_before(height, layer.out_height, kernel, stride, symmetric);
  layer.left = padding_before(width, layer.out_width, kernel, stride, symmetric);
  const Shape out_shape{count, layer.out_height, layer.out_width, padded(out)}, vector{out};
  const auto passes = [&](bool holds, const char* what) { expect(holds, what, operators.kind, layer); };

  Tensor y(out_shape), settings({6});
  const float values[] = {static_cast<float>(stride), static_cast<float>(symmetric), 0.0f, 0.0f, 1e-3f, 0.9f};
  std::copy(values, values + 6, settings.data());
  passes(call(operators.convolve, {&x, &weight, &settings, &y}) == 0, "convolve fails");
  passes(y.is_padded(out), "added channels are not zero");
  double worst = 0.0;
  for (Index n = 0; n < count; ++n)
    for (Index h = 0; h < layer.out_height; ++h)
      for (Index w = 0; w < layer.out_width; ++w)
        for (Index o = 0; o < out; ++o) {
          double sum = 0.0;
          for (Index i = 0; i < layer.in_channels; ++i)
            for (Index r = 0; r < kernel; ++r)
              for (Index c = 0; c < kernel; ++c) {
                const Index row = h * stride - layer.top + r, column = w * stride - layer.left + c;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                const Index channel = groups ? o : i;
                const Index at = images ? ((n * in + channel) * height + row) * width + column
                                        : ((n * height + row) * width + column) * padded(in) + channel;
                sum += static_cast<double>(x[at]) * weight[((o * layer.in_channels + i) * kernel + r) * kernel + c];
              }
          const Index at = ((n * layer.out_height + h) * layer.out_width + w) * padded(out) + o;
          worst = std::max(worst, std::abs(sum - y[at]));
        }
  passes(worst < 1e-4, "convolution differs from its definition");

  // Without statistics and shift the layer is linear: <output, u> is the product with either gradient.
  Tensor gamma(vector), beta(vector), mean(vector), variance(vector), result(out_shape), upper(out_shape);
  gamma.random(), beta.fill(0.0f), mean.fill(0.0f), variance.fill(0.7f), upper.random().pad(out);
  Tensor x_gradient(x.shape()), weight_gradient(weight.shape()), gamma_gradient(vector), beta_gradient(vector);
  const auto gradients = [&](Tensor& y, Tensor& mean, Tensor& variance) {
    std::vector<Tensor*> tensors{&upper, &x, &weight, &y, &mean, &variance, &gamma, &beta, &settings};
    if (images) {
      std::vector<Tensor*> alone = tensors;
      alone.push_back(&x_gradient);
      passes(call(operators.backward_images, alone) == 0, "backward of images fails");
    } else {
      tensors.push_back(&x_gradient);
    }
    tensors.insert(tensors.end(), {&weight_gradient, &gamma_gradient, &beta_gradient});
    passes(call(operators.backward, tensors) == 0, "backward fails");
    passes(x_gradient.is_padded(images ? width : in), "x's gradient is not finite, or not zero in added channels");
    passes(weight_gradient.is_padded(weight.size()), "the weight's gradient is not finite");
  };
  passes(call(operators.infer, {&x, &weight, &gamma, &beta, &mean, &variance, &settings, &result}) == 0, "infer fails");
  gradients(y, mean, variance);
  const double expected = product(result, upper);
  const double size = std::sqrt(product(result, result) * product(upper, upper)) + 1e-6;
  passes(close(product(x, x_gradient), expected, size), "x's gradient is wrong");
  passes(close(product(weight, weight_gradient), expected, size), "the weight's gradient is wrong");
  passes(close(product(gamma, gamma_gradient), expected, size), "gamma's gradient is wrong");

  settings[2] = static_cast<float>(Activation::kRelu6);
  Tensor cut(out_shape);
  passes(call(operators.infer, {&x, &weight, &gamma, &beta, &mean, &variance, &settings, &cut}) == 0, "infer fails");
  for (Index i = 0; i < cut.size(); ++i) result[i] = std::min(std::max(result[i], 0.0f), 6.0f);
  passes(std::equal(cut.data(), cut.data() + cut.size(), result.data()), "ReLU6 is wrong");

  // Training with an activation: what comes out does not depend on the number of threads.
  settings[3] = 1.0f;
  std::vector<float> first;
  for (auto [activation, threads] : {std::pair{Activation::kSwish, 1}, {Activation::kSwish, 3},
                                     {Activation::kRelu6, 1}, {Activation::kRelu6, 3}}) {
    settings[2] = static_cast<float>(activation);
    if (threads == 1) first.clear();
    kernels_set_threads(threads);
    Tensor moving_mean(vector), moving_variance(vector), batch_mean(vector), batch_variance(vector);
    moving_mean.fill(0.0f), moving_variance.fill(1.0f);
    passes(call(operators.train, {&x, &weight, &gamma, &beta, &moving_mean, &moving_variance, &settings, &result, &y,
                                  &batch_mean, &batch_variance}) == 0,
           "train fails");
    passes(result.is_padded(out), "output is not finite, or not zero in added channels");
    gradients(y, batch_mean, batch_variance);
    std::vector<float> all;
    for (Tensor* tensor : {&result, &x_gradient, &weight_gradient, &gamma_gradient, &moving_mean, &moving_variance})
      all.insert(all.end(), tensor->data(), tensor->data() + tensor->size());
    if (first.empty()) first = all;
    passes(std::memcmp(first.data(), all.data(), all.size() * sizeof(float)) == 0, "threads change the result");
  }
}

void check_squeeze(decltype(&squeeze_swish) forward, decltype(&squeeze_swish) backward, Index count, Index channels,
                   Index squeezed, Index height, Index width) {
  const Shape shape{count, height, width, padded(channels)};
  Layer layer{count, height, width, channels, height, width, channels, 1, 1, 0, 0};
  Tensor x(shape), reduce({squeezed, channels, 1, 1}), reduce_bias({squeezed}), expand({channels, squeezed, 1, 1});
  Tensor expand_bias({channels}), out(shape), mean({count, padded(channels)}), hidden({count, squeezed});
  Tensor gate({count, padded(channels)}), upper(shape), x_gradient(shape), reduce_gradient(reduce.shape());
  Tensor reduce_bias_gradient({squeezed}), expand_gradient(expand.shape()), expand_bias_gradient({channels});
  x.random().pad(channels), upper.random().pad(channels);
  for (Tensor* tensor : {&reduce, &reduce_bias, &expand, &expand_bias}) tensor->random();
  expect(call(forward, {&x, &reduce, &reduce_bias, &expand, &expand_bias, &out, &mean, &hidden, &gate}) == 0,
         "fails", "squeeze", layer);
  expect(call(backward,
              {&upper, &x, &reduce, &expand, &mean, &hidden, &gate, &x_gradient, &reduce_gradient,
               &reduce_bias_gradient, &expand_gradient, &expand_bias_gradient}) == 0,
         "backward fails", "squeeze", layer);
  expect(out.is_padded(channels) && x_gradient.is_padded(channels), "added channels are not zero", "squeeze", layer);
  Tensor means({count, channels}), back(shape);
  expect(call(position_mean, {&x, &means}) == 0, "fails", "mean", layer);
  expect(call(position_mean_backward, {&means, &x, &back}) == 0, "backward fails", "mean", layer);
  expect(back.is_padded(channels), "added channels are not zero", "mean", layer);
  expect(close(product(back, x), product(means, means), product(means, means) + 1e-6), "gradient", "mean", layer);
}

// An MBConv block's operator: out is that of its layers' operators, one after the other; and gradients have the same bits
// for any number of threads.
void check_block(Index count, Index in, Index hidden, Index out, Index squeezed, Index height, Index width, Index kernel,
                 Index stride, Activation activation) {
  const bool expands = hidden != in, residual = in == out && stride == 1;
  const Index after_height = (height + stride - 1) / stride, after_width = (width + stride - 1) / stride;
  const Shape x_shape{count, height, width, padded(in)}, wide{count, height, width, padded(hidden)};
  const Shape narrow{count, after_height, after_width, padded(hidden)}, made{count, after_height, after_width, padded(out)};
  Layer layer{count, height, width, in, after_height, after_width, out, kernel, stride, 0, 0};
  const auto passes = [&](bool holds, const char* what) { expect(holds, what, "block", layer); };
  std::vector<std::unique_ptr<Tensor>> owned;
  const auto make = [&](Shape shape) {
    owned.push_back(std::make_unique<Tensor>(std::move(shape)));
    return &owned.back()->random();
  };
  Tensor x(x_shape), mask({count}), settings({9});
  x.random().pad(in), mask.random();
  const float values[] = {static_cast<float>(stride), 0.0f, static_cast<float>(activation), 1.0f, 1e-3f, 0.9f,
                          static_cast<float>(expands), static_cast<float>(squeezed > 0), static_cast<float>(residual)};
  std::copy(values, values + 9, settings.data());
  std::vector<Tensor*> weights, kept;
  const auto convolution = [&](Shape weight, Index channels, const Shape& y) {
    for (const Shape& shape : {weight, Shape{channels}, Shape{channels}}) weights.push_back(make(shape));
    for (const Shape& shape : {y, Shape{channels}, Shape{channels}}) kept.push_back(make(shape));
  };
  // Half of the blocks make the expansion anew where they read it.
  if (expands) convolution({hidden, in, 1, 1}, hidden, in <= 24 ? Shape{1} : wide);
  convolution({hidden, 1, kernel, kernel}, hidden, narrow);
  if (squeezed) {
    for (const Shape& shape : {Shape{squeezed, hidden, 1, 1}, Shape{squeezed}, Shape{hidden, squeezed, 1, 1}, Shape{hidden}})
      weights.push_back(make(shape));
    for (const Shape& shape : {Shape{count, padded(hidden)}, Shape{count, squeezed}, Shape{count, padded(hidden)}})
      kept.push_back(make(shape));
  }
  convolution({out, hidden, 1, 1}, out, made);
  std::vector<Tensor*> moving;
  for (int i = 0; i < 2 * (2 + expands); ++i) moving.push_back(make({i < 2 * (1 + expands) ? hidden : out}));
  Tensor result(made), upper(made);
  upper.random().pad(out);
  const auto joined = [](std::initializer_list<std::vector<Tensor*>> lists) {
    std::vector<Tensor*> all;
    for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
    return all;
  };
  passes(call(mbconv_train, joined({{&settings, &x, &mask}, weights, moving, {&result}, kept})) == 0, "train fails");
  passes(result.is_padded(out), "output is not finite, or not zero in added channels");

  // Layer by layer.
  Tensor alone({6}), linear({6});
  for (Tensor* to : {&alone, &linear}) std::copy(values, values + 6, to->data());
  linear[0] = 1.0f, linear[2] = 0.0f;
  std::size_t next = 0;
  const auto apply = [&](decltype(&pointwise_train) train, Tensor& settings, Tensor* from, const Shape& shape, Index channels) {
    Tensor *to = make(shape), *y = make(shape), *mean = make({channels}), *variance = make({channels});
    const auto at = weights.begin() + static_cast<Index>(next);
    passes(call(train, {from, at[0], at[1], at[2], make({channels}), make({channels}), &settings, to, y, mean, variance}) == 0,
           "a layer fails");
    next += 3;
    return to;
  };
  Tensor *from = &x, first({6});
  std::copy(values, values + 6, first.data());
  first[0] = 1.0f;
  if (expands) from = apply(pointwise_train, first, from, wide, hidden);
  from = apply(depthwise_train, alone, from, narrow, hidden);
  if (squeezed) {
    const auto at = weights.begin() + static_cast<Index>(next);
    Tensor* to = make(narrow);
    const auto squeeze = activation == Activation::kSwish ? squeeze_swish : squeeze_relu6;
    passes(call(squeeze, {from, at[0], at[1], at[2], at[3], to, make({count, padded(hidden)}), make({count, squeezed}),
                          make({count, padded(hidden)})}) == 0,
           "squeeze fails");
    from = to;
    next += 4;
  }
  from = apply(pointwise_train, linear, from, made, out);
  double worst = 0.0;
  for (Index i = 0; i < result.size(); ++i) {
    const Index image = i / (result.size() / count);
    const float expected = residual ? x[i] + mask[image] * (*from)[i] : (*from)[i];
    worst = std::max<double>(worst, std::abs(expected - result[i]));
  }
  passes(worst < 1e-4, "differs from its layers");

  std::vector<float> bits;
  for (int threads : {1, 3}) {
    kernels_set_threads(threads);
    std::vector<Tensor*> gradients{make(x_shape)};
    for (Tensor* weight : weights) gradients.push_back(make(weight->shape()));
    std::vector<Tensor*> space{make(narrow)};
    if (expands) space.push_back(make(wide));
    passes(call(mbconv_backward, joined({{&settings, &x, &mask, &upper}, weights, kept, gradients, space})) == 0,
           "backward fails");
    passes(gradients[0]->is_padded(in), "x's gradient is not finite, or not zero in added channels");
    std::vector<float> all;
    for (Tensor* tensor : gradients) {
      passes(tensor == gradients[0] || tensor->is_padded(tensor->size()), "a gradient is not finite");
      all.insert(all.end(), tensor->data(), tensor->data() + tensor->size());
    }
    if (bits.empty()) bits = all;
    passes(std::memcmp(bits.data(), all.data(), all.size() * sizeof(float)) == 0, "threads change a gradient");
  }

  // With the moving statistics, which stay, and by the operator of evaluation: by images, and by parts of images where there
  // are more threads than images.
  settings[3] = 0.0f, mask.fill(1.0f);
  for (std::size_t i = 1; i < moving.size(); i += 2) moving[i]->fill(0.7f);
  std::vector<float> before, after;
  const auto copy_moving = [&](std::vector<float>& to) {
    for (Tensor* tensor : moving) to.insert(to.end(), tensor->data(), tensor->data() + tensor->size());
  };
  copy_moving(before);
  passes(call(mbconv_train, joined({{&settings, &x, &mask}, weights, moving, {&result}, kept})) == 0, "train fails");
  copy_moving(after);
  passes(before == after, "evaluation moves statistics");
  Tensor evaluated(made), again(made);
  for (auto [threads, to] : {std::pair{1, &evaluated}, {static_cast<int>(count) + 2, &again}}) {
    kernels_set_threads(threads);
    passes(call(mbconv_infer, joined({{&settings, &x}, weights, moving, {to}})) == 0, "infer fails");
  }
  passes(evaluated.is_padded(out), "evaluation is not finite, or not zero in added channels");
  passes(std::memcmp(evaluated.data(), again.data(), sizeof(float) * static_cast<std::size_t>(again.size())) == 0,
         "threads change the evaluation");
  double size = 0.0;
  worst = 0.0;
  for (Index i = 0; i < result.size(); ++i) {
    worst = std::max<double>(worst, std::abs(evaluated[i] - result[i]));
    size = std::max<double>(size, std::abs(result[i]));
  }
  passes(worst < 1e-5 * (1.0 + size), "evaluation differs from the layers");
}

void check_rmsprop() {
  const std::vector<Index> sizes{1, 7, 16, 33, 40000};
  Layer layer{};
  std::vector<std::unique_ptr<Tensor>> tensors;
  for (Index kind = 0; kind < 4; ++kind)
    for (Index size : sizes) tensors.push_back(std::make_unique<Tensor>(Shape{size}));
  for (auto& tensor : tensors) tensor->random();
  for (std::size_t i = 5; i < 10; ++i) tensors[i]->fill(1.0f);
  Tensor rate(Shape{}), settings({3}), decays({5}), status({1});
  rate.fill(0.1f), settings.fill(0.5f), decays.fill(0.0f);
  std::vector<Tensor*> all{&rate, &settings, &decays};
  for (auto& tensor : tensors) all.push_back(tensor.get());
  all.push_back(&status);
  expect(call(rmsprop_update, all) == 0, "fails", "rmsprop", layer);
  for (auto& tensor : tensors) expect(tensor->is_padded(tensor->size()), "not finite", "rmsprop", layer);
}

// Threads stand for the processes of `ranks` ranks; each of them maps the memory by itself. Every mean is that of a plain sum.
void check_ranks(Index ranks, const std::vector<Index>& sizes) {
  const Index floats = std::accumulate(sizes.begin(), sizes.end(), Index{0});
  const int file = memfd_create("ranks", 0);
  const auto bytes = static_cast<off_t>(kernels_shared_bytes(ranks, floats));
  expect(file >= 0 && ftruncate(file, bytes) == 0, "there is no memory to share", "ranks", Layer{});
  const auto value = [](Index step, Index rank, Index i) { return static_cast<float>((step * 7 + rank * 5 + i) % 11); };
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (Index rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Ranks joined;
      if (!joined.join(file, rank, ranks, floats)) ++wrong;
      for (Index step = 0; step < 20; ++step) {
        std::vector<std::unique_ptr<Tensor>> tensors;
        std::vector<std::pair<const float*, Index>> inputs;
        std::vector<float*> outputs;
        Index at = 0;
        for (Index size : sizes) {
          for (int output = 0; output < 2; ++output) tensors.push_back(std::make_unique<Tensor>(Shape{size}));
          Tensor& input = *tensors[tensors.size() - 2];
          for (Index i = 0; i < size; ++i) input[i] = value(step, rank, at + i);
          inputs.push_back({input.data(), size});
          outputs.push_back(tensors.back()->data());
          at += size;
        }
        if ((step + rank) % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300 * rank));
        if (joined.mean(inputs, outputs) != 0) ++wrong;
        at = 0;
        for (std::size_t t = 0; t < sizes.size(); ++t)
          for (Index i = 0; i < sizes[t]; ++i, ++at) {
            float sum = 0.0f;
            for (Index other = 0; other < ranks; ++other) sum += value(step, other, at);
            if (outputs[t][i] != sum * (1.0f / static_cast<float>(ranks))) ++wrong;
          }
      }
    });
  for (auto& thread : threads) thread.join();
  ::close(file);
  expect(wrong == 0, "a mean is wrong", "ranks", Layer{});
}

// One operator call with tensors of its own: `shapes` of the inputs, then of the outputs; `settings` is the tensor of 6 or 9.
template <typename Operator>
int call_alone(Operator* function, const std::vector<Shape>& shapes) {
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<Tensor*> pointers;
  for (const Shape& shape : shapes) {
    tensors.push_back(std::make_unique<Tensor>(shape));
    tensors.back()->fill(0.5f);
    if (shape == Shape{6} || shape == Shape{9}) {
      const float values[] = {1.0f, 0.0f, 0.0f, 1.0f, 1e-3f, 0.9f, 1.0f, 1.0f, 1.0f};
      std::copy(values, values + shape[0], tensors.back()->data());
    }
    pointers.push_back(tensors.back().get());
  }
  return call(function, pointers);
}

// `function` fails with kNoMemory wherever memory ends, and works again afterwards.
template <typename Operator>
void check_failures(const char* kind, Operator* function, const std::vector<Shape>& shapes) {
  allocations = 0;
  expect(call_alone(function, shapes) == 0, "fails", kind, Layer{});
  const long needed = allocations;
  expect(needed > 0, "takes no memory", kind, Layer{});
  for (long most = 0; most < needed; ++most) {
    allocations = 0;
    allowed = most;
    expect(call_alone(function, shapes) == kNoMemory, "does not say that there is no memory", kind, Layer{});
    allowed = 1L << 40;
  }
  expect(call_alone(function, shapes) == 0, "fails afterwards", kind, Layer{});
}

int check_all_failures() {
  // No stack of this size can be had.
  pthread_attr_t usual, huge;
  pthread_getattr_default_np(&usual);
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, std::size_t{1} << 46);
  pthread_setattr_default_np(&huge);
  kernels_set_threads(3);
  const Shape x{4, 9, 7, 32}, one{32, 32, 1, 1}, filter{32, 1, 3, 3}, images{4, 3, 9, 7}, dense{32, 3, 3, 3}, v{32}, s{6};
  const Shape reduce{8, 32, 1, 1}, expand{32, 8, 1, 1}, hidden{4, 8}, gate{4, 32};
  expect(call_alone(depthwise_convolve, {x, filter, s, x}) == 0, "fails without threads", "depthwise", Layer{});
  pthread_setattr_default_np(&usual);
  // The caller's buffers are in use until the last task has ended, in whatever thread.
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> done{0};
    parallel(7, [&](Index) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ++done;
    });
    expect(done == 7, "does not wait for all threads", "pool", Layer{});
  }
  check_failures("pointwise", pointwise_train, {x, one, v, v, v, v, s, x, x, v, v});
  check_failures("pointwise", pointwise_backward, {x, x, one, x, v, v, v, v, s, x, one, v, v});
  check_failures("depthwise", depthwise_train, {x, filter, v, v, v, v, s, x, x, v, v});
  check_failures("depthwise", depthwise_backward, {x, x, filter, x, v, v, v, v, s, x, filter, v, v});
  check_failures("dense", dense_train, {images, dense, v, v, v, v, s, x, x, v, v});
  check_failures("dense", dense_backward, {x, images, dense, x, v, v, v, v, s, dense, v, v});
  check_failures("dense", dense_backward_images, {x, images, dense, x, v, v, v, v, s, images});
  check_failures("squeeze", squeeze_swish, {x, reduce, {8}, expand, v, x, gate, hidden, gate});
  check_failures("squeeze", squeeze_swish_backward,
                 {x, x, reduce, expand, gate, hidden, gate, x, reduce, {8}, expand, v});
  check_failures("mean", position_mean, {x, gate});
  const Shape n{9}, c4{4}, wide{4, 9, 7, 64}, w{64}, wide_gate{4, 64}, to_wide{64, 32, 1, 1}, filters{64, 1, 3, 3};
  const Shape wide_reduce{8, 64, 1, 1}, wide_expand{64, 8, 1, 1}, to_narrow{32, 64, 1, 1};
  const std::vector<Shape> weights{to_wide, w, w, filters, w, w, wide_reduce, {8}, wide_expand, w, to_narrow, v, v};
  const std::vector<Shape> kept{wide, w, w, wide, w, w, wide_gate, hidden, wide_gate, x, v, v};
  std::vector<Shape> forward{n, x, c4}, backward{n, x, c4, x};
  forward.insert(forward.end(), weights.begin(), weights.end());
  forward.insert(forward.end(), {w, w, w, w, v, v, x});
  forward.insert(forward.end(), kept.begin(), kept.end());
  backward.insert(backward.end(), weights.begin(), weights.end());
  backward.insert(backward.end(), kept.begin(), kept.end());
  backward.push_back(x);
  backward.insert(backward.end(), weights.begin(), weights.end());
  backward.insert(backward.end(), {wide, wide});
  check_failures("block", mbconv_train, forward);
  check_failures("block", mbconv_backward, backward);
  std::vector<Shape> evaluation{n, x};
  evaluation.insert(evaluation.end(), weights.begin(), weights.end());
  evaluation.insert(evaluation.end(), {w, w, w, w, v, v, x});
  check_failures("block", mbconv_infer, evaluation);

  // The lock of the stock of blocks is taken for a task, not for its rows and channels.
  std::vector<long> needed;
  for (Index rows : {8, 24}) {
    const Shape in{1, rows, 5, 256}, weights{256, 1, 3, 3}, channels{256};
    for (auto function : {depthwise_backward, depthwise_convolve}) {
      allocations = 0;
      const int status = function == depthwise_convolve
                             ? call_alone(function, {in, weights, s, in})
                             : call_alone(function, {in, in, weights, in, channels, channels, channels, channels, s, in,
                                                     weights, channels, channels});
      expect(status == 0, "fails", "depthwise", Layer{});
      needed.push_back(allocations);
    }
  }
  expect(needed[0] == needed[2] && needed[1] == needed[3] && needed[1] <= 3, "takes memory for each row or channel",
         "depthwise", Layer{});
  if (!failures) std::printf("all failures are right\n");
  return failures ? 1 : 0;
}

}  // namespace

int main(int argc, char**) {
  if (argc > 1) return check_all_failures();
  const Operators pointwise{"pointwise", pointwise_train, pointwise_infer, pointwise_convolve, pointwise_backward,
                            nullptr};
  const Operators depthwise{"depthwise", depthwise_train, depthwise_infer, depthwise_convolve, depthwise_backward,
                            nullptr};
  const Operators dense{"dense", dense_train, dense_infer, dense_convolve, dense_backward, dense_backward_images};
  check(pointwise, 2, 16, 24, 5, 7, 1, 1, false);
  check(pointwise, 1, 40, 17, 3, 3, 1, 1, false);
  check(pointwise, 3, 7, 100, 9, 11, 1, 1, false);
  check(pointwise, 2, 240, 81, 6, 5, 1, 1, false);
  for (Index kernel : {1, 3, 4, 5, 7})
    for (Index stride : {1, 2, 3})
      for (bool symmetric : {false, true}) {
        if (symmetric && kernel % 2 == 0) continue;
        check(depthwise, 2, 24, 24, 7, 10, kernel, stride, symmetric);
        check(depthwise, 3, 5, 5, 2, 3, kernel, stride, symmetric);
        check(depthwise, 2, 40, 40, 1, 2, kernel, stride, symmetric);
        check(dense, 2, 3, 20, 8, 7, kernel, stride, symmetric);
      }
  check(depthwise, 1, 32, 32, 300, 9, 3, 2, false);
  check(depthwise, 1, 32, 32, 60, 70, 5, 1, true);
  check(dense, 2, 3, 32, 31, 65, 3, 2, false);
  check_ranks(2, {1, 100, 40000, 3});
  check_ranks(3, {17});
  check_ranks(5, {16384, 16385, 5});
  check_squeeze(squeeze_swish, squeeze_swish_backward, 3, 24, 6, 5, 7);
  check_squeeze(squeeze_swish, squeeze_swish_backward, 1, 100, 1, 1, 1);
  check_squeeze(squeeze_relu6, squeeze_relu6_backward, 2, 96, 33, 3, 3);
  for (Activation activation : {Activation::kSwish, Activation::kRelu6}) {
    check_block(3, 24, 144, 24, 6, 9, 7, 3, 1, activation);
    check_block(2, 40, 240, 20, 10, 6, 7, 5, 2, activation);
    check_block(2, 24, 24, 24, 0, 8, 5, 3, 1, activation);
    check_block(1, 10, 10, 16, 3, 5, 1, 3, 2, activation);
    check_block(20, 7, 40, 7, 2, 2, 3, 5, 1, activation);
    check_block(5, 100, 400, 100, 25, 5, 5, 3, 1, activation);
    check_block(1, 16, 96, 24, 4, 60, 90, 3, 2, activation);
    check_block(2, 32, 32, 16, 8, 21, 60, 5, 1, activation);
  }
  check_rmsprop();
  if (!failures) std::printf("all layers are right\n");
  return failures ? 1 : 0;
}

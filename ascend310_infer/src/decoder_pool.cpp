#include "decoder_pool.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

#include "errors.h"
#include "files.h"

namespace {

constexpr size_t kWaitingBatches = 2;
// More than any image of kMaxPixels needs.
constexpr size_t kMaxFileBytes = size_t{1} << 30;

}  // namespace

DecoderPool::DecoderPool(const std::vector<std::string> &paths, const Preprocess &preprocess, const ModelShape &shape,
                         size_t threads, std::function<void(const std::string &)> on_error)
    : paths_(paths), preprocess_(preprocess), shape_(shape), on_error_(std::move(on_error)), full_(kWaitingBatches) {
  threads = std::min(threads, paths.size());
  working_ = threads;
  if (threads == 0) full_.close();  // there is no last thread that would
  try {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error &) {
    if (threads_.empty()) throw RunError("the system allows no more threads");
    finish(threads - threads_.size());  // fewer threads do the same work
  }
}

DecoderPool::~DecoderPool() {
  full_.close();
  for (std::thread &thread : threads_) thread.join();
}

void DecoderPool::work() {
  std::vector<uint8_t> image(shape_.image_bytes());
  for (size_t position = next_++; position < paths_.size(); position = next_++) {
    const std::string error = decode(paths_[position], image);
    if (error.empty()) {
      if (!add(position, image)) break;
    } else {
      const std::lock_guard<std::mutex> lock(mutex_);
      on_error_(error);
    }
  }
  finish(1);
}

std::string DecoderPool::decode(const std::string &path, std::vector<uint8_t> &target) const {
  try {
    const std::vector<uint8_t> data = read_file(path, kMaxFileBytes);
    const Planes planes = load_planes(data.data(), data.size(), preprocess_, path);
    if (shape_.pixel_type == PixelType::kUint8Nhwc) {
      interleave(planes, target.data());
    } else {
      // Memory from new[] is aligned for every type.
      normalise(planes, preprocess_, shape_.pixel_type == PixelType::kFloat32Nhwc,
                reinterpret_cast<float *>(target.data()));
    }
  } catch (const std::bad_alloc &) {
    return path + ": there is not enough memory to decode it";
  } catch (const std::exception &error) {
    return error.what();
  }
  return {};
}

bool DecoderPool::add(size_t position, const std::vector<uint8_t> &image) {
  // The lock is also held while a full batch waits for room: the other threads would only wait, too.
  const std::lock_guard<std::mutex> lock(mutex_);
  if (open_.positions.empty()) open_.images = take_memory();
  std::memcpy(open_.images.data() + open_.positions.size() * image.size(), image.data(), image.size());
  open_.positions.push_back(position);
  return open_.positions.size() < shape_.batch_size || full_.push(std::exchange(open_, {}));
}

std::vector<uint8_t> DecoderPool::take_memory() {
  {
    const std::lock_guard<std::mutex> lock(spare_mutex_);
    if (!spare_.empty()) {
      std::vector<uint8_t> memory = std::move(spare_.back());
      spare_.pop_back();
      return memory;
    }
  }
  return std::vector<uint8_t>(shape_.batch_size * shape_.image_bytes());
}

void DecoderPool::recycle(Batch batch) {
  // Not under mutex_: its holder may be waiting for the caller to take a batch.
  const std::lock_guard<std::mutex> lock(spare_mutex_);
  spare_.push_back(std::move(batch.images));
}

void DecoderPool::finish(size_t threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  working_ -= threads;
  if (working_ > 0) return;
  if (!open_.positions.empty()) full_.push(std::exchange(open_, {}));
  full_.close();
}

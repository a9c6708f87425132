#include "decoder_pool.h"

#include <algorithm>
#include <exception>
#include <new>
#include <system_error>

#include "errors.h"
#include "files.h"
#include "image.h"

namespace {

// More than any image of kMaxPixels needs.
constexpr size_t kMaxFileBytes = size_t{1} << 30;

}  // namespace

DecoderPool::DecoderPool(const std::vector<std::string> &paths, const Preprocess &preprocess, PixelType pixel_type,
                         size_t threads, size_t capacity)
    : paths_(paths), preprocess_(preprocess), pixel_type_(pixel_type), queue_(capacity) {
  threads = std::min(threads, paths.size());
  if (threads == 0) queue_.close();  // nobody else would
  working_ = threads;
  try {
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error &) {
    if (threads_.empty()) throw RunError("the system allows no more threads");
    // Fewer threads do the same work; the missing ones count as done. The last of all closes the queue.
    const size_t missing = threads - threads_.size();
    if (working_.fetch_sub(missing) == missing) queue_.close();
  }
}

DecoderPool::~DecoderPool() {
  queue_.close();
  for (std::thread &thread : threads_) thread.join();
}

void DecoderPool::work() {
  for (size_t index = next_++; index < paths_.size(); index = next_++) {
    if (!queue_.push(decode(index))) break;
  }
  if (working_.fetch_sub(1) == 1) queue_.close();
}

Sample DecoderPool::decode(size_t index) const {
  Sample sample;
  sample.index = index;
  const std::string &path = paths_[index];
  try {
    const std::vector<uint8_t> data = read_file(path, kMaxFileBytes);
    Image crop = crop_for_evaluation(decode_image(data.data(), data.size(), path), preprocess_, path);
    if (pixel_type_ == PixelType::kUint8Nhwc) {
      sample.pixels = std::move(crop.pixels);
    } else {
      sample.values.resize(crop.pixels.size());
      normalise(crop, preprocess_, sample.values.data());
    }
  } catch (const std::bad_alloc &) {
    sample.error = path + ": there is not enough memory to decode it";
  } catch (const std::exception &error) {
    sample.error = error.what();
  }
  return sample;
}

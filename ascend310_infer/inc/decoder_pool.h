// Threads that turn image files into what the engine takes, ahead of it.
#ifndef ASCEND310_INFER_DECODER_POOL_H
#define ASCEND310_INFER_DECODER_POOL_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bounded_queue.h"
#include "engine.h"
#include "preprocess.h"

// One image, or why there is none.
struct Sample {
  size_t index = 0;             // position among the paths
  std::vector<uint8_t> pixels;  // of PixelType kUint8Nhwc
  std::vector<float> values;    // of PixelType kFloat32Nchw
  std::string error;            // a sentence, empty if all went well

  const void *data() const { return values.empty() ? static_cast<const void *>(pixels.data()) : values.data(); }
};

class DecoderPool {
 public:
  // Starts `threads` threads on the files `paths`, or one for each file if that is fewer; at most `capacity` samples
  // wait to be taken. `paths` must outlive it.
  DecoderPool(const std::vector<std::string> &paths, const Preprocess &preprocess, PixelType pixel_type, size_t threads,
              size_t capacity);
  DecoderPool(const DecoderPool &) = delete;
  DecoderPool &operator=(const DecoderPool &) = delete;
  ~DecoderPool();

  // The next sample in the order in which they get ready, or nothing after the last one.
  std::optional<Sample> next() { return queue_.pop(); }

 private:
  void work();
  Sample decode(size_t index) const;

  const std::vector<std::string> &paths_;
  const Preprocess preprocess_;
  const PixelType pixel_type_;
  BoundedQueue<Sample> queue_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> working_{0};
  std::vector<std::thread> threads_;
};

#endif

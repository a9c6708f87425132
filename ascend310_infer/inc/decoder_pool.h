// Threads that decode image files into full batches, ahead of the engine.
#ifndef ASCEND310_INFER_DECODER_POOL_H
#define ASCEND310_INFER_DECODER_POOL_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bounded_queue.h"
#include "engine.h"
#include "preprocess.h"

// Images in the order in which their decoding ended.
struct Batch {
  std::vector<uint8_t> images;    // room for a full batch, one image after the other
  std::vector<size_t> positions;  // each image's index among the paths; fewer than a full batch only in the last
};

class DecoderPool {
 public:
  // Starts `threads` threads on the files `paths`, but no more than one for each file. At most two full batches wait to
  // be taken. `on_error` gets a sentence for each image that cannot be used, from one thread at a time. `paths` must
  // outlive the pool. Throws RunError if not even one thread can be started.
  DecoderPool(const std::vector<std::string> &paths, const Preprocess &preprocess, const ModelShape &shape,
              size_t threads, std::function<void(const std::string &)> on_error);
  DecoderPool(const DecoderPool &) = delete;
  DecoderPool &operator=(const DecoderPool &) = delete;
  ~DecoderPool();

  // The next batch, or nothing after the last one. For any thread.
  std::optional<Batch> next() { return full_.pop(); }

  // Drops the images that are not decoded yet: next() gives the batches that wait, then nothing.
  void stop() { full_.close(); }

  // Takes back a batch that is no longer needed, to use its memory again.
  void recycle(Batch batch);

 private:
  void work();
  // Decodes one image into `target`, which has room for it. Returns a sentence if it cannot be used, else "".
  std::string decode(const std::string &path, std::vector<uint8_t> &target) const;
  // Copies an image into the open batch. False if nobody takes batches any more.
  bool add(size_t position, const std::vector<uint8_t> &image);
  std::vector<uint8_t> take_memory();
  // Counts so many threads as done. The last one passes the open batch on.
  void finish(size_t threads);

  const std::vector<std::string> &paths_;
  const Preprocess preprocess_;
  const ModelShape shape_;
  const std::function<void(const std::string &)> on_error_;
  BoundedQueue<Batch> full_;
  std::atomic<size_t> next_{0};
  std::mutex mutex_;  // guards open_, working_ and on_error_
  Batch open_;
  size_t working_ = 0;
  std::mutex spare_mutex_;
  std::vector<std::vector<uint8_t>> spare_;
  std::vector<std::thread> threads_;
};

#endif

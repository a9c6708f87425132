// Threads that turn image files into full batches of what the engine takes, ahead of it.
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

// Images in the order in which they got ready.
struct Batch {
  std::vector<uint8_t> images;    // room for a full batch, one image after the other
  std::vector<size_t> positions;  // of each image among the paths; fewer than a full batch only in the last
};

class DecoderPool {
 public:
  // Starts `threads` threads on the files `paths`, or one for each file if that is fewer; at most two full batches wait
  // to be taken. Of an image that cannot be used `on_error` gets a sentence, from one of the threads, never from two at
  // once. `paths` must outlive the pool. Throws RunError if there can be no thread at all.
  DecoderPool(const std::vector<std::string> &paths, const Preprocess &preprocess, const ModelShape &shape,
              size_t threads, std::function<void(const std::string &)> on_error);
  DecoderPool(const DecoderPool &) = delete;
  DecoderPool &operator=(const DecoderPool &) = delete;
  ~DecoderPool();

  // The next batch, or nothing after the last one. For any thread.
  std::optional<Batch> next() { return full_.pop(); }

  // Lets next() end early.
  void stop() { full_.close(); }

  // Gives a batch back that is no longer needed, so that its memory is used again.
  void recycle(Batch batch);

 private:
  void work();
  // One image to `target`, which has room for it. Returns a sentence if it cannot be used, else nothing.
  std::string decode(const std::string &path, std::vector<uint8_t> &target) const;
  // Copies an image into the open batch. False if nobody takes batches any more.
  bool add(size_t position, const std::vector<uint8_t> &image);
  std::vector<uint8_t> take_memory();
  // Notes that so many threads are done. The last one passes on what is in the open batch.
  void finish(size_t threads);

  const std::vector<std::string> &paths_;
  const Preprocess preprocess_;
  const ModelShape shape_;
  const std::function<void(const std::string &)> on_error_;
  BoundedQueue<Batch> full_;
  std::atomic<size_t> next_{0};
  std::mutex mutex_;  // of the open batch, the count of threads and on_error_
  Batch open_;
  size_t working_ = 0;
  std::mutex spare_mutex_;
  std::vector<std::vector<uint8_t>> spare_;
  std::vector<std::thread> threads_;
};

#endif

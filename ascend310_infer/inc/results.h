// The folder of result files, which one run at a time writes and a later one may continue.
#ifndef ASCEND310_INFER_RESULTS_H
#define ASCEND310_INFER_RESULTS_H

#include <cstddef>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "bounded_queue.h"
#include "files.h"

class ResultFolder {
 public:
  // Creates the folder `root` and locks it. Throws RunError if it cannot be written or another run holds it.
  ResultFolder(const std::string &root, std::vector<std::string> names);

  // Starts anew: notes which model the results will be of, and removes earlier results: all of them in a folder that
  // this program has written, in any other folder only those of the same names. Their disk space is used again. Throws
  // RunError.
  void begin(const std::string &model_identity);

  // Goes on with what a killed run left. Returns for each name whether its result is there with all `num_classes`
  // logits. Throws RunError if the results are another model's.
  std::vector<bool> continue_run(const std::string &model_identity, size_t num_classes);

  // Writes one image's logits, whole or not at all. Throws RunError.
  void write(size_t index, const float *logits, size_t count);

  // Removes what is left of earlier results. Throws RunError.
  void finish();

 private:
  std::string root_;
  std::vector<std::string> names_;
  FileDescriptor lock_;
  std::string last_folder_;
};

// Writes results in a thread of its own, so that the engine need not wait for the disk.
class ResultWriter {
 public:
  // `folder` must outlive the writer, and nobody else may use it meanwhile.
  explicit ResultWriter(ResultFolder &folder);
  ResultWriter(const ResultWriter &) = delete;
  ResultWriter &operator=(const ResultWriter &) = delete;
  // Writes what is queued, unless an earlier write failed; then the rest is lost.
  ~ResultWriter();

  // Queues a copy of the rows of `count` logits for the results of numbers `indices`. False if an earlier result could
  // not be written; finish() says why. For any thread.
  bool write(std::vector<size_t> indices, const float *logits, size_t count);

  // Waits until all results are written. Throws RunError if one could not be.
  void finish();

 private:
  struct Rows {
    std::vector<size_t> indices;
    std::vector<float> logits;
    size_t count;
  };

  void work();

  ResultFolder &folder_;
  BoundedQueue<Rows> queue_;
  std::exception_ptr failure_;  // read only after the thread's end
  std::thread thread_;
};

// What tells one model from another: its file's size and a checksum of its bytes.
std::string identify_model(const std::string &model_path);

#endif

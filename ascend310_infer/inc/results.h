// The folder of result files, which one run at a time writes and a later one may continue.
#ifndef ASCEND310_INFER_RESULTS_H
#define ASCEND310_INFER_RESULTS_H

#include <cstddef>
#include <string>
#include <vector>

#include "files.h"

class ResultFolder {
 public:
  // Creates the folder `root` and locks it. Throws RunError if it cannot be written or another run holds it.
  ResultFolder(const std::string &root, std::vector<std::string> names);

  // Starts anew: notes which model the coming results are of, and removes earlier ones: all in a folder that this
  // program wrote, in another folder those of the same names. Throws RunError.
  void begin(const std::string &model_identity);

  // Goes on with what a killed run left. Returns for each name whether its result is there, whole, with `num_classes`
  // logits. Throws RunError if the results that are there are another model's.
  std::vector<bool> continue_run(const std::string &model_identity, size_t num_classes);

  // Writes one image's logits, whole or not at all. Throws RunError.
  void write(size_t index, const float *logits, size_t count);

 private:
  std::string root_;
  std::vector<std::string> names_;
  FileDescriptor lock_;
  std::string last_folder_;
};

// What tells one model from another: its file's size and a checksum of its bytes.
std::string identify_model(const std::string &model_path);

#endif

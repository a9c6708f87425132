// The run: decode, infer, write the results, and time it.
#ifndef ASCEND310_INFER_CLASSIFY_H
#define ASCEND310_INFER_CLASSIFY_H

#include <cstddef>
#include <string>
#include <vector>

#include "engine.h"
#include "preprocess.h"
#include "results.h"

// Images to classify: paths[i] is a file, whose logits are written as result number indices[i].
struct Work {
  std::vector<std::string> paths;
  std::vector<size_t> indices;
};

struct RunReport {
  size_t classified = 0;               // images with a result, over all rounds
  size_t unusable = 0;                 // images that could not be decoded; each was named on standard error
  double seconds = 0;                  // from the first file opened to the last result written
  std::vector<double> batch_seconds;   // the engine's time for each batch; several may be under way at once
  double engine_images_per_second = 0; // alone, on ready batches; 0 if it was not measured
};

// Classifies all of `work` and adds to `report`. Images that cannot be used are named on standard error and skipped.
// Throws RunError if the engine fails or a result cannot be written; results written before that are kept.
void classify(const Work &work, const Preprocess &preprocess, size_t threads, Engine &engine, ResultFolder &results,
              RunReport &report);

// Images/s of the engine alone: all of its lanes, on batches that are ready in memory.
double measure_engine(Engine &engine, size_t batches);

// Writes the timings as text in the model zoo's form (`test_perform_static.txt`) and as JSON
// (`test_perform_static.json`). Throws RunError.
void write_timings(const std::string &folder, const std::string &engine_name, size_t batch_size, size_t skipped,
                   const RunReport &report);

// The q-quantile of the values by the nearest rank, q from 0 to 1; 0 if there are no values.
double quantile(std::vector<double> values, double q);

#endif

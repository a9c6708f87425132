// What a model file says of itself: the JSON in an ONNX file's metadata, or beside any other model file.
#ifndef ASCEND310_INFER_MODEL_INFO_H
#define ASCEND310_INFER_MODEL_INFO_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "preprocess.h"

struct ModelInfo {
  std::string variant = "b0";
  size_t num_classes = 1000;
  std::vector<std::string> class_names;  // in the order of the labels; empty where they are not known
  Preprocess preprocess;
  bool aipp = false;  // the model takes pixels, and AIPP on the device normalises them
};

// Reads the description's JSON. Throws RunError, its sentence beginning with `source`, if it is no JSON, of another
// format or holds a value that makes no sense.
ModelInfo parse_model_info(const std::string &text, const std::string &source);

// The description of a model file: an ONNX file's metadata; else `b0.json` beside `b0.mindir` (or beside the ONNX
// file). Throws RunError if there is none.
ModelInfo read_model_info(const std::string &model_path);

// The value of an ONNX file's metadata entry, or nothing. Reads protocol buffers' wire format: the file is a sequence
// of fields, of which all others are skipped. Throws RunError, its sentence beginning with `source`, if it is damaged.
std::optional<std::string> find_onnx_metadata(const uint8_t *data, size_t size, const std::string &key,
                                              const std::string &source);

// Refuses a labelled folder whose classes are not the model's: another number of them, or the same names for other
// labels. Names of which the model knows none (synset numbers instead of words) cannot be compared and pass. Throws
// UsageError.
void check_classes(const ModelInfo &info, const std::vector<std::string> &classes, const std::string &root,
                   const std::string &model_path);

#endif

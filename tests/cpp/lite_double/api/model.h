// Part of the double: a model.
#ifndef LITE_DOUBLE_MODEL_H
#define LITE_DOUBLE_MODEL_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "include/api/context.h"
#include "include/api/status.h"
#include "include/api/types.h"

namespace mindspore {

class Model {
 public:
  Model();
  ~Model();
  Status Build(const std::string &model_path, ModelType model_type, const std::shared_ptr<Context> &context = nullptr);
  Status Resize(const std::vector<MSTensor> &inputs, const std::vector<std::vector<int64_t>> &dims);
  std::vector<MSTensor> GetInputs();
  Status Predict(const std::vector<MSTensor> &inputs, std::vector<MSTensor> *outputs);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mindspore

#endif

// Part of the double: tensors, which are shared when copied, as the real ones.
#ifndef LITE_DOUBLE_TYPES_H
#define LITE_DOUBLE_TYPES_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "include/api/data_type.h"
#include "mindapi/base/format.h"

namespace mindspore {

enum ModelType : uint32_t { kMindIR = 0, kMindIR_Lite = 4 };

class MSTensor {
 public:
  struct Impl;
  explicit MSTensor(std::shared_ptr<Impl> impl);
  std::string Name() const;
  enum DataType DataType() const;
  const std::vector<int64_t> &Shape() const;
  std::shared_ptr<const void> Data() const;
  void *MutableData();
  size_t DataSize() const;
  Format format() const;

 private:
  friend class Model;
  std::shared_ptr<Impl> impl_;
};

}  // namespace mindspore

#endif

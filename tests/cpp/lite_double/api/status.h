// Part of the double: what calls return.
#ifndef LITE_DOUBLE_STATUS_H
#define LITE_DOUBLE_STATUS_H

#include <cstdint>
#include <string>
#include <utility>

namespace mindspore {

enum StatusCode : uint32_t { kSuccess = 0, kLiteError = 0xF0000001 };

class Status {
 public:
  Status(enum StatusCode code = kSuccess, std::string text = "") : code_(code), text_(std::move(text)) {}
  enum StatusCode StatusCode() const { return code_; }
  std::string ToString() const { return text_; }
  bool operator==(enum StatusCode other) const { return code_ == other; }
  bool operator!=(enum StatusCode other) const { return code_ != other; }

 private:
  enum StatusCode code_;
  std::string text_;
};

}  // namespace mindspore

#endif

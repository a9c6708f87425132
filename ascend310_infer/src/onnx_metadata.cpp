// Reads as much of protocol buffers' wire format as ONNX metadata needs: ModelProto's field 14 holds entries whose
// field 1 is the key and field 2 the value.

#include <string_view>

#include "errors.h"
#include "model_info.h"

namespace {

constexpr uint32_t kMetadataField = 14;
constexpr uint32_t kKeyField = 1;
constexpr uint32_t kValueField = 2;

// A message's fields, one after the other.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string &source) : bytes_(bytes), source_(source) {}

  // Steps to the next field; its number in `number`, its bytes in `content` (empty for numbers). False at the end.
  bool next(uint32_t &number, std::string_view &content) {
    if (bytes_.empty()) return false;
    const uint64_t tag = read_varint();
    number = static_cast<uint32_t>(tag >> 3);
    content = {};
    switch (tag & 7) {
      case 0:
        read_varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        content = take(read_varint());
        break;
      case 5:
        take(4);
        break;
      default:
        refuse();
    }
    return true;
  }

 private:
  uint64_t read_varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1).front());
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    refuse();
  }

  std::string_view take(uint64_t count) {
    if (count > bytes_.size()) refuse();
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }

  [[noreturn]] void refuse() const { throw RunError(source_ + ": it is no ONNX file, or it is damaged"); }

  std::string_view bytes_;
  const std::string &source_;
};

}  // namespace

std::optional<std::string> find_onnx_metadata(const uint8_t *data, size_t size, const std::string &key,
                                              const std::string &source) {
  Fields model({reinterpret_cast<const char *>(data), size}, source);
  uint32_t number = 0;
  std::string_view content;
  while (model.next(number, content)) {
    if (number != kMetadataField) continue;
    Fields entry(content, source);
    std::string_view found_key;
    std::string_view value;
    while (entry.next(number, content)) {
      if (number == kKeyField) found_key = content;
      if (number == kValueField) value = content;
    }
    if (found_key == key) return std::string(value);
  }
  return std::nullopt;
}

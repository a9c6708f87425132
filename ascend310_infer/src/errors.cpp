#include "errors.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>

namespace {

// How many bytes the UTF-8 character at `position` has; 0 if there is none (also for surrogates and overlong forms).
size_t count_utf8(const std::string &text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(i < text.size() ? text[i] : 0); };
  const uint8_t first = byte(position);
  const size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(position + i) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = byte(position + 1);
  const bool impossible = (first == 0xE0 && second < 0xA0) || (first == 0xED && second >= 0xA0) ||
                          (first == 0xF0 && second < 0x90) || (first == 0xF4 && second >= 0x90);
  return impossible ? 0 : length;
}

}  // namespace

std::string describe_errno(int number, const std::string &path) {
  static const std::map<int, const char *> reasons{{ENOSPC, "there is no space left on the device"},
                                                   {EDQUOT, "the disk quota is used up"},
                                                   {EACCES, "permission was denied"},
                                                   {EPERM, "the operation is not permitted"},
                                                   {EROFS, "the file system is read-only"},
                                                   {ENOENT, "there is no such file or directory"},
                                                   {EISDIR, "it is a directory"},
                                                   {ENOTDIR, "a part of the path is not a directory"}};
  const auto found = reasons.find(number);
  return path + ": " + (found == reasons.end() ? std::strerror(number) : found->second);
}

std::string one_line(const std::string &text) {
  std::string line;
  size_t length = 0;
  for (size_t i = 0; i < text.size(); i += length) {
    length = count_utf8(text, i);
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte == ' ' || (byte >= '\t' && byte <= '\r')) {
      if (!line.empty() && line.back() != ' ') line += ' ';
    } else if (length == 0 || byte < ' ' || byte == 0x7F) {
      char escaped[5];
      std::snprintf(escaped, sizeof(escaped), "\\x%02x", byte);
      line += escaped;
      length = 1;
    } else {
      line.append(text, i, length);
    }
  }
  return line;
}

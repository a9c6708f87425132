// Errors are sentences: what was wrong, with which file or flag, and what to do.
#ifndef ASCEND310_INFER_ERRORS_H
#define ASCEND310_INFER_ERRORS_H

#include <stdexcept>
#include <string>

// Wrong usage: an unknown flag, a bad value, flags that contradict each other. Exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A failed run: an unreadable file, a full disk, a device that does not exist. Exit code 1.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One image cannot be used. The run goes on with the others and ends with exit code 1.
class ImageError : public RunError {
 public:
  using RunError::RunError;
};

// "PATH: there is no space left on the device" for a value of errno.
std::string describe_errno(int number, const std::string &path);

// A sentence as one line that every terminal can show: white space becomes a single space; control characters and bytes
// that are no UTF-8, from a file's name or content, are written as \xNN.
std::string one_line(const std::string &text);

#endif

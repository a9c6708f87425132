// Files read whole and written whole.
#ifndef ASCEND310_INFER_FILES_H
#define ASCEND310_INFER_FILES_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

// An open file descriptor that closes itself; -1 is none.
class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor = -1) : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor &&other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileDescriptor &operator=(FileDescriptor &&other) noexcept;
  FileDescriptor(const FileDescriptor &) = delete;
  FileDescriptor &operator=(const FileDescriptor &) = delete;
  ~FileDescriptor() { close(); }

  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  // Closes now. Returns errno of the close, 0 for success or if it was closed already.
  int close();

 private:
  int descriptor_;
};

bool ends_with(const std::string &text, const std::string &ending);

// A regular file's bytes. Throws RunError if it is missing, no regular file, unreadable or larger than `limit` bytes.
std::vector<uint8_t> read_file(const std::string &path, size_t limit);

// Throws RunError as read_file does, without reading the bytes.
void check_file(const std::string &path, size_t limit);

// Where write_file_atomically writes first.
std::string aside_of(const std::string &path);

// Writes `size` bytes to a hidden temporary file and renames it to `path`, so that the file appears whole or not at
// all. The temporary name follows from `path`: the next run overwrites what a killed run left. Throws RunError.
void write_file_atomically(const std::string &path, const void *data, size_t size);

// Creates a folder and its parents, if missing. Throws RunError.
void make_folders(const std::string &path);

#endif

#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "errors.h"

FileDescriptor &FileDescriptor::operator=(FileDescriptor &&other) noexcept {
  if (this != &other) {
    close();
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

int FileDescriptor::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  return descriptor >= 0 && ::close(descriptor) != 0 ? errno : 0;
}

bool ends_with(const std::string &text, const std::string &ending) {
  return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

namespace {

// Opens a regular file of at most `limit` bytes; its size goes to `size`.
FileDescriptor open_file(const std::string &path, size_t limit, size_t &size) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.is_open()) throw RunError(describe_errno(errno, path));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw RunError(describe_errno(errno, path));
  if (S_ISDIR(status.st_mode)) throw RunError(describe_errno(EISDIR, path));
  if (!S_ISREG(status.st_mode)) throw RunError(path + ": it is not a regular file");
  if (static_cast<uint64_t>(status.st_size) > limit) {
    throw RunError(path + ": it has " + std::to_string(status.st_size) + " bytes, more than " + std::to_string(limit) +
                   " are refused");
  }
  size = static_cast<size_t>(status.st_size);
  return file;
}

}  // namespace

void check_file(const std::string &path, size_t limit) {
  size_t size = 0;
  open_file(path, limit, size);
}

std::vector<uint8_t> read_file(const std::string &path, size_t limit) {
  size_t size = 0;
  const FileDescriptor file = open_file(path, limit, size);
  std::vector<uint8_t> data(size);
  size_t filled = 0;
  while (filled < data.size()) {
    const ssize_t count = ::read(file.get(), data.data() + filled, data.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw RunError(describe_errno(errno, path));
    if (count == 0) break;  // it has become shorter
    filled += static_cast<size_t>(count);
  }
  data.resize(filled);
  return data;
}

std::string aside_of(const std::string &path) {
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(0, name) + "." + path.substr(name) + ".tmp";
}

void write_file_atomically(const std::string &path, const void *data, size_t size) {
  const std::string aside = aside_of(path);
  FileDescriptor file(::open(aside.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!file.is_open()) throw RunError(describe_errno(errno, path));
  // What an earlier file has beyond the new end goes; its beginning is overwritten.
  int failure = ::ftruncate(file.get(), static_cast<off_t>(size)) == 0 ? 0 : errno;
  const auto *bytes = static_cast<const char *>(data);
  while (size > 0 && failure == 0) {
    const ssize_t count = ::write(file.get(), bytes, size);
    if (count >= 0) {
      bytes += count;
      size -= static_cast<size_t>(count);
    } else if (errno != EINTR) {
      failure = errno;
    }
  }
  const int close_failure = file.close();  // some file systems report a full disk only here
  if (failure == 0) failure = close_failure;
  if (failure == 0 && std::rename(aside.c_str(), path.c_str()) != 0) failure = errno;
  if (failure != 0) {
    ::unlink(aside.c_str());
    throw RunError(describe_errno(failure, path));
  }
}

void make_folders(const std::string &path) {
  for (size_t end = 1; end <= path.size(); ++end) {
    if (end != path.size() && path[end] != '/') continue;
    const std::string folder = path.substr(0, end);
    if (::mkdir(folder.c_str(), 0777) == 0) continue;
    const int failure = errno;
    struct stat status {};
    if (::stat(folder.c_str(), &status) != 0) throw RunError(describe_errno(failure, folder));
    if (!S_ISDIR(status.st_mode)) throw RunError(folder + ": it is a file where a folder is needed");
  }
}

#include "results.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "errors.h"

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "result files are little-endian");

constexpr size_t kWaitingBatches = 2;
constexpr char kModelFile[] = "/.model";  // hidden, so that it is no result

bool is_result(const std::string &name) { return ends_with(name, "_0.bin"); }
bool is_aside(const std::string &name) { return ends_with(name, "_0.bin.tmp"); }

// Of nftw, for each entry: sets a result aside, where the new one will be written over it. That is faster than to remove
// it: ext4 looks at each file that was just removed before it makes a new one. What has other names, may not be written or
// is no regular file is removed. Ends with errno where that fails.
int set_aside(const char *path, const struct stat *status, int kind, FTW *) {
  if (kind == FTW_DNR) return EACCES;
  if (kind != FTW_F || !(is_result(path) || is_aside(path))) return 0;
  const bool usable = S_ISREG(status->st_mode) && status->st_nlink == 1 && ::access(path, W_OK) == 0;
  if (usable && is_aside(path)) return 0;
  return (usable ? std::rename(path, aside_of(path).c_str()) : ::unlink(path)) == 0 ? 0 : errno;
}

// Of nftw: removes what was set aside and not needed.
int remove_aside(const char *path, const struct stat *, int kind, FTW *) {
  return kind != FTW_F || !is_aside(path) || ::unlink(path) == 0 ? 0 : errno;
}

// Does this to all files in all folders below. Not std::filesystem, which GCC has from 8 on.
void for_each_file(const std::string &root, int (*change)(const char *, const struct stat *, int, FTW *)) {
  const int failure = ::nftw(root.c_str(), change, 16, FTW_PHYS);
  if (failure != 0) throw RunError(describe_errno(failure < 0 ? errno : failure, root));
}

}  // namespace

ResultFolder::ResultFolder(const std::string &root, std::vector<std::string> names)
    : root_(root), names_(std::move(names)) {
  make_folders(root_);
  lock_ = FileDescriptor(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_.is_open()) throw RunError(describe_errno(errno, root_));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw RunError(root_ + ": another run is writing its results there; name another --result_path");
  }
}

void ResultFolder::begin(const std::string &model_identity) {
  struct stat status {};
  if (::stat((root_ + kModelFile).c_str(), &status) == 0) {
    for_each_file(root_, set_aside);
  } else {
    // This program has not written to the folder: it may remove only what it will overwrite.
    for (const std::string &name : names_) {
      const std::string path = root_ + "/" + name;
      if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
        throw RunError(describe_errno(errno, path));
      }
    }
  }
  write_file_atomically(root_ + kModelFile, model_identity.data(), model_identity.size());
}

std::vector<bool> ResultFolder::continue_run(const std::string &model_identity, size_t num_classes) {
  std::vector<bool> done(names_.size(), false);
  struct stat status {};
  if (::stat((root_ + kModelFile).c_str(), &status) != 0) {
    begin(model_identity);  // nothing to go on with, or results of unknown origin
    return done;
  }
  const std::vector<uint8_t> noted = read_file(root_ + kModelFile, 4096);
  if (std::string(noted.begin(), noted.end()) != model_identity) {
    throw RunError(root_ + ": its results are another model's; run without --skip_existing to replace them");
  }
  for (size_t i = 0; i < names_.size(); ++i) {
    done[i] = ::stat((root_ + "/" + names_[i]).c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
              static_cast<size_t>(status.st_size) == num_classes * sizeof(float);
  }
  return done;
}

void ResultFolder::write(size_t index, const float *logits, size_t count) {
  const std::string path = root_ + "/" + names_[index];
  const std::string folder = path.substr(0, path.rfind('/'));
  if (folder != last_folder_) {
    make_folders(folder);
    last_folder_ = folder;
  }
  write_file_atomically(path, logits, count * sizeof(float));
}

void ResultFolder::finish() { for_each_file(root_, remove_aside); }

ResultWriter::ResultWriter(ResultFolder &folder)
    : folder_(folder), queue_(kWaitingBatches), thread_([this] { work(); }) {}

ResultWriter::~ResultWriter() {
  queue_.close();
  if (thread_.joinable()) thread_.join();
}

bool ResultWriter::write(std::vector<size_t> indices, const float *logits, size_t count) {
  std::vector<float> copy(logits, logits + indices.size() * count);
  return queue_.push({std::move(indices), std::move(copy), count});
}

void ResultWriter::finish() {
  queue_.close();
  if (thread_.joinable()) thread_.join();
  if (failure_) std::rethrow_exception(failure_);
  folder_.finish();
}

void ResultWriter::work() {
  try {
    while (const auto rows = queue_.pop()) {
      for (size_t i = 0; i < rows->indices.size(); ++i) {
        folder_.write(rows->indices[i], rows->logits.data() + i * rows->count, rows->count);
      }
    }
  } catch (...) {
    failure_ = std::current_exception();
    queue_.close();
  }
}

std::string identify_model(const std::string &model_path) {
  const std::vector<uint8_t> data = read_file(model_path, size_t{4} << 30);
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const uint8_t byte : data) hash = (hash ^ byte) * 0x100000001b3;
  return std::to_string(data.size()) + " bytes, FNV-1a " + std::to_string(hash) + "\n";
}

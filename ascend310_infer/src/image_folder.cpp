#include "image_folder.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>
#include <unordered_map>

#include "errors.h"

namespace {

const std::set<std::string> kSuffixes{".jpg",  ".jpeg", ".png", ".bmp", ".webp",
                                      ".gif", ".tif",  ".tiff", ".ppm", ".pgm"};
// Deep enough for every data set, and an end for symbolic links that lead in a circle.
constexpr int kMaxDepth = 16;

struct CloseFolder {
  void operator()(DIR *folder) const { ::closedir(folder); }
};

// The names in a folder, hidden ones left out. Throws RunError.
std::vector<std::string> list_names(const std::string &path) {
  const std::unique_ptr<DIR, CloseFolder> folder(::opendir(path.c_str()));
  if (!folder) throw RunError(describe_errno(errno, path));
  std::vector<std::string> names;
  errno = 0;
  while (const dirent *entry = ::readdir(folder.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    errno = 0;
  }
  if (errno != 0) throw RunError(describe_errno(errno, path));
  return names;
}

// Whether the path is a folder or a link to one; a link to nothing is none.
bool is_folder(const std::string &path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

size_t find_suffix(const std::string &path) {
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  const size_t dot = path.rfind('.');
  return dot == std::string::npos || dot <= name ? path.size() : dot;
}

bool is_image_name(const std::string &name) {
  std::string suffix = name.substr(find_suffix(name));
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return kSuffixes.count(suffix) > 0;
}

void list_images(const std::string &folder, const std::string &prefix, int depth, std::vector<std::string> &found) {
  for (const std::string &name : list_names(folder)) {
    const std::string path = folder + "/" + name;
    const bool below = is_folder(path);
    if (is_image_name(name) && !below) {
      found.push_back(prefix + "/" + name);
    } else if (depth > 0 && below) {
      list_images(path, prefix + "/" + name, depth - 1, found);
    }
  }
}

}  // namespace

ImageFolder read_image_folder(const std::string &root) {
  struct stat status {};
  if (::stat(root.c_str(), &status) != 0) {
    throw RunError(errno == ENOENT ? root + ": there is no such folder" : describe_errno(errno, root));
  }
  if (!S_ISDIR(status.st_mode)) throw RunError(root + ": it is a file, not a folder of class folders");
  ImageFolder result;
  result.root = root;
  for (const std::string &name : list_names(root)) {
    if (is_folder(root + "/" + name)) result.classes.push_back(name);
  }
  // Bytes of UTF-8 sort as code points do, which is Python's order.
  std::sort(result.classes.begin(), result.classes.end());
  if (result.classes.empty()) {
    throw RunError(root + ": there are no class folders in it; expected one folder for each class");
  }
  for (const std::string &name : result.classes) {
    std::vector<std::string> found;
    list_images(root + "/" + name, name, kMaxDepth, found);
    std::sort(found.begin(), found.end());
    result.paths.insert(result.paths.end(), found.begin(), found.end());
  }
  if (result.paths.empty()) {
    throw RunError(root + ": its " + std::to_string(result.classes.size()) + " class folders hold no image");
  }
  return result;
}

std::vector<std::string> name_results(const std::vector<std::string> &paths) {
  std::vector<std::string> stems;
  for (const std::string &path : paths) stems.push_back(path.substr(0, find_suffix(path)));
  while (true) {
    std::unordered_map<std::string, size_t> count;
    for (const std::string &stem : stems) ++count[stem];
    if (count.size() == stems.size()) break;
    // A kept suffix may meet another file's stem (a.jpg beside a.jpg.png): that one then keeps its own, too.
    for (size_t i = 0; i < stems.size(); ++i) {
      if (count[stems[i]] > 1) stems[i] = paths[i];
    }
  }
  for (std::string &stem : stems) stem += "_0.bin";
  return stems;
}

#include "image_folder.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>

#include "errors.h"

namespace {

const std::set<std::string> kSuffixes{".jpg",  ".jpeg", ".png", ".bmp", ".webp",
                                      ".gif", ".tif",  ".tiff", ".ppm", ".pgm"};

struct CloseFolder {
  void operator()(DIR *folder) const { ::closedir(folder); }
};

struct Entry {
  std::string name;
  bool is_folder;  // or a link to one; a broken link is not
};

bool is_folder(const std::string &path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

// The entries of a folder but those of hidden names. Throws RunError.
std::vector<Entry> list_folder(const std::string &path) {
  const std::unique_ptr<DIR, CloseFolder> folder(::opendir(path.c_str()));
  if (!folder) throw RunError(describe_errno(errno, path));
  std::vector<Entry> entries;
  errno = 0;
  while (const dirent *entry = ::readdir(folder.get())) {
    if (entry->d_name[0] != '.') {
      const bool certain = entry->d_type == DT_REG || entry->d_type == DT_DIR;
      const bool below = certain ? entry->d_type == DT_DIR : is_folder(path + "/" + entry->d_name);
      entries.push_back({entry->d_name, below});
    }
    errno = 0;
  }
  if (errno != 0) throw RunError(describe_errno(errno, path));
  return entries;
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

// The same for all paths and links to one folder, different for any two folders.
using Identity = std::pair<dev_t, ino_t>;

// Adds the images below a folder, each path beginning with `prefix`. Skips links back to one of the folders `above`.
void list_images(const std::string &folder, const std::string &prefix, std::vector<Identity> &above,
                 std::vector<std::string> &found) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0) throw RunError(describe_errno(errno, folder));
  const Identity here(status.st_dev, status.st_ino);
  if (std::find(above.begin(), above.end(), here) != above.end()) return;
  above.push_back(here);
  for (const Entry &entry : list_folder(folder)) {
    if (entry.is_folder) {
      list_images(folder + "/" + entry.name, prefix + "/" + entry.name, above, found);
    } else if (is_image_name(entry.name)) {
      found.push_back(prefix + "/" + entry.name);
    }
  }
  above.pop_back();
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
  for (const Entry &entry : list_folder(root)) {
    if (entry.is_folder) result.classes.push_back(entry.name);
  }
  // Bytes of UTF-8 sort as code points do, which is Python's order.
  std::sort(result.classes.begin(), result.classes.end());
  if (result.classes.empty()) {
    throw RunError(root + ": there are no class folders in it; expected one folder for each class");
  }
  for (const std::string &name : result.classes) {
    std::vector<std::string> found;
    std::vector<Identity> above{{status.st_dev, status.st_ino}};
    list_images(root + "/" + name, name, above, found);
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
    // A name with its suffix may equal another file's stem (a.jpg and a.jpg.png): that file keeps its suffix, too.
    for (size_t i = 0; i < stems.size(); ++i) {
      if (count[stems[i]] > 1) stems[i] = paths[i];
    }
  }
  for (std::string &stem : stems) stem += "_0.bin";
  return stems;
}

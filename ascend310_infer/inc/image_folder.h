// A folder of class folders; the rules are those of src/data/image_folder.py and src/inference/result_files.py.
#ifndef ASCEND310_INFER_IMAGE_FOLDER_H
#define ASCEND310_INFER_IMAGE_FOLDER_H

#include <string>
#include <vector>

struct ImageFolder {
  std::string root;
  std::vector<std::string> classes;  // sorted; the position is the label
  std::vector<std::string> paths;    // relative to root, sorted by class and path
};

// Lists a labelled folder. Throws RunError if it is missing, unreadable, has no class folders, or they hold no image.
ImageFolder read_image_folder(const std::string &root);

// The result file of each image, relative to the results' folder: `[class]/[stem]_0.bin`. Images of one folder whose
// names differ in the suffix alone keep the suffix, so that no two results have the same name.
std::vector<std::string> name_results(const std::vector<std::string> &paths);

#endif

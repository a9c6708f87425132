// pixels MODEL LIST OUT: preprocesses images as the program does, for comparison with Pillow. LIST names one image a
// line. Writes to OUT for each image 'y', the bytes of its planes and its float32 values; or 'n', the sentence and a
// line end.

#include <fstream>
#include <iostream>

#include "errors.h"
#include "files.h"
#include "model_info.h"
#include "preprocess.h"

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const Preprocess preprocess = read_model_info(argv[1]).preprocess;
  std::ifstream list(argv[2]);
  std::ofstream out(argv[3], std::ios::binary);
  std::string path;
  while (std::getline(list, path)) {
    try {
      const auto data = read_file(path, size_t{1} << 30);
      const Planes planes = load_planes(data.data(), data.size(), preprocess, path);
      std::vector<float> values(planes.size());
      normalise(planes, preprocess, false, values.data());
      out << 'y';
      out.write(reinterpret_cast<const char *>(planes.data()), static_cast<std::streamsize>(planes.size()));
      out.write(reinterpret_cast<const char *>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
    } catch (const RunError &error) {
      out << 'n' << error.what() << '\n';
    }
  }
  return out.good() ? 0 : 1;
}

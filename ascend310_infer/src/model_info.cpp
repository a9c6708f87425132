#include "model_info.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "errors.h"
#include "files.h"

namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;
constexpr size_t kMaxJsonBytes = 64 << 20;
constexpr size_t kMaxModelBytes = size_t{4} << 30;
constexpr size_t kMaxClasses = 1 << 24;

// The beginning of a text, which may be as long as the file.
std::string excerpt(const std::string &text) { return text.size() <= 300 ? text : text.substr(0, 300) + "..."; }

// A value as text. Nested values are only named: dump() is recursive, and a file may nest values without limit.
std::string show(const Json &value) {
  for (const Json &part : value) {
    if (part.is_structured()) return std::string("a nested ") + value.type_name();
  }
  return excerpt(value.dump());
}

size_t parse_whole_number(const Json &fields, const char *name, size_t low, size_t high) {
  const Json &value = fields.at(name);
  if (!value.is_number_integer() || value < low || value > high) {
    throw RunError(std::string(name) + " is " + show(value) + ", not a whole number from " + std::to_string(low) +
                   " to " + std::to_string(high));
  }
  return value.get<size_t>();
}

std::array<float, 3> parse_three(const Json &fields, const char *name) {
  const Json &values = fields.at(name);
  std::array<float, 3> result{};
  bool good = values.is_array() && values.size() == result.size();
  for (size_t i = 0; good && i < result.size(); ++i) {
    good = values[i].is_number() && std::isfinite(values[i].get<double>());
    if (good) result[i] = static_cast<float>(values[i].get<double>());
  }
  if (!good) throw RunError(std::string(name) + " is " + show(values) + ", not three numbers");
  return result;
}

void refuse_unknown(const Json &fields, const std::set<std::string> &known) {
  for (const auto &field : fields.items()) {
    if (known.count(field.key()) == 0) throw RunError("there is no setting '" + excerpt(field.key()) + "'");
  }
}

// Settings that are left out keep the defaults of Preprocess.
Preprocess parse_preprocess(const Json &fields) {
  if (!fields.is_object()) throw RunError("preprocess is no object");
  refuse_unknown(fields, {"image_size", "resize", "interpolation", "mean", "std"});
  Preprocess preprocess;
  if (fields.contains("image_size")) {
    preprocess.image_size = parse_whole_number(fields, "image_size", 1, kMaxResizedSide);
  }
  if (fields.contains("resize")) {
    preprocess.resize = parse_whole_number(fields, "resize", preprocess.image_size, kMaxResizedSide);
  } else if (preprocess.resize < preprocess.image_size) {
    throw RunError("resize is missing");
  }
  if (fields.contains("interpolation")) {
    const Json &name = fields.at("interpolation");
    if (name != "bicubic" && name != "bilinear") {
      throw RunError("interpolation is " + show(name) + ", not bicubic or bilinear");
    }
    preprocess.interpolation = name == "bicubic" ? Interpolation::kBicubic : Interpolation::kBilinear;
  }
  if (fields.contains("mean")) preprocess.mean = parse_three(fields, "mean");
  if (fields.contains("std")) preprocess.std = parse_three(fields, "std");
  if (!(*std::min_element(preprocess.std.begin(), preprocess.std.end()) > 0)) {
    throw RunError("std is " + show(fields.at("std")) + "; it must be above 0");
  }
  return preprocess;
}

ModelInfo parse_fields(const Json &fields) {
  if (!fields.is_object()) throw RunError("it is no object");
  if (fields.at("format") != kFormat) {
    throw RunError("it is of another format than " + std::to_string(kFormat) + "; a newer program wrote it");
  }
  refuse_unknown(fields, {"format", "variant", "num_classes", "class_names", "padding", "norm_eps", "preprocess", "origin",
                          "aipp"});
  ModelInfo info;
  if (fields.contains("variant")) info.variant = fields.at("variant").get<std::string>();
  if (fields.contains("num_classes")) info.num_classes = parse_whole_number(fields, "num_classes", 1, kMaxClasses);
  if (fields.contains("class_names") && !fields.at("class_names").is_null()) {
    info.class_names = fields.at("class_names").get<std::vector<std::string>>();
    if (info.class_names.size() != info.num_classes) {
      throw RunError("it has " + std::to_string(info.num_classes) + " classes and " +
                     std::to_string(info.class_names.size()) + " class names");
    }
  }
  info.preprocess = parse_preprocess(fields.at("preprocess"));
  if (fields.contains("aipp")) info.aipp = fields.at("aipp").get<bool>();
  return info;
}

std::string info_path(const std::string &model_path) {
  const size_t dot = model_path.rfind('.');
  const size_t slash = model_path.rfind('/');
  const bool has_suffix = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1);
  return (has_suffix ? model_path.substr(0, dot) : model_path) + ".json";
}

}  // namespace

ModelInfo parse_model_info(const std::string &text, const std::string &source) {
  try {
    return parse_fields(Json::parse(text));
  } catch (const Json::exception &error) {
    throw RunError(source + ": the description of the model is broken (" + excerpt(error.what()) + ")");
  } catch (const RunError &error) {
    throw RunError(source + ": the description of the model is broken: " + error.what());
  }
}

ModelInfo read_model_info(const std::string &model_path) {
  if (ends_with(model_path, ".onnx")) {
    const std::vector<uint8_t> model = read_file(model_path, kMaxModelBytes);
    const auto text = find_onnx_metadata(model.data(), model.size(), "efficientnet", model_path);
    if (text) return parse_model_info(*text, model_path);
  } else {
    check_file(model_path, kMaxModelBytes);  // a missing model is reported before a missing description
  }
  const std::string path = info_path(model_path);
  std::vector<uint8_t> text;
  try {
    text = read_file(path, kMaxJsonBytes);
  } catch (const RunError &error) {
    throw RunError(model_path + ": nothing says what the model expects of its input (" + error.what() +
                   "); export.py writes the model together with this description");
  }
  return parse_model_info(std::string(text.begin(), text.end()), path);
}

void check_classes(const ModelInfo &info, const std::vector<std::string> &classes, const std::string &root,
                   const std::string &model_path) {
  if (classes.size() != info.num_classes) {
    throw UsageError(root + " has " + std::to_string(classes.size()) + " class folders, but " + model_path + " has " +
                     std::to_string(info.num_classes) + " classes");
  }
  const std::set<std::string> known(info.class_names.begin(), info.class_names.end());
  const bool related =
      std::any_of(classes.begin(), classes.end(), [&](const std::string &name) { return known.count(name) > 0; });
  for (size_t label = 0; related && label < classes.size(); ++label) {
    if (classes[label] != info.class_names[label]) {
      throw UsageError(root + ": class " + std::to_string(label) + " is '" + classes[label] + "', but " + model_path +
                       " was trained with '" + info.class_names[label] + "'");
    }
  }
}

// A double of AscendCL for tests. It does what AscendCL's documentation says, refuses what the documentation forbids,
// notes the calls in the file that ACL_DOUBLE_LOG names, and computes something known:
//
//   logits[n][c] = sum over p of x[n][p] * ((31 * p + 17 * c) % 101 - 50) / 1000
//
// with p the position in the image's values as they lie in memory. Its model file is text:
//
//   acl_double
//   input float32 4 3 32 32      (or uint8 4 32 32 3, as AIPP takes it; -1 for a batch of one of `batches`)
//   classes 10
//   batches 3 1 4 8              (optional: how many batch sizes, and which)
//   half 1                       (optional: the logits are float16)
//   fail_at 7                    (optional: the seventh run of a batch, of whatever lane, reports a failure)
//   milliseconds 20              (optional: how long a run takes at least)
//   probabilities 1              (optional: another output of the same shape, all zeros, before the logits)
//   images 2                     (optional: so many inputs of that shape)
//
// There are two devices, 0 and 1, each with ACL_DOUBLE_MEMORY bytes (default: 1 GB). ACL_DOUBLE_RUN_MODE=device makes
// it a board that this program itself runs on. Device memory has addresses that the processor cannot read.

#include <acl/acl.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

struct aclDataBuffer {
  void *data;
  size_t size;
};
struct aclmdlDataset {
  std::vector<aclDataBuffer *> buffers;
};

namespace {

constexpr int kWrongUse = 100000;
constexpr int kDeviceError = 507011;
constexpr uint32_t kDevices = 2;
constexpr uintptr_t kFirstAddress = 0xACE0000000000000;

struct ModelFile {
  aclDataType type = ACL_FLOAT;
  std::vector<int64_t> shape;
  std::vector<uint64_t> batches;
  int64_t classes = 0;
  int half = 0, fail_at = 0, milliseconds = 0, probabilities = 0, images = 1;

  uint64_t largest_batch() const {
    uint64_t largest = static_cast<uint64_t>(shape[0] < 0 ? 0 : shape[0]);
    for (const uint64_t size : batches) largest = std::max(largest, size);
    return largest;
  }
  size_t values() const { return static_cast<size_t>(shape[1] * shape[2] * shape[3]); }
  size_t image_bytes() const { return values() * (type == ACL_FLOAT ? 4 : 1); }
  size_t logit_bytes() const { return static_cast<size_t>(classes) * (half ? 2 : 4); }
};

struct Loaded {
  ModelFile file;
  void *context = nullptr;
  uint64_t batch = 0;  // as aclmdlSetDynamicBatchSize set it
  bool running = false;
};

struct ContextState {
  int device;
};

std::mutex guard;
bool initialised = false;
int device_in_use = -1;
int runs = 0;
uint32_t last_model = 0;
uintptr_t next_address = kFirstAddress;
size_t allocated = 0;
std::map<uintptr_t, std::vector<uint8_t>> memory;
std::map<uint32_t, Loaded> models;
std::map<void *, ContextState *> contexts;
int buffers = 0, datasets = 0, descs = 0;
thread_local void *current = nullptr;
thread_local std::string recent;

void note(const std::string &line) {
  if (const char *path = std::getenv("ACL_DOUBLE_LOG")) std::ofstream(path, std::ios::app) << line << "\n";
}

int fail(const std::string &text, int code = kWrongUse) {
  note("refused: " + text);
  recent = text;
  return code;
}

// The bytes of device memory from an address on; nullptr if `count` of them are not allocated.
uint8_t *find_bytes(const void *address, size_t count) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  auto found = memory.upper_bound(wanted);
  if (found == memory.begin()) return nullptr;
  --found;
  const size_t offset = wanted - found->first;
  return offset + count > found->second.size() ? nullptr : found->second.data() + offset;
}

std::string numbers(const std::vector<int64_t> &shape) {
  std::string text;
  for (const int64_t number : shape) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

uint16_t to_half(float value) {
  // Normal numbers only, which is what tests compute.
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = bits + 0xFFF + ((bits >> 13) & 1);
  const int exponent = static_cast<int>((rounded >> 23) & 0xFF) - 112;
  if (exponent <= 0) return static_cast<uint16_t>((bits >> 16) & 0x8000);
  return static_cast<uint16_t>(((rounded >> 16) & 0x8000) | (static_cast<uint32_t>(exponent) << 10) |
                               ((rounded >> 13) & 0x3FF));
}

bool read_model(const char *path, ModelFile &file) {
  std::ifstream stream(path);
  std::string word;
  if (!(stream >> word) || word != "acl_double") return false;
  while (stream >> word) {
    if (word == "input") {
      stream >> word;
      file.type = word == "float32" ? ACL_FLOAT : word == "uint8" ? ACL_UINT8 : ACL_INT32;
      file.shape.resize(4);
      for (int64_t &dimension : file.shape) stream >> dimension;
    } else if (word == "batches") {
      size_t count = 0;
      stream >> count;
      file.batches.resize(count);
      for (uint64_t &size : file.batches) stream >> size;
    } else {
      std::map<std::string, int *> settings{{"half", &file.half},
                                            {"fail_at", &file.fail_at},
                                            {"milliseconds", &file.milliseconds},
                                            {"probabilities", &file.probabilities},
                                            {"images", &file.images}};
      if (word == "classes") {
        stream >> file.classes;
      } else if (settings.count(word) > 0) {
        stream >> *settings[word];
      } else {
        return false;
      }
    }
  }
  return file.shape.size() == 4;
}

void compute(const ModelFile &file, size_t batch, const uint8_t *input, uint8_t *output) {
  for (size_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < file.classes; ++c) {
      double sum = 0;
      for (size_t p = 0; p < file.values(); ++p) {
        float x = 0;
        if (file.type == ACL_FLOAT) {
          std::memcpy(&x, input + n * file.image_bytes() + p * 4, 4);
        } else {
          x = input[n * file.image_bytes() + p];
        }
        sum += static_cast<double>(x) * static_cast<double>((31 * p + 17 * static_cast<size_t>(c)) % 101 - 50.0) / 1000;
      }
      const auto logit = static_cast<float>(sum);
      uint8_t *target = output + n * file.logit_bytes() + static_cast<size_t>(c) * (file.half ? 2 : 4);
      const uint16_t half = to_half(logit);
      std::memcpy(target, file.half ? static_cast<const void *>(&half) : &logit, file.half ? 2 : 4);
    }
  }
}

}  // namespace

struct aclmdlDesc {
  uint32_t id = 0;
  ModelFile file;
};

aclError aclInit(const char *) {
  const std::lock_guard<std::mutex> lock(guard);
  if (initialised) return fail("aclInit was called twice", 100002);
  initialised = true;
  note("aclInit");
  return ACL_SUCCESS;
}

aclError aclFinalize() {
  const std::lock_guard<std::mutex> lock(guard);
  if (!initialised) return fail("aclFinalize before aclInit");
  if (device_in_use >= 0) return fail("aclFinalize before aclrtResetDevice");
  initialised = false;
  const size_t left = memory.size() + models.size() + contexts.size() + static_cast<size_t>(buffers + datasets + descs);
  note("aclFinalize, " + std::to_string(left) + " things are left");
  return ACL_SUCCESS;
}

const char *aclGetRecentErrMsg() { return recent.empty() ? nullptr : recent.c_str(); }

float aclFloat16ToFloat(aclFloat16 value) {
  const int exponent = (value >> 10) & 0x1F;
  const float fraction = static_cast<float>(value & 0x3FF) / 1024;
  const float size = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
  return (value & 0x8000) != 0 ? -size : size;
}

aclError aclrtGetDeviceCount(uint32_t *count) {
  const std::lock_guard<std::mutex> lock(guard);
  if (!initialised) return fail("aclrtGetDeviceCount before aclInit");
  *count = kDevices;
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  const std::lock_guard<std::mutex> lock(guard);
  if (!initialised) return fail("aclrtSetDevice before aclInit");
  if (device < 0 || static_cast<uint32_t>(device) >= kDevices) return fail("invalid device ID", 107001);
  device_in_use = device;
  note("aclrtSetDevice " + std::to_string(device));
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t device) {
  const std::lock_guard<std::mutex> lock(guard);
  if (device != device_in_use) return fail("aclrtResetDevice of another device");
  if (!contexts.empty()) return fail("aclrtResetDevice before aclrtDestroyContext");
  device_in_use = -1;
  note("aclrtResetDevice " + std::to_string(device));
  return ACL_SUCCESS;
}

aclError aclrtGetRunMode(aclrtRunMode *mode) {
  const char *text = std::getenv("ACL_DOUBLE_RUN_MODE");
  *mode = text != nullptr && std::string(text) == "device" ? ACL_DEVICE : ACL_HOST;
  return ACL_SUCCESS;
}

aclError aclrtCreateContext(aclrtContext *context, int32_t device) {
  const std::lock_guard<std::mutex> lock(guard);
  if (device != device_in_use) return fail("aclrtCreateContext before aclrtSetDevice");
  auto *made = new ContextState{device};
  contexts[made] = made;
  *context = current = made;
  note("aclrtCreateContext on " + std::to_string(device));
  return ACL_SUCCESS;
}

aclError aclrtDestroyContext(aclrtContext context) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = contexts.find(context);
  if (found == contexts.end()) return fail("aclrtDestroyContext of no context");
  for (const auto &[id, model] : models) {
    if (model.context == context) return fail("aclrtDestroyContext before aclmdlUnload");
  }
  delete found->second;
  contexts.erase(found);
  if (current == context) current = nullptr;
  note("aclrtDestroyContext");
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  const std::lock_guard<std::mutex> lock(guard);
  if (contexts.count(context) == 0) return fail("aclrtSetCurrentContext of no context");
  current = context;
  return ACL_SUCCESS;
}

aclError aclrtMalloc(void **address, size_t size, aclrtMemMallocPolicy) {
  const std::lock_guard<std::mutex> lock(guard);
  if (current == nullptr) return fail("aclrtMalloc without a context");
  if (size == 0) return fail("aclrtMalloc of no bytes");
  const char *limit = std::getenv("ACL_DOUBLE_MEMORY");
  if (allocated + size > (limit == nullptr ? size_t{1} << 30 : std::stoul(limit))) return fail("out of memory", 207001);
  allocated += size;
  *address = reinterpret_cast<void *>(next_address);
  memory[next_address].resize(size, 0xAA);
  next_address += (size + 64 + 31) / 32 * 32;  // as AscendCL aligns it
  return ACL_SUCCESS;
}

aclError aclrtFree(void *address) {
  const std::lock_guard<std::mutex> lock(guard);
  if (current == nullptr) return fail("aclrtFree without a context");
  const auto found = memory.find(reinterpret_cast<uintptr_t>(address));
  if (found == memory.end()) return fail("aclrtFree of memory that is not allocated");
  allocated -= found->second.size();
  memory.erase(found);
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void *target, size_t room, const void *source, size_t count, aclrtMemcpyKind kind) {
  const std::lock_guard<std::mutex> lock(guard);
  if (current == nullptr) return fail("aclrtMemcpy without a context");
  if (count > room) return fail("aclrtMemcpy of more than there is room for");
  uint8_t *to = find_bytes(target, count);
  const uint8_t *from = find_bytes(source, count);
  aclrtRunMode mode = ACL_HOST;
  aclrtGetRunMode(&mode);
  if (mode == ACL_DEVICE) {
    if (kind != ACL_MEMCPY_DEVICE_TO_DEVICE) return fail("aclrtMemcpy of the host's kind on a board");
  } else if (!(kind == ACL_MEMCPY_HOST_TO_DEVICE && to != nullptr && from == nullptr) &&
             !(kind == ACL_MEMCPY_DEVICE_TO_HOST && to == nullptr && from != nullptr)) {
    return fail("aclrtMemcpy of kind " + std::to_string(kind) + " with memory of another kind");
  }
  std::memcpy(to != nullptr ? to : target, from != nullptr ? from : source, count);
  return ACL_SUCCESS;
}

aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) {
  const std::lock_guard<std::mutex> lock(guard);
  ++buffers;
  return new aclDataBuffer{data, size};
}

aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) {
  const std::lock_guard<std::mutex> lock(guard);
  --buffers;
  delete buffer;
  return ACL_SUCCESS;
}

aclmdlDataset *aclmdlCreateDataset() {
  const std::lock_guard<std::mutex> lock(guard);
  ++datasets;
  return new aclmdlDataset;
}

aclError aclmdlDestroyDataset(const aclmdlDataset *dataset) {
  const std::lock_guard<std::mutex> lock(guard);
  --datasets;
  delete dataset;
  return ACL_SUCCESS;
}

aclError aclmdlAddDatasetBuffer(aclmdlDataset *dataset, aclDataBuffer *buffer) {
  dataset->buffers.push_back(buffer);
  return ACL_SUCCESS;
}

aclError aclmdlLoadFromFile(const char *path, uint32_t *id) {
  const std::lock_guard<std::mutex> lock(guard);
  if (current == nullptr) return fail("aclmdlLoadFromFile without a context");
  Loaded loaded;
  if (!read_model(path, loaded.file)) return fail("it is no model", 545000);
  loaded.context = current;
  *id = ++last_model;
  models[*id] = loaded;
  note("aclmdlLoadFromFile");
  return ACL_SUCCESS;
}

aclError aclmdlUnload(uint32_t id) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = models.find(id);
  if (found == models.end()) return fail("aclmdlUnload of no model");
  if (found->second.context != current) return fail("aclmdlUnload in another context");
  if (found->second.running) return fail("aclmdlUnload of a model that runs");
  models.erase(found);
  note("aclmdlUnload");
  return ACL_SUCCESS;
}

aclError aclmdlSetDynamicBatchSize(uint32_t id, aclmdlDataset *dataset, size_t index, uint64_t batch) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = models.find(id);
  if (found == models.end() || found->second.context != current) return fail("aclmdlSetDynamicBatchSize of no model");
  const ModelFile &file = found->second.file;
  if (file.batches.empty() || index != static_cast<size_t>(file.images) || index >= dataset->buffers.size()) {
    return fail("aclmdlSetDynamicBatchSize of another input");
  }
  for (const uint64_t size : file.batches) {
    if (size != batch) continue;
    found->second.batch = batch;
    return ACL_SUCCESS;
  }
  return fail("aclmdlSetDynamicBatchSize to a size that the model is not for");
}

aclError aclmdlExecute(uint32_t id, const aclmdlDataset *input, aclmdlDataset *output) {
  std::unique_lock<std::mutex> lock(guard);
  const auto found = models.find(id);
  if (found == models.end()) return fail("aclmdlExecute of no model");
  Loaded &model = found->second;
  const ModelFile &file = model.file;
  if (model.context != current) return fail("aclmdlExecute in another context than the model was loaded in");
  if (model.running) return fail("aclmdlExecute of a model that another thread runs");
  const size_t inputs = static_cast<size_t>(file.images) + (file.batches.empty() ? 0 : 1);
  const size_t outputs = file.probabilities ? 2 : 1;
  if (input->buffers.size() != inputs || output->buffers.size() != outputs) return fail("aclmdlExecute without a buffer");
  const uint64_t batch = file.batches.empty() ? static_cast<uint64_t>(file.shape[0]) : model.batch;
  if (batch == 0) return fail("aclmdlExecute without a batch size");
  model.batch = 0;  // it is to be set before every run
  const uint8_t *images = find_bytes(input->buffers[0]->data, batch * file.image_bytes());
  uint8_t *logits = find_bytes(output->buffers[outputs - 1]->data, batch * file.logit_bytes());
  if (images == nullptr || logits == nullptr) return fail("aclmdlExecute on memory that is not the device's");
  if (input->buffers[0]->size != file.largest_batch() * file.image_bytes()) return fail("aclmdlExecute of another size");
  if (++runs == file.fail_at) return fail("the device was lost", kDeviceError);
  model.running = true;
  lock.unlock();
  std::this_thread::sleep_for(std::chrono::milliseconds(file.milliseconds));
  compute(file, batch, images, logits);
  lock.lock();
  model.running = false;
  std::vector<int64_t> shape = file.shape;
  shape[0] = static_cast<int64_t>(batch);
  note("aclmdlExecute " + numbers(shape) + " by model " + std::to_string(id));
  return ACL_SUCCESS;
}

aclmdlDesc *aclmdlCreateDesc() {
  const std::lock_guard<std::mutex> lock(guard);
  ++descs;
  return new aclmdlDesc;
}

aclError aclmdlDestroyDesc(aclmdlDesc *desc) {
  const std::lock_guard<std::mutex> lock(guard);
  --descs;
  delete desc;
  return ACL_SUCCESS;
}

aclError aclmdlGetDesc(aclmdlDesc *desc, uint32_t id) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = models.find(id);
  if (found == models.end()) return fail("aclmdlGetDesc of no model");
  desc->id = id;
  desc->file = found->second.file;
  return ACL_SUCCESS;
}

size_t aclmdlGetNumInputs(aclmdlDesc *desc) {
  return static_cast<size_t>(desc->file.images) + (desc->file.batches.empty() ? 0 : 1);
}

size_t aclmdlGetNumOutputs(aclmdlDesc *desc) { return desc->file.probabilities ? 2 : 1; }

size_t aclmdlGetInputSizeByIndex(aclmdlDesc *desc, size_t index) {
  const bool image = index < static_cast<size_t>(desc->file.images);
  return image ? desc->file.largest_batch() * desc->file.image_bytes() : sizeof(int32_t);
}

size_t aclmdlGetOutputSizeByIndex(aclmdlDesc *desc, size_t) {
  return desc->file.largest_batch() * desc->file.logit_bytes();
}

aclDataType aclmdlGetInputDataType(const aclmdlDesc *desc, size_t) { return desc->file.type; }

aclDataType aclmdlGetOutputDataType(const aclmdlDesc *desc, size_t) { return desc->file.half ? ACL_FLOAT16 : ACL_FLOAT; }

aclError aclmdlGetInputDims(const aclmdlDesc *desc, size_t, aclmdlIODims *dims) {
  dims->dimCount = 4;
  std::copy(desc->file.shape.begin(), desc->file.shape.end(), dims->dims);
  return ACL_SUCCESS;
}

aclError aclmdlGetCurOutputDims(const aclmdlDesc *desc, size_t, aclmdlIODims *dims) {
  const std::lock_guard<std::mutex> lock(guard);
  const uint64_t set = models.count(desc->id) > 0 ? models[desc->id].batch : 0;
  dims->dimCount = 2;
  dims->dims[0] = static_cast<int64_t>(set > 0 ? set : desc->file.largest_batch());
  dims->dims[1] = desc->file.classes;
  return ACL_SUCCESS;
}

aclError aclmdlGetInputIndexByName(const aclmdlDesc *desc, const char *name, size_t *index) {
  if (name != std::string(ACL_DYNAMIC_TENSOR_NAME) || desc->file.batches.empty()) return 100000;
  *index = static_cast<size_t>(desc->file.images);
  return ACL_SUCCESS;
}

const char *aclmdlGetOutputNameByIndex(const aclmdlDesc *desc, size_t index) {
  const bool logits = index + 1 == (desc->file.probabilities ? 2 : 1);
  return logits ? "Gemm_319:0:logits" : "Softmax_320:0:probabilities";
}

aclError aclmdlGetDynamicBatch(const aclmdlDesc *desc, aclmdlBatch *batch) {
  batch->batchCount = desc->file.batches.size();
  std::copy(desc->file.batches.begin(), desc->file.batches.end(), batch->batch);
  return ACL_SUCCESS;
}

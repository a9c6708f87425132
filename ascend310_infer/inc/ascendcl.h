// What AscendCL lends, each in an object that gives it back. AscendCL is the C interface of CANN's runtime.
#ifndef ASCEND310_INFER_ASCENDCL_H
#define ASCEND310_INFER_ASCENDCL_H

#include <acl/acl.h>

#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "errors.h"

namespace ascendcl {

inline std::string explain(aclError code) {
  const char *message = aclGetRecentErrMsg();
  const std::string text = message == nullptr ? "" : message;
  return "AscendCL's error " + std::to_string(code) + (text.empty() ? "" : ": " + text);
}

inline void check(aclError code, const std::string &what) {
  if (code != ACL_SUCCESS) throw RunError(what + ": " + explain(code));
}

// A thing of AscendCL's that is given back by one of its functions.
template <typename T, typename Result>
using Owned = std::unique_ptr<T, Result (*)(T *)>;

using DeviceMemory = Owned<void, aclError>;

inline DeviceMemory allocate(size_t bytes) {
  void *memory = nullptr;
  check(aclrtMalloc(&memory, bytes, ACL_MEM_MALLOC_HUGE_FIRST),
        "the device has no room for " + std::to_string(bytes) + " bytes; a smaller batch needs less");
  return {memory, aclrtFree};
}

// The device is set up for the whole process while this lives.
class Device {
 public:
  explicit Device(int id) : id_(id) {
    check(aclInit(nullptr), "AscendCL cannot start");
    try {
      open();
    } catch (...) {
      aclFinalize();
      throw;
    }
  }
  ~Device() {
    aclrtResetDevice(id_);
    aclFinalize();
  }
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;

  // How to copy to the device and back. A board whose own processor runs this program has one memory for both.
  aclrtMemcpyKind to_device() const { return apart_ ? ACL_MEMCPY_HOST_TO_DEVICE : ACL_MEMCPY_DEVICE_TO_DEVICE; }
  aclrtMemcpyKind to_host() const { return apart_ ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_DEVICE_TO_DEVICE; }

 private:
  void open() {
    const std::string name = "Ascend device " + std::to_string(id_);
    uint32_t count = 0;
    check(aclrtGetDeviceCount(&count), "AscendCL cannot count the devices");
    if (static_cast<uint32_t>(id_) >= count) {
      throw RunError("there is no " + name + ": AscendCL finds " + std::to_string(count) + ", counted from 0");
    }
    check(aclrtSetDevice(id_), name + " cannot be used");
    aclrtRunMode mode = ACL_HOST;
    const aclError found = aclrtGetRunMode(&mode);
    if (found != ACL_SUCCESS) aclrtResetDevice(id_);
    check(found, name + " does not say where this program runs");
    apart_ = mode == ACL_HOST;
  }

  int id_;
  bool apart_ = true;
};

class Context {
 public:
  // Becomes that of the thread which makes it.
  explicit Context(int device_id) { check(aclrtCreateContext(&context_, device_id), "AscendCL gives no context"); }
  ~Context() { aclrtDestroyContext(context_); }
  Context(const Context &) = delete;
  Context &operator=(const Context &) = delete;

  void enter() const { check(try_enter(), "a thread cannot use AscendCL's context"); }
  aclError try_enter() const { return aclrtSetCurrentContext(context_); }

 private:
  aclrtContext context_ = nullptr;
};

class Model {
 public:
  explicit Model(const std::string &path) : desc_(aclmdlCreateDesc(), aclmdlDestroyDesc) {
    check(aclmdlLoadFromFile(path.c_str(), &id_), path + ": AscendCL cannot load it");
    const aclError described = desc_ ? aclmdlGetDesc(desc_.get(), id_) : ACL_ERROR_BAD_ALLOC;
    if (described != ACL_SUCCESS) aclmdlUnload(id_);
    check(described, path + ": AscendCL does not describe it");
  }
  ~Model() { aclmdlUnload(id_); }
  Model(const Model &) = delete;
  Model &operator=(const Model &) = delete;

  uint32_t id() const { return id_; }
  aclmdlDesc *desc() const { return desc_.get(); }

 private:
  uint32_t id_ = 0;
  Owned<aclmdlDesc, aclError> desc_;
};

// A model's inputs or outputs, each with memory on the device.
class Tensors {
 public:
  Tensors() : dataset_(aclmdlCreateDataset(), [](aclmdlDataset *set) { return aclmdlDestroyDataset(set); }) {
    if (!dataset_) throw std::bad_alloc();
  }

  void add(size_t bytes) {
    memory_.push_back(allocate(bytes));
    buffers_.emplace_back(aclCreateDataBuffer(memory_.back().get(), bytes),
                          [](aclDataBuffer *buffer) { return aclDestroyDataBuffer(buffer); });
    if (!buffers_.back()) throw std::bad_alloc();
    check(aclmdlAddDatasetBuffer(dataset_.get(), buffers_.back().get()), "AscendCL takes no buffer");
  }

  void *memory(size_t index) const { return memory_[index].get(); }
  aclmdlDataset *get() const { return dataset_.get(); }

 private:
  std::vector<DeviceMemory> memory_;
  std::vector<Owned<aclDataBuffer, aclError>> buffers_;
  Owned<aclmdlDataset, aclError> dataset_;
};

}  // namespace ascendcl

#endif

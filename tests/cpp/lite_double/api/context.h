// Part of the double: on which device a model runs.
#ifndef LITE_DOUBLE_CONTEXT_H
#define LITE_DOUBLE_CONTEXT_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mindspore {

enum DeviceType { kCPU = 0, kAscend = 3 };

class DeviceInfoContext {
 public:
  virtual ~DeviceInfoContext() = default;
  virtual enum DeviceType GetDeviceType() const = 0;
};

class CPUDeviceInfo : public DeviceInfoContext {
 public:
  enum DeviceType GetDeviceType() const override { return kCPU; }
};

class AscendDeviceInfo : public DeviceInfoContext {
 public:
  enum DeviceType GetDeviceType() const override { return kAscend; }
  void SetDeviceID(uint32_t device_id) { device_id_ = device_id; }
  uint32_t GetDeviceID() const { return device_id_; }
  void SetPrecisionMode(const std::string &precision_mode) { precision_mode_ = precision_mode; }
  std::string GetPrecisionMode() const { return precision_mode_; }

 private:
  uint32_t device_id_ = 0;
  std::string precision_mode_;
};

class Context {
 public:
  void SetThreadNum(int32_t thread_num) { threads_ = thread_num; }
  int32_t GetThreadNum() const { return threads_; }
  std::vector<std::shared_ptr<DeviceInfoContext>> &MutableDeviceInfo() { return devices_; }

 private:
  int32_t threads_ = 0;
  std::vector<std::shared_ptr<DeviceInfoContext>> devices_;
};

}  // namespace mindspore

#endif

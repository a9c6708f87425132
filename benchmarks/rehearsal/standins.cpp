// The functions of CANN that MindSpore's Ascend plugin needs a result of, where no NPU is: one of eight cards of an Atlas
// 800T A2. All others are in assembly that standins.py writes, and return 0.
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

namespace {
constexpr unsigned kCards = 8;
constexpr const char *kSoc = "Ascend910B2";
constexpr const char *kVersion[] = {"8.2.0", "8", "2", "0", ""};  // of CANN, as a whole and its parts; see write_hccl
constexpr unsigned kOperatorBytes = 24;  // ge::Operator: a table of virtual functions and a shared pointer

// ge::StatusFactory begins with the map of error codes to sentences that MindSpore fills while it is loaded.
struct StatusFactory {
  std::map<unsigned, std::string> sentences;
  char rest[256];
};

long nothing() { return 0; }
void *virtual_functions[32];
}  // namespace

extern "C" {
void *_ZN2ge13StatusFactory8InstanceEv() {
  static StatusFactory factory;
  return &factory;
}

// ge::OperatorFactory::CreateOperator(char const *, char const *) returns an operator by value: an empty one.
void *_ZN2ge15OperatorFactory14CreateOperatorEPKcS2_(void *place) {
  for (auto &entry : virtual_functions) entry = reinterpret_cast<void *>(&nothing);
  std::memset(place, 0, kOperatorBytes);
  *static_cast<void **>(place) = virtual_functions;
  return place;
}

int aclrtGetDeviceCount(unsigned *count) {
  *count = kCards;
  return 0;
}

int rtGetDeviceCount(int *count) {
  *count = kCards;
  return 0;
}

const char *aclrtGetSocName() { return kSoc; }

// aclCANNPackageVersion is a text of 128 bytes, the whole version, and four of 64, its parts.
int aclsysGetCANNVersion(int, char *version) {
  constexpr unsigned kWhole = 128, kPart = 64;
  std::snprintf(version, kWhole, "%s", kVersion[0]);
  for (unsigned i = 0; i < 4; ++i) std::snprintf(version + kWhole + i * kPart, kPart, "%s", kVersion[i + 1]);
  return 0;
}

int rtGetSocVersion(char *text, unsigned size) {
  std::snprintf(text, size, "%s", kSoc);
  return 0;
}
}

// Part of the double: the element types that the program knows, by MindSpore's numbers.
#ifndef LITE_DOUBLE_DATA_TYPE_H
#define LITE_DOUBLE_DATA_TYPE_H

namespace mindspore {

enum class DataType : int { kTypeUnknown = 0, kNumberTypeInt32 = 34, kNumberTypeUInt8 = 37, kNumberTypeFloat32 = 43 };

}  // namespace mindspore

#endif

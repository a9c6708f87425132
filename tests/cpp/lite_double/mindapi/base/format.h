// Part of the double: how a tensor's dimensions are ordered. The real package has it in this place, too.
#ifndef LITE_DOUBLE_FORMAT_H
#define LITE_DOUBLE_FORMAT_H

#include <cstdint>

namespace mindspore {

enum Format : int64_t { NCHW = 0, NHWC = 1 };

}  // namespace mindspore

#endif

#include "errors.h"

#include <cerrno>
#include <cstring>

std::string describe_errno(int number, const std::string &path) {
  switch (number) {
    case ENOSPC:
      return path + ": there is no space left on the device";
    case EDQUOT:
      return path + ": the disk quota is used up";
    case EACCES:
      return path + ": permission was denied";
    case EPERM:
      return path + ": the operation is not permitted";
    case EROFS:
      return path + ": the file system is read-only";
    case ENOENT:
      return path + ": there is no such file or directory";
    case EISDIR:
      return path + ": it is a directory";
    case ENOTDIR:
      return path + ": a part of the path is not a directory";
    default:
      return path + ": " + std::strerror(number);
  }
}

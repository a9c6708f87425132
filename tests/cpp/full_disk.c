/* Preloaded into the program, pretends that the disk is full after FULL_DISK_AFTER writes to files opened for writing.
 * The last write still writes half of its bytes, as on a real disk. Files opened for appending do not count: they are
 * the log of MindSpore Lite's double. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

ssize_t write(int file, const void *data, size_t size) {
  static long left = -1;
  ssize_t (*real)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  if (left < 0) left = atol(getenv("FULL_DISK_AFTER"));
  const int flags = fcntl(file, F_GETFL);
  if (file <= 2 || (flags & O_ACCMODE) != O_WRONLY || (flags & O_APPEND) != 0) return real(file, data, size);
  if (left == 0) {
    errno = ENOSPC;
    return -1;
  }
  if (--left == 0 && size > 1) return real(file, data, size / 2);
  return real(file, data, size);
}

/* Makes every write below $FULL_DISK_FOLDER fail with ENOSPC once $FULL_DISK_AFTER of them were made.
 *
 * For LD_PRELOAD. The count is shared by all processes, in the file $FULL_DISK_COUNT of eight bytes. While the file
 * $FULL_DISK_COUNT.space exists, there is space. Calls inside libc (stdio) do not pass through here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static long *count;

static int is_full(int fd) {
  static __thread int inside;
  const char *folder = getenv("FULL_DISK_FOLDER"), *file = getenv("FULL_DISK_COUNT"), *after = getenv("FULL_DISK_AFTER");
  char link[64], path[PATH_MAX];
  if (!folder || !file || !after || inside) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  if (strncmp(path, folder, strlen(folder))) return 0;
  inside = 1;
  if (!count) {
    int shared = open(file, O_RDWR);
    void *mapped = shared < 0 ? MAP_FAILED : mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    if (mapped != MAP_FAILED) count = mapped;
    if (shared >= 0) close(shared);
  }
  int full = count && __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST) > atol(after);
  if (full) {
    snprintf(path, sizeof path, "%s.space", file);
    full = access(path, F_OK) != 0;
  }
  inside = 0;
  errno = full ? ENOSPC : errno;
  return full;
}

#define NEXT(type, name, ...) \
  static type (*next)(__VA_ARGS__); \
  if (!next) next = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
  NEXT(ssize_t, "write", int, const void *, size_t);
  return is_full(fd) ? -1 : next(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t);
  return is_full(fd) ? -1 : next(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
  return is_full(fd) ? -1 : next(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
  NEXT(ssize_t, "writev", int, const struct iovec *, int);
  return is_full(fd) ? -1 : next(fd, parts, number);
}
ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t at) {
  NEXT(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
  return is_full(fd) ? -1 : next(fd, parts, number, at);
}
int ftruncate64(int fd, off64_t size) {
  NEXT(int, "ftruncate64", int, off64_t);
  return is_full(fd) ? -1 : next(fd, size);
}
int posix_fallocate(int fd, off_t at, off_t size) {
  NEXT(int, "posix_fallocate", int, off_t, off_t);
  return is_full(fd) ? ENOSPC : next(fd, at, size);
}

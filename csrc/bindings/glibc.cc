// What libstdc++ asks of the glibc that it was built for, and older ones lack: linked into each library of a wheel.
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" {

// Other threads may run: libstdc++ counts references atomically.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// Both 64-bit processors' kernels fill in glibc's own struct.
__attribute__((visibility("hidden"))) int fstat64(int file, struct stat64* status) {
  return static_cast<int>(syscall(SYS_fstat, file, status));
}
}

// The memory that XLA takes for a step.
#pragma once
#include <stdint.h>

#include "threads/pages.h"
#if defined(__linux__)
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>
#endif

namespace {

#if defined(__linux__)
// What Linux answers, from 6.11 on, to a question about the mapping around an address: `procmap_query` of linux/fs.h.
struct Mapping {
  uint64_t size, flags, address, first, end, unused[4];
  uint32_t device[2], lengths[2];
  uint64_t texts[2];
};
constexpr unsigned long kAskForMapping = _IOWR('f', 17, Mapping);
#endif

// Of so many elements a result is worth the question, of about 5 us.
constexpr int64_t kManyElements = 1 << 19;

// Asks the system to back the whole mapping that holds a result by large pages. XLA takes the memory of a step at once,
// and anew for every step: what its own loops and small results write first then has large pages, too. A training step
// of ShuffleNet g3 at batch 16 had 52,600 page faults where only large results had them, and has 16,800.
inline void want_large_pages_around(const void* result) {
#if defined(__linux__)
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return;
  Mapping mapping{};
  mapping.size = sizeof mapping;
  mapping.address = reinterpret_cast<uintptr_t>(result);
  if (ioctl(maps, kAskForMapping, &mapping) == 0) {
    gw_want_large_pages(reinterpret_cast<void*>(mapping.first), int64_t(mapping.end - mapping.first));
  }
  close(maps);
#else
  (void)result;
#endif
}

}  // namespace

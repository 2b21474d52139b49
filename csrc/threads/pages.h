// The pages of memory behind large results.
#pragma once
#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

constexpr uintptr_t kLargePage = uintptr_t{1} << 21;

// Asks the system to back a result that is about to be written by large pages, those included that it shares with its
// neighbours: one small page that is written first keeps a large one from being used. A hint: where the system does not
// take it, nothing changes, and beyond the mapping that holds the result nothing does.
inline void gw_want_large_pages(void* result, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t least = 1 << 16;
  const uintptr_t address = reinterpret_cast<uintptr_t>(result);
  const uintptr_t first = address / kLargePage * kLargePage, end = address + uintptr_t(bytes);
  const uintptr_t last = (end + kLargePage - 1) / kLargePage * kLargePage;
  if (result && bytes >= least) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)result, (void)bytes;
#endif
}

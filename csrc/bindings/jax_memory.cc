// XLA asks the C library for the memory of a step at once, and gives it back at the step's end: it is unmapped, and the
// system clears as many pages for the next step. That was a fifth of a training step of ShuffleNet g3
// (16 images, 0.7 GB).
//
// So posix_memalign and free, as XLA's library calls them, are led through the two functions below, in that library
// alone. Large blocks of a size that it asks for again and again are kept when they are given back, and handed out
// again. They are the C library's own blocks throughout: who frees or takes one past these functions does no harm.
// Where none fits, as much is given back first as is asked for. Where XLA asks for a step's memory before it has given
// that of the step before back, there are two such blocks with all their pages, where without only one of them had any.
#include "jax_memory.h"

#include "groupwise.h"

#if defined(__linux__) && defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#include <link.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

// Smaller ones the C library itself keeps: those of up to 32 MB, once it has met one of the size.
constexpr size_t kLarge = size_t{4} << 20;
// What nobody has asked for in this time is given back when others are.
constexpr std::chrono::seconds kPeriod{20};
// By so much a block may be larger than what was asked for: it ends with a page.
constexpr size_t kRounding = size_t{1} << 13;

struct Block {
  void* memory = nullptr;
  size_t bytes = 0;
  Clock::time_point since;
};

// The sizes that were asked for last.
class Sizes {
 public:
  void note(size_t bytes) {
    for (Size& size : sizes_) {
      if (size.bytes == bytes) {
        ++size.times;
        return;
      }
    }
    sizes_[next_++ % kMost] = {bytes, 1};
  }
  bool has_often(size_t usable) const {
    return std::any_of(sizes_, sizes_ + kMost, [usable](const Size& size) {
      return size.times > 1 && size.bytes <= usable && usable - size.bytes < kRounding;
    });
  }

 private:
  static constexpr int kMost = 32;
  struct Size {
    size_t bytes = 0;
    int64_t times = 0;
  };
  Size sizes_[kMost];
  unsigned next_ = 0;
};

class Kept {
 public:
  // A block for as many bytes, or null.
  void* take(size_t alignment, size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    sizes_.note(bytes);
    Block* best = nullptr;
    for (Block& block : blocks_) {
      const bool fits = block.memory && block.bytes >= bytes && block.bytes - bytes <= bytes / 8 &&
                        reinterpret_cast<uintptr_t>(block.memory) % alignment == 0;
      if (fits && (!best || block.bytes < best->bytes)) best = &block;
    }
    if (!best) {
      free_as_much_as(bytes);
      return nullptr;
    }
    return std::exchange(*best, Block{}).memory;
  }

  // Keeps a block; returns what is to be freed instead, which may be the same one, or null.
  void* keep(void* memory, size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return memory;
    const Clock::time_point now = Clock::now();
    for (Block& block : blocks_) {
      if (block.memory && now - block.since > kPeriod) clear(block);
    }
    Block& least = *std::min_element(blocks_, blocks_ + kMost, is_smaller);
    if (least.bytes >= bytes || !sizes_.has_often(bytes)) return memory;
    return std::exchange(least, Block{memory, bytes, now}).memory;
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t sum = 0;
    for (const Block& block : blocks_) sum += block.bytes;
    return sum;
  }
  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::for_each(blocks_, blocks_ + kMost, clear);
  }

 private:
  static constexpr int kMost = 4;

  static bool is_smaller(const Block& one, const Block& other) { return one.bytes < other.bytes; }
  static void clear(Block& block) {
    free(block.memory);
    block = Block{};
  }
  // The smaller ones first.
  void free_as_much_as(size_t bytes) {
    for (size_t freed = 0; freed < bytes;) {
      Block* least = nullptr;
      for (Block& block : blocks_) {
        if (block.memory && (!least || block.bytes < least->bytes)) least = &block;
      }
      if (!least) return;
      freed += least->bytes;
      clear(*least);
    }
  }

  std::mutex mutex_;
  Block blocks_[kMost];
  Sizes sizes_;
};

// Never destroyed: XLA frees until the process ends.
Kept& kept = *new Kept;

int take(void** memory, size_t alignment, size_t bytes) {
  if (bytes >= kLarge && alignment > 0) {
    if (void* found = kept.take(alignment, bytes)) {
      *memory = found;
      return 0;
    }
  }
  return posix_memalign(memory, alignment, bytes);
}

void give(void* memory) {
  // A block with a mapping of its own begins with it; XLA's are aligned to 64 bytes.
  const uintptr_t place = reinterpret_cast<uintptr_t>(memory) % 4096;
  if (place == 0 || place == 64) {
    const size_t bytes = malloc_usable_size(memory);
    if (bytes >= kLarge) memory = kept.keep(memory, bytes);
  }
  free(memory);
}

// A library in this process: where it lies, and what it asks the linker for.
class Library {
 public:
  explicit Library(uintptr_t address) : wanted_(address) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* library) { return static_cast<Library*>(library)->look_at(*info); }, this);
  }

  uintptr_t base() const { return base_; }

  // Leads the calls of a function of the C library to another one; with 0 it leaves them. Returns how many places there
  // are that tell where it is.
  int redirect(const char* name, uintptr_t function) const {
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(value(DT_SYMTAB));
    const auto* texts = reinterpret_cast<const char*>(value(DT_STRTAB));
    if (!symbols || !texts) return 0;
    int places = 0;
    for (const auto& [table, size] : {std::pair{DT_JMPREL, DT_PLTRELSZ}, {DT_RELA, DT_RELASZ}}) {
      const auto* entries = reinterpret_cast<const ElfW(Rela)*>(value(table));
      const size_t count = entries ? value(size) / sizeof *entries : 0;
      for (size_t i = 0; i < count; ++i) {
        const auto type = ELF64_R_TYPE(entries[i].r_info);
        if (type != kJumpSlot && type != kGlobalData) continue;
        if (strcmp(texts + symbols[ELF64_R_SYM(entries[i].r_info)].st_name, name) != 0) continue;
        if (!function || write(base_ + entries[i].r_offset, function)) ++places;
      }
    }
    return places;
  }

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kJumpSlot = R_X86_64_JUMP_SLOT, kGlobalData = R_X86_64_GLOB_DAT;
#else
  static constexpr uint64_t kJumpSlot = R_AARCH64_JUMP_SLOT, kGlobalData = R_AARCH64_GLOB_DAT;
#endif

  int look_at(const dl_phdr_info& info) {
    bool is_it = false;
    for (int i = 0; i < info.dlpi_phnum; ++i) {
      const ElfW(Phdr) & part = info.dlpi_phdr[i];
      is_it |= part.p_type == PT_LOAD && wanted_ - info.dlpi_addr - part.p_vaddr < part.p_memsz;
    }
    if (!is_it) return 0;
    base_ = info.dlpi_addr;
    for (int i = 0; i < info.dlpi_phnum; ++i) {
      const ElfW(Phdr) & part = info.dlpi_phdr[i];
      if (part.p_type == PT_DYNAMIC) dynamic_ = reinterpret_cast<const ElfW(Dyn)*>(base_ + part.p_vaddr);
      if (part.p_type != PT_GNU_RELRO) continue;
      protected_from_ = page_of(base_ + part.p_vaddr), protected_to_ = page_of(base_ + part.p_vaddr + part.p_memsz);
    }
    return 1;
  }

  uintptr_t value(int64_t tag) const {
    for (const ElfW(Dyn)* entry = dynamic_; entry && entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag == tag) return entry->d_un.d_val;
    }
    return 0;
  }

  uintptr_t page_of(uintptr_t address) const { return address / page_ * page_; }

  bool write(uintptr_t slot, uintptr_t function) const {
    const bool is_protected = protected_from_ <= slot && slot < protected_to_;
    void* page = reinterpret_cast<void*>(page_of(slot));
    if (is_protected && mprotect(page, page_, PROT_READ | PROT_WRITE)) return false;
    __atomic_store_n(reinterpret_cast<uintptr_t*>(slot), function, __ATOMIC_RELEASE);
    if (is_protected) mprotect(page, page_, PROT_READ);
    return true;
  }

  uintptr_t wanted_, page_ = uintptr_t(sysconf(_SC_PAGESIZE));
  uintptr_t base_ = 0, protected_from_ = 0, protected_to_ = 0;
  const ElfW(Dyn) * dynamic_ = nullptr;
};

template <typename Function>
uintptr_t address(Function* function) {
  return reinterpret_cast<uintptr_t>(function);
}

bool keep_memory_of(uintptr_t function) {
  const char* text = getenv("GROUPWISE_KEEP_MEMORY");
  if (text && !strcmp(text, "0")) return false;
  // Other allocators than the C library's keep memory by themselves.
  const uintptr_t c_library = Library(address(getenv)).base();
  if (Library(address(posix_memalign)).base() != c_library || Library(address(free)).base() != c_library) return false;
  const Library library(function);
  if (!library.redirect("free", 0) || !library.redirect("posix_memalign", 0)) return false;
  gw_when_memory_is_released([] { kept.release(); });
  return library.redirect("posix_memalign", address(take)) && library.redirect("free", address(give));
}

}  // namespace

void gw_keep_memory_of(void (*function)(void)) {
  static const bool is_kept = keep_memory_of(address(function));
  (void)is_kept;
}

extern "C" GW_PUBLIC int64_t gw_jax_kept_memory(void) { return int64_t(kept.bytes()); }

#else

void gw_keep_memory_of(void (*)(void)) {}
extern "C" GW_PUBLIC int64_t gw_jax_kept_memory(void) { return 0; }

#endif

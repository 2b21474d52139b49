// XLA asks the C library for the memory of a step at once, and gives it back at the step's end: it is unmapped, and the
// system clears as many pages for the next step. That was a fifth of a training step of ShuffleNet g3 (16 images, 0.7
// GB).
//
// So posix_memalign and free, as XLA's library calls them, are led through the two functions below, in that library
// alone. Its large blocks are kept when they are given back, and handed out again. They are the C library's own blocks
// throughout: who frees or takes one past these functions does no harm. What is kept is never more than what was in
// use at once: where none fits, as much is given back first as is asked for.
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

namespace {

using Clock = std::chrono::steady_clock;

// Smaller ones the C library itself keeps.
constexpr size_t kLarge = size_t{4} << 20;
// What nobody has asked for in this time is given back when others are.
constexpr std::chrono::seconds kPeriod{20};

struct Block {
  void* memory = nullptr;
  size_t bytes = 0;
  Clock::time_point since;
};

class Kept {
 public:
  // A block for as many bytes, or null.
  void* take(size_t alignment, size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
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
    void* memory = best->memory;
    *best = Block{};
    return memory;
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
    if (least.bytes >= bytes) return memory;
    void* other = least.memory;
    least = {memory, bytes, now};
    return other;
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t sum = 0;
    for (const Block& block : blocks_) sum += block.bytes;
    return sum;
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Block& block : blocks_) clear(block);
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
    std::sort(blocks_, blocks_ + kMost, is_smaller);
    size_t freed = 0;
    for (int i = 0; i < kMost && freed < bytes; ++i) {
      freed += blocks_[i].bytes;
      clear(blocks_[i]);
    }
  }

  std::mutex mutex_;
  Block blocks_[kMost];
};

// Never destroyed: XLA frees until the process ends.
Kept& kept = *new Kept;

int take(void** memory, size_t alignment, size_t bytes) {
  if (bytes >= kLarge) {
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
struct Library {
  uintptr_t wanted, base = 0, protected_from = 0, protected_to = 0;
  const ElfW(Dyn) * dynamic = nullptr;

  explicit Library(uintptr_t address) : wanted(address) {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* library) { return static_cast<Library*>(library)->look_at(*info); }, this);
  }

  // Leads the calls of a function of the C library to another one; returns whether there are any.
  bool redirect(const char* name, uintptr_t function) const {
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(value(DT_SYMTAB));
    const auto* texts = reinterpret_cast<const char*>(value(DT_STRTAB));
    bool is_there = false;
    for (const auto& [table, size] : {std::pair{DT_JMPREL, DT_PLTRELSZ}, {DT_RELA, DT_RELASZ}}) {
      const auto* entries = reinterpret_cast<const ElfW(Rela)*>(value(table));
      const size_t count = entries ? value(size) / sizeof *entries : 0;
      for (size_t i = 0; i < count; ++i) {
        const auto type = ELF64_R_TYPE(entries[i].r_info);
        if (type != kJumpSlot && type != kGlobalData) continue;
        if (strcmp(texts + symbols[ELF64_R_SYM(entries[i].r_info)].st_name, name) != 0) continue;
        is_there |= write(base + entries[i].r_offset, function);
      }
    }
    return is_there;
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
      is_it |= part.p_type == PT_LOAD && wanted - info.dlpi_addr - part.p_vaddr < part.p_memsz;
    }
    if (!is_it) return 0;
    base = info.dlpi_addr;
    for (int i = 0; i < info.dlpi_phnum; ++i) {
      const ElfW(Phdr) & part = info.dlpi_phdr[i];
      if (part.p_type == PT_DYNAMIC) dynamic = reinterpret_cast<const ElfW(Dyn)*>(base + part.p_vaddr);
      if (part.p_type != PT_GNU_RELRO) continue;
      protected_from = base + part.p_vaddr, protected_to = protected_from + part.p_memsz;
    }
    return 1;
  }

  uintptr_t value(int64_t tag) const {
    for (const ElfW(Dyn)* entry = dynamic; entry && entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag == tag) return entry->d_un.d_val;
    }
    return 0;
  }

  bool write(uintptr_t slot, uintptr_t function) const {
    const bool is_protected = protected_from <= slot && slot < protected_to;
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), start = slot / page * page;
    if (is_protected && mprotect(reinterpret_cast<void*>(start), page, PROT_READ | PROT_WRITE)) return false;
    __atomic_store_n(reinterpret_cast<uintptr_t*>(slot), function, __ATOMIC_RELEASE);
    if (is_protected) mprotect(reinterpret_cast<void*>(start), page, PROT_READ);
    return true;
  }
};

template <typename Function>
uintptr_t address(Function* function) {
  return reinterpret_cast<uintptr_t>(function);
}

bool keep_memory_of(uintptr_t function) {
  const char* text = getenv("GROUPWISE_KEEP_MEMORY");
  if (text && !strcmp(text, "0")) return false;
  // Other allocators than the C library's keep memory by themselves.
  const uintptr_t c_library = Library(address(getenv)).base;
  if (Library(address(posix_memalign)).base != c_library || Library(address(free)).base != c_library) return false;
  const Library library(function);
  return library.dynamic && library.redirect("free", address(give)) &&
         library.redirect("posix_memalign", address(take));
}

}  // namespace

void gw_keep_memory_of(void (*function)(void)) {
  static const bool is_kept = keep_memory_of(address(function));
  (void)is_kept;
}

extern "C" GW_PUBLIC int64_t gw_jax_kept_memory(void) { return int64_t(kept.bytes()); }
extern "C" GW_PUBLIC void gw_jax_release_memory(void) { kept.release(); }

#else

void gw_keep_memory_of(void (*)(void)) {}
extern "C" GW_PUBLIC int64_t gw_jax_kept_memory(void) { return 0; }
extern "C" GW_PUBLIC void gw_jax_release_memory(void) {}

#endif

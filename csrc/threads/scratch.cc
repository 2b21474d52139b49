#include "scratch.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>

#include "groupwise.h"
#include "pages.h"

namespace {

// What stays with a thread, twice: for a call and for one of its tasks.
constexpr size_t kSmallBytes = size_t{1} << 20;
// Large memory that no call has needed in this time and the one before it is given back.
constexpr std::chrono::seconds kPeriod{10};

// Lies before the memory that it describes.
struct alignas(64) Block {
  size_t bytes;  // this description included
  Block* next;
  const void* thread;  // that used it last

  float* memory() { return reinterpret_cast<float*>(this + 1); }
};

// A thread's small blocks, of which the first `taken` are in use.
struct Own {
  Block* blocks[2] = {};
  int taken = 0;

  ~Own();
  Block* take(size_t bytes) {
    Block*& block = blocks[taken];
    if (!block || block->bytes < bytes) {
      free(block);
      block = static_cast<Block*>(aligned_alloc(alignof(Block), bytes));
      if (!block) return nullptr;
      block->bytes = bytes;
    }
    ++taken;
    return block;
  }
};

thread_local Own own;

std::atomic<void (*)(void)> release_more{nullptr};

// Large blocks, mapped by themselves, so that what is given back is the system's at once.
//
// Mapped anew for every call they would cost a page fault for each 4 KiB. So they are kept where calls go on needing
// them: what a call takes is given back when it ends, unless another has needed as much in the last seconds.
class Large {
 public:
  Block* take(size_t bytes) {
    Block* found;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_used_.store(true, std::memory_order_relaxed);
      needed_ = std::max(needed_, bytes);
      found = unlink_best(bytes);
    }
    if (found && found->bytes >= bytes) return found;
    // Grown, so that there are no more blocks than were ever in use at once.
    unmap(found);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    gw_want_large_pages(memory, int64_t(bytes));
    auto* block = static_cast<Block*>(memory);
    block->bytes = bytes;
    return block;
  }

  void give(Block* block) {
    block->thread = &own;
    std::lock_guard<std::mutex> lock(mutex_);
    block->next = free_;
    free_ = block;
  }

  // Gives back what is not worth keeping after a call.
  void settle() {
    if (!is_used_.load(std::memory_order_relaxed)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - period_ > kPeriod) period_ = now, former_ = std::exchange(latter_, 0);
    const size_t kept = std::max(former_, latter_);
    Block* unneeded = unlink([kept](const Block* block) { return block->bytes > kept; });
    latter_ = std::max(latter_, std::exchange(needed_, 0));
    is_used_.store(former_ || latter_, std::memory_order_relaxed);
    lock.unlock();
    unmap(unneeded);
  }

  // Gives back what this thread used last, or what all have used.
  void release(const void* thread) {
    std::unique_lock<std::mutex> lock(mutex_);
    Block* unneeded = unlink([thread](const Block* block) { return !thread || block->thread == thread; });
    lock.unlock();
    unmap(unneeded);
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static void unmap(Block* list) {
    while (list) {
      Block* block = std::exchange(list, list->next);
      munmap(block, block->bytes);
    }
  }

  // A list of the free blocks that are `chosen`, which are free no longer.
  template <typename Chosen>
  Block* unlink(const Chosen& chosen) {
    Block *rest = std::exchange(free_, nullptr), *found = nullptr;
    while (rest) {
      Block* block = std::exchange(rest, rest->next);
      Block*& list = chosen(block) ? found : free_;
      block->next = std::exchange(list, block);
    }
    return found;
  }

  // The smallest that is large enough, of equals this thread's own, for it may lie in nearer memory; or else the
  // largest; or null.
  Block* unlink_best(size_t bytes) {
    Block** best = nullptr;
    const auto is_better = [bytes](const Block* a, const Block* b) {
      if ((a->bytes >= bytes) != (b->bytes >= bytes)) return a->bytes >= bytes;
      if (a->bytes != b->bytes) return (a->bytes < b->bytes) == (a->bytes >= bytes);
      return a->thread == &own && b->thread != &own;
    };
    for (Block** place = &free_; *place; place = &(*place)->next) {
      if (!best || is_better(*place, *best)) best = place;
    }
    if (!best) return nullptr;
    Block* block = std::exchange(*best, (*best)->next);
    block->next = nullptr;
    return block;
  }

  std::mutex mutex_;
  Block* free_ = nullptr;
  size_t needed_ = 0;               // the most since the last call ended
  size_t former_ = 0, latter_ = 0;  // the most that a call needed, in the period before this one and in this one
  std::chrono::steady_clock::time_point period_;  // its beginning
  std::atomic<bool> is_used_{false};
};

Large large;
// A forked child's blocks are its own; only the lock must not be held by a thread that the child has not.
const int registered = pthread_atfork([] { large.lock(); }, [] { large.unlock(); }, [] { large.unlock(); });

Own::~Own() {
  for (Block* block : blocks) free(block);
  large.release(this);
}

}  // namespace

float* gw_take_scratch(size_t floats) {
  if (floats > (SIZE_MAX / 2 - sizeof(Block)) / sizeof(float)) return nullptr;
  const size_t bytes = (sizeof(Block) + floats * sizeof(float) + 63) / 64 * 64;
  Block* block = bytes <= kSmallBytes && own.taken < 2 ? own.take(bytes) : large.take(bytes);
  return block ? block->memory() : nullptr;
}

void gw_give_scratch(float* memory) {
  Block* block = reinterpret_cast<Block*>(memory) - 1;
  if (own.taken > 0 && own.blocks[own.taken - 1] == block) --own.taken;
  else large.give(block);
}

void gw_settle_scratch() { large.settle(); }

extern "C" void gw_release_memory(void) {
  large.release(nullptr);
  if (const auto release = release_more.load()) release();
}

extern "C" void gw_when_memory_is_released(void (*release)(void)) { release_more.store(release); }

// Tasks that threads draw, and a parallel loop of them whose helpers may come late, or never.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "groupwise.h"

// Looks a few microseconds for what another thread is about to do; whether it did. To sleep and be woken takes longer.
template <typename Condition>
bool gw_comes_soon(const Condition& has_come) {
  for (int look = 0; look < 400; ++look) {
    if (has_come()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  return false;
}

struct GwTasks {
  const int64_t count;
  const GwBody body;
  void* const argument;
  std::atomic<int64_t> next{0};

  // Draws and runs tasks until none is left; returns how many.
  int64_t drain() {
    int64_t mine = 0;
    for (int64_t task; (task = next.fetch_add(1)) < count; ++mine) body(argument, task);
    return mine;
  }
};

// Owned by everyone who may still look at it (a std::shared_ptr): a helper that starts after the loop has ended finds
// nothing to do. Nobody waits for a task that has not started.
struct GwLoop {
  GwTasks tasks;
  std::atomic<int64_t> unfinished;
  std::mutex mutex;
  std::condition_variable done;

  GwLoop(int64_t count, GwBody body, void* argument) : tasks{count, body, argument}, unfinished(count) {}

  void drain() {
    const int64_t mine = tasks.drain();
    if (mine > 0 && unfinished.fetch_sub(mine) == mine) {
      std::lock_guard<std::mutex> lock(mutex);
      done.notify_all();
    }
  }

  // After the caller's own drain(): waits for the tasks that others have drawn.
  void wait() {
    const auto is_done = [this] { return unfinished.load() == 0; };
    if (gw_comes_soon(is_done)) return;
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, is_done);
  }
};

// A parallel loop whose helpers may come late, or never.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "groupwise.h"

// Threads draw tasks until none is left. Owned by everyone who may still look at it (a std::shared_ptr): a helper that
// starts after the loop has ended finds nothing to do. Nobody waits for a task that has not started.
struct GwLoop {
  const int64_t tasks;
  const GwBody body;
  void* const argument;
  std::atomic<int64_t> next{0}, unfinished;
  std::mutex mutex;
  std::condition_variable done;

  GwLoop(int64_t count, GwBody function, void* data)
      : tasks(count), body(function), argument(data), unfinished(count) {}

  void drain() {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      body(argument, task);
      if (unfinished.fetch_sub(1) == 1) {
        std::lock_guard<std::mutex> lock(mutex);
        done.notify_all();
      }
    }
  }

  // After the caller's own drain(): waits for the tasks that others have drawn.
  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [this] { return unfinished.load() == 0; });
  }
};

#include "parallel.h"

#include <pthread.h>
#include <stdlib.h>

#include <memory>
#include <system_error>
#include <thread>

#include "loop.h"

namespace {

// Threads that wait for loops to help with. Never destroyed: they sleep until the process ends.
class Pool {
 public:
  void help(const std::shared_ptr<GwLoop>& loop, int64_t helpers) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (; started_ < helpers && start(); ++started_) {
    }
    for (int64_t i = 0; i < helpers; ++i) {
      auto* entry = new Entry{loop, nullptr};
      (last_ ? last_->next : first_) = entry;
      last_ = entry;
      wake_.notify_one();
    }
  }

 private:
  struct Entry {
    std::shared_ptr<GwLoop> loop;
    Entry* next;
  };

  // Where no thread can be had, the caller does all the work.
  bool start() {
    try {
      std::thread([this] { work(); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }

  void work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return first_ != nullptr; });
      std::unique_ptr<Entry> entry(first_);
      first_ = entry->next;
      if (!first_) last_ = nullptr;
      lock.unlock();
      entry->loop->drain();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Entry *first_ = nullptr, *last_ = nullptr;
  int64_t started_ = 0;
};

std::atomic<Pool*> pool{nullptr};
std::atomic<int64_t> chosen_threads{0};

Pool* current_pool() {
  if (Pool* existing = pool.load()) return existing;
  // A forked child has none of its parent's threads: it starts anew.
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool *made = new Pool, *expected = nullptr;
  if (pool.compare_exchange_strong(expected, made)) return made;
  delete made;
  return expected;
}

int64_t default_threads() {
  const char* text = getenv("GROUPWISE_THREADS");
  const long wanted = text ? atol(text) : 0;
  return wanted > 0 ? wanted : static_cast<int64_t>(std::thread::hardware_concurrency());
}

void run_on_pool(void* state, int64_t tasks, GwBody body, void* argument) {
  const int64_t threads = *static_cast<int64_t*>(state);
  const int64_t helpers = (threads < tasks ? threads : tasks) - 1;
  auto loop = std::make_shared<GwLoop>(tasks, body, argument);
  if (helpers > 0) current_pool()->help(loop, helpers);
  loop->drain();
  loop->wait();
}

struct Scratch {
  float* memory = nullptr;
  size_t floats = 0;
  ~Scratch() { free(memory); }
};

}  // namespace

extern "C" void gw_set_threads(int64_t threads) { chosen_threads.store(threads > 0 ? threads : 0); }

extern "C" int64_t gw_threads(void) {
  const int64_t chosen = chosen_threads.load();
  const int64_t threads = chosen ? chosen : default_threads();
  return threads > 0 ? threads : 1;
}

GwExecutor gw_own_executor() {
  static thread_local int64_t threads;
  threads = gw_threads();
  return {run_on_pool, &threads, threads};
}

float* gw_scratch(GwSlot slot, size_t floats) {
  static thread_local Scratch scratches[2];
  Scratch& scratch = scratches[slot];
  if (scratch.floats < floats) {
    free(scratch.memory);
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    scratch.memory = static_cast<float*>(aligned_alloc(64, bytes));
    scratch.floats = scratch.memory ? floats : 0;
  }
  return scratch.memory;
}

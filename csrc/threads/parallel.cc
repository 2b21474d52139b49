#include "parallel.h"

#include <pthread.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>

#include "cores.h"
#include "loop.h"

namespace {

// One call's tasks, in its caller's frame, which stays until every helper has left.
struct Work {
  GwTasks tasks;
  int64_t places;                  // for helpers that may still come
  std::atomic<int64_t> inside{0};  // helpers at work
  Work* next = nullptr;
  std::condition_variable left;

  Work(int64_t count, GwBody body, void* argument, int64_t helpers) : tasks{count, body, argument}, places(helpers) {}
};

// Threads that wait for work to help with. Nobody waits for a helper that has not come.
class Pool {
 public:
  void run(Work& work) {
    std::unique_lock<std::mutex> lock(mutex_);
    // Where no thread is to be had, the caller does all the work, and the next call asks again.
    while (started_ < work.places && start()) ++started_;
    Work** end = &first_;
    while (*end) end = &(*end)->next;
    *end = &work;
    has_work_.store(true);
    for (int64_t i = std::min(work.places, started_); i > 0; --i) wake_.notify_one();
    lock.unlock();
    work.tasks.drain();
    gw_comes_soon([&work] { return work.inside.load() == 0; });
    lock.lock();
    remove(work);
    work.left.wait(lock, [&work] { return work.inside.load() == 0; });
  }

 private:
  bool start() {
    const auto main = [](void* pool) -> void* {
      static_cast<Pool*>(pool)->help();
      return nullptr;
    };
    pthread_t thread;
    return pthread_create(&thread, nullptr, main, this) == 0 && pthread_detach(thread) == 0;
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      lock.unlock();
      gw_comes_soon([this] { return has_work_.load(); });
      lock.lock();
      wake_.wait(lock, [this] { return first_ != nullptr; });
      Work& work = *first_;
      if (--work.places == 0) remove(work);
      ++work.inside;
      lock.unlock();
      work.tasks.drain();
      lock.lock();
      remove(work);
      // The caller, and with it the work, goes on when the lock is free.
      if (--work.inside == 0) work.left.notify_one();
    }
  }

  // Nothing, where it is no longer there.
  void remove(const Work& work) {
    for (Work** place = &first_; *place; place = &(*place)->next) {
      if (*place != &work) continue;
      *place = work.next;
      has_work_.store(first_ != nullptr);
      return;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Work* first_ = nullptr;
  std::atomic<bool> has_work_{false};  // for those who look without the lock
  int64_t started_ = 0;
};

// Never destroyed: its threads sleep in it until the process ends. A forked child, which has none of them, starts anew.
alignas(Pool) char pool_memory[sizeof(Pool)];
Pool& pool = *new (pool_memory) Pool;
const bool survives_forks = pthread_atfork(nullptr, nullptr, [] { new (pool_memory) Pool; }) == 0;

std::atomic<int64_t> chosen_threads{0};

int64_t default_threads() {
  const char* text = getenv("GROUPWISE_THREADS");
  const int64_t wanted = text ? strtoll(text, nullptr, 10) : 0;
  return wanted > 0 ? wanted : gw_usable_cores();
}

void run_on_pool(void* state, int64_t tasks, GwBody body, void* argument) {
  const int64_t helpers = std::min(reinterpret_cast<intptr_t>(state), tasks) - 1;
  Work work(tasks, body, argument, helpers);
  if (helpers > 0 && survives_forks) pool.run(work);
  else work.tasks.drain();
}

}  // namespace

extern "C" void gw_set_threads(int64_t threads) {
  if (threads <= 0) gw_forget_cpu_limit();
  chosen_threads.store(std::max<int64_t>(threads, 0));
}

extern "C" int64_t gw_threads(void) {
  const int64_t chosen = chosen_threads.load();
  return gw_limit_threads(chosen ? chosen : default_threads());
}

GwExecutor gw_own_executor() {
  const int64_t threads = gw_threads();
  return {run_on_pool, reinterpret_cast<void*>(static_cast<intptr_t>(threads)), threads};
}

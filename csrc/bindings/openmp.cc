#include "openmp.h"

#include <pthread.h>

#include <atomic>

#include "threads/parallel.h"

namespace {

// The runtime may give fewer threads than asked for (inside of another parallel region: one), so that tasks are drawn.
struct Loop {
  int64_t tasks;
  GwBody body;
  void* argument;
  std::atomic<int64_t> next{0};

  static void drain(void* data) {
    Loop& loop = *static_cast<Loop*>(data);
    for (int64_t task; (task = loop.next.fetch_add(1)) < loop.tasks;) loop.body(loop.argument, task);
  }
};

// GNU's OpenMP waits forever, in a forked child, for the threads that only its parent has.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

extern "C" void gw_openmp_run(void* state, int64_t tasks, GwBody body, void* argument) {
  const GwOpenMp& openmp = *static_cast<const GwOpenMp*>(state);
  const int64_t threads = gw_limit_threads(openmp.threads);
  Loop loop{tasks, body, argument};
  if (threads <= 1 || tasks <= 1) {
    Loop::drain(&loop);
  } else if (openmp.parallel && registered == 0 && !forked.load()) {
    // Always as many threads: the runtime ends those that a smaller number leaves over, and starts them again.
    openmp.parallel(Loop::drain, &loop, static_cast<unsigned>(threads), 0);
  } else {
    const GwExecutor own = gw_own_executor();
    const int64_t drains = threads < tasks ? threads : tasks;
    own.run(own.state, drains, [](void* data, int64_t) { Loop::drain(data); }, &loop);
  }
}

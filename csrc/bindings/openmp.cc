#include "openmp.h"

#include <pthread.h>

#include <atomic>

#include "threads/loop.h"
#include "threads/parallel.h"

namespace {

// The runtime may give fewer threads than asked for (inside of another parallel region: one), so that tasks are drawn.
void drain(void* tasks) { static_cast<GwTasks*>(tasks)->drain(); }

// GNU's OpenMP waits forever, in a forked child, for the threads that only its parent has.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

extern "C" void gw_openmp_run(void* state, int64_t tasks, GwBody body, void* argument) {
  const GwOpenMp& openmp = *static_cast<const GwOpenMp*>(state);
  const int64_t threads = gw_limit_threads(openmp.threads);
  GwTasks loop{tasks, body, argument};
  if (threads <= 1 || tasks <= 1) {
    drain(&loop);
  } else if (openmp.parallel && registered == 0 && !forked.load()) {
    // Always as many threads: the runtime ends those that a smaller number leaves over, and starts them again.
    openmp.parallel(drain, &loop, static_cast<unsigned>(threads), 0);
  } else {
    const GwExecutor own = gw_own_executor();
    const int64_t drains = threads < tasks ? threads : tasks;
    own.run(own.state, drains, [](void* data, int64_t) { drain(data); }, &loop);
  }
}

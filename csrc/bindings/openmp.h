// An executor on the threads of an OpenMP runtime that the process has loaded already, so that no second set of threads
// competes with them. PyTorch's binding uses it.
#pragma once
#include "groupwise.h"

extern "C" {

// What GwExecutor.state points at. `parallel` is the runtime's GOMP_parallel; null where there is none.
typedef struct GwOpenMp {
  void (*parallel)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
  int64_t threads;
} GwOpenMp;

// GwExecutor.run for a GwOpenMp. The core's own threads run the tasks where there is no runtime, and after a fork.
GW_PUBLIC void gw_openmp_run(void* state, int64_t tasks, GwBody body, void* argument);
}

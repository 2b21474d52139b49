// The core's own threads.
#pragma once
#include "groupwise.h"

// More threads than this are taken for this many: sizes multiplied by it stay far from overflowing.
constexpr int64_t kMostThreads = 4096;

// The core's own threads as an executor.
GwExecutor gw_own_executor();

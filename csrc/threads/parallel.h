// The core's own threads.
#pragma once
#include "groupwise.h"

// How many threads a call counts with: sizes multiplied by them stay far from overflowing.
inline int64_t gw_limit_threads(int64_t threads) { return threads < 4096 ? threads : 4096; }

// The core's own threads as an executor.
GwExecutor gw_own_executor();

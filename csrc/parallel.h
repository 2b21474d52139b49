// Threads and scratch memory, shared by all families.
#pragma once
#include <stddef.h>
#include "groupwise.h"

// The core's own threads as an executor.
GwExecutor gw_own_executor();

// Memory for `floats` floats, aligned to 64 bytes, that this thread keeps and reuses; null if there is none.
// A slot's earlier contents and pointer are gone after the next call with the same slot.
enum GwSlot { GW_CALL_SLOT = 0, GW_TASK_SLOT = 1 };
float* gw_scratch(GwSlot slot, size_t floats);

// The cores that may be used.
#pragma once
#include <stdint.h>

// Those of the calling thread's affinity, as it is now, and no more than gw_cpu_limit, which is read once.
int64_t gw_usable_cores();
// Lets it be read again.
void gw_forget_cpu_limit();

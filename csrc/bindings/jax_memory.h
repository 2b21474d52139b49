// XLA's memory of a step, kept for the next one.
#pragma once

// Lets the library that `function` is of keep its large blocks of memory when it gives them back, for whoever asks in
// it for one of the size next. Does nothing where GROUPWISE_KEEP_MEMORY is 0, or where the C library or the linker are
// not known for it.
void gw_keep_memory_of(void (*function)(void));

// Scratch memory: a little stays with its thread, what is larger is shared by all and given back.
#pragma once
#include <stddef.h>

// Memory for `floats` floats, aligned to 64 bytes, until gw_give_scratch; null if there is none. A thread gives back
// what it took last first.
float* gw_take_scratch(size_t floats);
void gw_give_scratch(float* memory);

// After each call of the C interface: gives back to the system what is large and no other call of the last seconds
// needed.
void gw_settle_scratch();

namespace {

// Scratch memory for a scope.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (memory_) gw_give_scratch(memory_);
  }
  // At most once.
  float* take(size_t floats) { return memory_ = gw_take_scratch(floats); }

 private:
  float* memory_ = nullptr;
};

}  // namespace

// Which instruction sets there are, and which one is in use.
#include "instruction_sets.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <iterator>

extern "C" {
extern const GwKernels gw_kernels_baseline, gw_kernels_avx2, gw_kernels_avx512, gw_kernels_neon;
}

namespace {

struct InstructionSet {
  const GwKernels* kernels;
  bool (*machine_has)();
};

// The best last. CMakeLists.txt has their flags, and says which of them this build is for.
constexpr InstructionSet kInstructionSets[] = {
#if defined(GW_BASELINE)
    {&gw_kernels_baseline, [] { return true; }},
#endif
#if defined(GW_AVX2)
    {&gw_kernels_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#if defined(GW_AVX512)
    {&gw_kernels_avx512,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq");
     }},
#endif
#if defined(GW_NEON)
    {&gw_kernels_neon, [] { return true; }},
#endif
};

// The machine's best, or the one of this name; null where the machine lacks it.
const GwKernels* find(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const GwKernels* found = nullptr;
  for (const InstructionSet& set : kInstructionSets) {
    if ((!name || !strcmp(set.kernels->name, name)) && set.machine_has()) found = set.kernels;
  }
  return found;
}

std::atomic<const GwKernels*> active{nullptr};

}  // namespace

const GwKernels& gw_kernels() {
  const GwKernels* kernels = active.load();
  if (!kernels) {
    kernels = find(getenv("GROUPWISE_INSTRUCTION_SET"));
    if (!kernels) kernels = find(nullptr);
    active.store(kernels);
  }
  return *kernels;
}

extern "C" const char* gw_instruction_set_name(int64_t number) {
  const bool is_there = number >= 0 && number < int64_t(std::size(kInstructionSets));
  return is_there ? kInstructionSets[number].kernels->name : nullptr;
}

extern "C" const char* gw_instruction_set(void) { return gw_kernels().name; }

extern "C" int gw_use_instruction_set(const char* name) {
  const GwKernels* kernels = name ? find(name) : nullptr;
  if (!kernels) return GW_UNSUPPORTED;
  active.store(kernels);
  return GW_OK;
}

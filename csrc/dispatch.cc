// Checks sizes, chooses the instruction set and the family.
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <initializer_list>

#include "epilogue.h"
#include "kernels.h"
#include "threads/pages.h"
#include "threads/parallel.h"
#include "threads/scratch.h"

namespace {

const GwKernels* const kAll[] = {
#if defined(__x86_64__)
    &gw_kernels_avx512,
    &gw_kernels_avx2,
    &gw_kernels_baseline,
#else
    &gw_kernels_neon,
#endif
};

bool machine_has(const GwKernels* kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (kernels == &gw_kernels_avx2) return avx2;
  if (kernels == &gw_kernels_avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  }
#endif
  return kernels != nullptr;
}

const GwKernels* find(const char* name) {
  for (const GwKernels* kernels : kAll) {
    if (machine_has(kernels) && (!name || !strcmp(kernels->name, name))) return kernels;
  }
  return nullptr;
}

std::atomic<const GwKernels*> active{nullptr};

const GwKernels* current() {
  const GwKernels* kernels = active.load();
  if (!kernels) {
    kernels = find(getenv("GROUPWISE_INSTRUCTION_SET"));
    if (!kernels) kernels = find(nullptr);
    active.store(kernels);
  }
  return kernels;
}

// The product of four sizes, or -1 where one is negative or the bytes of as many floats overflow.
int64_t volume(int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t product = 4;
  for (int64_t size : {a, b, c, d}) {
    if (size < 0 || __builtin_mul_overflow(product, size, &product)) return -1;
  }
  return product / 4;
}

// The largest size, stride, dilation and padding, and the most floats of a kernel: its copies, widened to whole
// vectors, one for each of four tasks a thread, can still be counted.
constexpr int64_t kMost = int64_t{1} << 40;
// Floats of an image with all around it that its outputs see: scratch memory holds rows of it, as wide as vectors.
constexpr int64_t kMostSeen = int64_t{1} << 52;

// Whether the last tap of the last output stays computable, so that no index overflows.
bool axis_is_valid(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  if (kernel < 1 || stride < 1 || dilation < 1 || padding < 0) return false;
  int64_t reach, extent;
  return !__builtin_mul_overflow(out, stride, &reach) && !__builtin_mul_overflow(kernel, dilation, &extent) &&
         reach < kMost && extent < kMost && padding < kMost && size < kMost;
}

// No fewer than all that is seen along such an axis, the image included.
int64_t seen(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  return size + padding + kernel * dilation + (out > 1 ? out * stride : 0);
}

int64_t input_volume(const GwConvolution& c) { return volume(c.batch, c.height, c.width, c.in_channels); }
int64_t output_volume(const GwConvolution& c) { return volume(c.batch, c.out_height, c.out_width, c.out_channels); }
int64_t kernel_volume(const GwConvolution& c) {
  return volume(c.kernel_height, c.kernel_width, c.in_channels / c.groups, c.out_channels);
}

bool is_below(int64_t value, int64_t end) { return value >= 0 && value < end; }

bool is_valid(const GwConvolution& c) {
  // A vector's lanes are numbered in 32 bits.
  if (c.groups < 1 || c.in_channels < 1 || c.out_channels < 1 || c.in_channels > INT32_MAX ||
      c.out_channels > INT32_MAX || c.in_channels % c.groups || c.out_channels % c.groups) {
    return false;
  }
  if (!axis_is_valid(c.height, c.out_height, c.kernel_height, c.stride_y, c.dilation_y, c.pad_top) ||
      !axis_is_valid(c.width, c.out_width, c.kernel_width, c.stride_x, c.dilation_x, c.pad_left)) {
    return false;
  }
  const int64_t rows = seen(c.height, c.out_height, c.kernel_height, c.stride_y, c.dilation_y, c.pad_top);
  const int64_t columns = seen(c.width, c.out_width, c.kernel_width, c.stride_x, c.dilation_x, c.pad_left);
  return input_volume(c) >= 0 && output_volume(c) >= 0 && is_below(kernel_volume(c), kMost) &&
         is_below(volume(rows, columns, c.in_channels, 1), kMostSeen) &&
         is_below(volume(rows, columns, c.out_channels, 1), kMostSeen);
}

bool is_valid(int64_t activation) { return activation >= 0 && activation < GW_ACTIVATIONS; }
bool is_valid(const GwExecutor* executor) { return !executor || (executor->run && executor->threads >= 1); }

enum Role { kInputs, kKernel, kOutputs };
// What each pass reads, and what it writes.
constexpr Role kRoles[3][3] = {
    {kInputs, kKernel, kOutputs}, {kOutputs, kKernel, kInputs}, {kInputs, kOutputs, kKernel}};

// How many elements one of a convolution's three arrays has.
int64_t volume_of(Role role, const GwConvolution& c) {
  return role == kInputs ? input_volume(c) : role == kOutputs ? output_volume(c) : kernel_volume(c);
}

// Multiply-adds that one thread finishes before another has woken up.
constexpr double kLittleWork = 1 << 18;

bool is_little_work(const GwConvolution& c) {
  return double(c.batch) * double(c.out_height) * double(c.out_width) * double(c.out_channels) *
             double(c.kernel_height) * double(c.kernel_width) * double(c.in_channels / c.groups) <
         kLittleWork;
}

void run_serially(void*, int64_t tasks, GwBody body, void* argument) {
  for (int64_t task = 0; task < tasks; ++task) body(argument, task);
}

GwExecutor choose_executor(bool is_little, const GwExecutor* executor) {
  if (is_little) return {run_serially, nullptr, 1};
  GwExecutor chosen = executor ? *executor : gw_own_executor();
  chosen.threads = chosen.threads < kMostThreads ? chosen.threads : kMostThreads;
  return chosen;
}

bool are_there(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (!array) return false;
  }
  return true;
}

// A single output's stride moves nothing, and may be larger than any memory.
GwConvolution simplified(GwConvolution c) {
  if (c.out_height == 1) c.stride_y = 1;
  if (c.out_width == 1) c.stride_x = 1;
  return c;
}

// Where nothing is added up.
GwStatus clear(void* out, int64_t bytes) {
  if (bytes > 0) memset(out, 0, size_t(bytes));
  return GW_OK;
}

// After a call.
int finish(int status) {
  gw_settle_scratch();
  return status;
}

GwFamily find_family(const GwConvolution& c, const char* name) {
  const GwKernels* kernels = current();
  const int64_t in_width = c.in_channels / c.groups;
  if (!strcmp(name, "reference")) return gw_reference;
  if (!strcmp(name, "depthwise") && in_width == 1 && c.groups > 1) return kernels->depthwise;
  if (!strcmp(name, "narrow") && c.groups > 1) return kernels->narrow;
  if (!strcmp(name, "wide")) return kernels->wide;
  return nullptr;
}

int max_pool(GwPass pass, int element, const GwConvolution* c, const void* in, void* out, uint8_t* places,
             const GwExecutor* executor) {
  if (!c || !is_valid(*c) || !is_valid(executor) || element < GW_FLOAT32 || element > GW_BFLOAT16) return GW_INVALID;
  if (c->in_channels != c->groups || c->out_channels != c->groups) return GW_INVALID;
  const int64_t elements = volume_of(kRoles[pass][2], *c), bytes = (element == GW_FLOAT32 ? 4 : 2) * elements;
  if ((volume_of(kRoles[pass][0], *c) > 0 && !in) || (elements > 0 && !out)) return GW_INVALID;
  if (pass == GW_INPUT_GRADIENT && !places && output_volume(*c) > 0) return GW_INVALID;
  const bool has_dilation = c->dilation_y != 1 || c->dilation_x != 1;
  if (has_dilation || volume(c->kernel_height, c->kernel_width, 1, 1) > 256) return GW_UNSUPPORTED;
  if (output_volume(*c) == 0 || elements == 0) return clear(out, bytes);
  const GwConvolution sizes = simplified(*c);
  const GwExecutor chosen = choose_executor(is_little_work(*c), executor);
  gw_want_large_pages(out, bytes);
  return finish(current()->max_pool({pass, static_cast<GwElement>(element), &sizes, in, out, places, &chosen}));
}

// Whether all that the passes read or write is there.
bool are_there(int passes, const GwNormalization& n) {
  const bool ends_in_images = passes & ~GW_MOMENTS, has_gradient = passes & (GW_GRADIENT_SUMS | GW_GRADIENT);
  if (!are_there({n.mean, n.variance}) || (ends_in_images && !are_there({n.gamma, n.beta}))) return false;
  if (has_gradient && !n.sums) return false;
  if (n.pixels == 0) return true;
  return n.inputs && (!(passes & GW_NORMALIZE) || n.outputs) && (!(passes & GW_GRADIENT_SUMS) || n.gradient) &&
         (!(passes & GW_GRADIENT) || (n.inputs_gradient && (n.gradient || n.residual_gradient)));
}

}  // namespace

extern "C" const char* gw_family(const GwConvolution* c) {
  if (!c || !is_valid(*c)) return nullptr;
  const int64_t in_width = c->in_channels / c->groups, out_width = c->out_channels / c->groups;
  if (c->groups == 1) return "wide";
  if (in_width == 1) return "depthwise";
  // From 9 channels on, a vector is better filled by one group's channels than by several groups.
  return in_width <= 8 && out_width <= 8 ? "narrow" : "wide";
}

extern "C" const char* gw_instruction_set(void) { return current()->name; }

extern "C" int gw_gradient_reads_outputs(int64_t activation) {
  return with_activation(activation, [](auto row) { return int(row.reads_outputs); });
}

extern "C" int gw_use_instruction_set(const char* name) {
  const GwKernels* kernels = name ? find(name) : nullptr;
  if (!kernels) return GW_UNSUPPORTED;
  active.store(kernels);
  return GW_OK;
}

extern "C" int gw_convolve(int pass, const GwConvolution* c, const float* a, const float* b, float* out,
                           const GwEpilogue* epilogue, const GwExecutor* executor, const char* family) {
  static const GwEpilogue nothing{};
  if (!c || !is_valid(*c) || !is_valid(executor) || pass < GW_FORWARD || pass > GW_KERNEL_GRADIENT) return GW_INVALID;
  if (epilogue && (pass != GW_FORWARD || !is_valid(epilogue->activation))) return GW_INVALID;
  const Role* roles = kRoles[pass];
  const int64_t floats = volume_of(roles[2], *c);
  if ((volume_of(roles[0], *c) > 0 && !a) || (volume_of(roles[1], *c) > 0 && !b) || (floats > 0 && !out)) {
    return GW_INVALID;
  }
  const GwFamily run = find_family(*c, family ? family : gw_family(c));
  if (!run) return GW_UNSUPPORTED;
  if (output_volume(*c) == 0 || floats == 0) return clear(out, 4 * floats);
  const GwConvolution sizes = simplified(*c);
  const GwExecutor chosen = choose_executor(is_little_work(*c), executor);
  gw_want_large_pages(out, 4 * floats);
  return finish(run({static_cast<GwPass>(pass), &sizes, a, b, out, epilogue ? epilogue : &nothing, &chosen}));
}

extern "C" int gw_max_pool(int element, const GwConvolution* c, const void* inputs, void* outputs, uint8_t* places,
                           const GwExecutor* executor) {
  return max_pool(GW_FORWARD, element, c, inputs, outputs, places, executor);
}

extern "C" int gw_max_pool_gradient(int element, const GwConvolution* c, const void* gradient, const uint8_t* places,
                                    void* out, const GwExecutor* executor) {
  return max_pool(GW_INPUT_GRADIENT, element, c, gradient, out, const_cast<uint8_t*>(places), executor);
}

extern "C" int gw_normalize(int passes, const GwNormalization* n, const GwExecutor* executor) {
  constexpr int every = GW_MOMENTS | GW_NORMALIZE | GW_GRADIENT_SUMS | GW_GRADIENT;
  // Floats that one thread has read before another has woken up.
  constexpr int64_t few = 1 << 16;
  if (!n || !is_valid(executor) || passes < 1 || passes & ~every || n->channels < 1 || n->channels >= kMost ||
      volume(n->pixels, n->channels, 1, 1) < 0 || !is_valid(n->activation) || !are_there(passes, *n)) {
    return GW_INVALID;
  }
  const GwExecutor chosen = choose_executor(n->pixels * n->channels < few, executor);
  const int64_t bytes = 4 * n->pixels * n->channels;
  if (passes & GW_NORMALIZE) gw_want_large_pages(n->outputs, bytes);
  if (passes & GW_GRADIENT_SUMS) gw_want_large_pages(n->residual_gradient, bytes);
  if (passes & GW_GRADIENT) gw_want_large_pages(n->inputs_gradient, bytes);
  return finish(current()->normalize(passes, *n, chosen));
}

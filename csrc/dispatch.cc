// The calls of the C interface: their arguments checked, on whose threads they run, and which family computes them.
#include <string.h>

#include "arguments.h"
#include "epilogue.h"
#include "fusion.h"
#include "geometry.h"
#include "instruction_sets.h"
#include "threads/pages.h"
#include "threads/parallel.h"
#include "threads/scratch.h"

namespace {

// Multiply-adds that one thread finishes before another has woken up.
constexpr double kLittleWork = 1 << 18;
// Floats that one thread has read before another has woken up.
constexpr int64_t kFewFloats = 1 << 16;

// What goes with a convolution unless its caller says more.
constexpr GwFusion kNothing{};

// Multiply-adds of a pass.
double work(const GwConvolution& c) {
  return double(c.batch) * double(c.out_height) * double(c.out_width) * double(c.out_channels) *
         double(c.kernel_height) * double(c.kernel_width) * (double(c.in_channels) / double(c.groups));
}

void run_serially(void*, int64_t tasks, GwBody body, void* argument) {
  for (int64_t task = 0; task < tasks; ++task) body(argument, task);
}

GwExecutor choose_executor(bool is_little, const GwExecutor* executor) {
  if (is_little) return {run_serially, nullptr, 1};
  GwExecutor chosen = executor ? *executor : gw_own_executor();
  chosen.threads = gw_limit_threads(chosen.threads);
  return chosen;
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

// The family of this name, or the fastest; null where there is none that computes the convolution.
const GwFamily* find_family(const GwConvolution& c, const char* name) {
  for (const GwFamily* family = gw_kernels().families; family->name; ++family) {
    if (family->computes(c) && (name ? !strcmp(family->name, name) : family->is_fastest(c))) return family;
  }
  return nullptr;
}

int max_pool(GwPass pass, int element, const GwConvolution* c, const void* in, void* out, uint8_t* places,
             const GwExecutor* executor) {
  if (!are_valid(pass, element, c, in, out, places, executor)) return GW_INVALID;
  const bool has_dilation = c->dilation_y != 1 || c->dilation_x != 1;
  if (has_dilation || volume(c->kernel_height, c->kernel_width, 1, 1) > 256) return GW_UNSUPPORTED;
  const int64_t elements = volume_of(kRoles[pass][2], *c), bytes = (element == GW_FLOAT32 ? 4 : 2) * elements;
  if (volume_of(kOutputs, *c) == 0 || elements == 0) return clear(out, bytes);
  const GwConvolution sizes = simplified(*c);
  const GwExecutor chosen = choose_executor(work(*c) < kLittleWork, executor);
  gw_want_large_pages(out, bytes);
  return finish(gw_kernels().max_pool({pass, static_cast<GwElement>(element), &sizes, in, out, places, &chosen}));
}

GwStatus convolve(const GwFamily& family, const GwFusion& fusion, GwJob job) {
  const GwConvolution& c = *job.convolution;
  PreparedFusion prepared(c, fusion);
  if (!prepared.has_memory()) return GW_OUT_OF_MEMORY;
  const int64_t floats = volume_of(kRoles[job.pass][2], c);
  GwStatus status = GW_OK;
  if (volume_of(kOutputs, c) == 0 || floats == 0) {
    clear(job.out, 4 * floats);
  } else {
    gw_want_large_pages(job.out, 4 * floats);
    job.fusion = &prepared.fusion, job.totals = prepared.totals();
    status = family.run(job);
  }
  if (status == GW_OK) prepared.tell();
  return status;
}

}  // namespace

extern "C" const char* gw_family_name(int64_t number) {
  const GwFamily* family = gw_kernels().families;
  while (number > 0 && family->name) ++family, --number;
  return number == 0 ? family->name : nullptr;
}

extern "C" const char* gw_family(const GwConvolution* c) {
  const GwFamily* family = c && is_valid(*c) ? find_family(*c, nullptr) : nullptr;
  return family ? family->name : nullptr;
}

extern "C" int gw_gradient_reads_outputs(int64_t activation) {
  return with_activation(activation, [](auto row) { return int(row.reads_outputs); });
}

extern "C" int gw_convolve(int pass, const GwConvolution* c, const float* a, const float* b, float* out,
                           const GwFusion* fusion, const GwExecutor* executor, const char* family) {
  if (!are_valid(pass, c, a, b, out, fusion, executor)) return GW_INVALID;
  const GwFamily* found = find_family(*c, family);
  if (!found) return GW_UNSUPPORTED;
  const GwConvolution sizes = simplified(*c);
  const GwExecutor chosen = choose_executor(work(*c) < kLittleWork, executor);
  return finish(convolve(*found, fusion ? *fusion : kNothing,
                         {static_cast<GwPass>(pass), &sizes, a, b, out, nullptr, nullptr, &chosen}));
}

extern "C" int gw_convolve_separable(const GwSeparable* separable, const float* inputs, float* out,
                                     const GwExecutor* executor) {
  if (!are_valid(separable, inputs, out, executor)) return GW_INVALID;
  const GwConvolution grouped = simplified(separable->grouped), pointwise = simplified(separable->pointwise);
  const GwFamily* family = find_family(grouped, nullptr);
  const GwFusion &between = separable->between ? *separable->between : kNothing,
                 &end = separable->end ? *separable->end : kNothing;
  if (!family->run_separable || !is_matrix_product(pointwise)) return GW_UNSUPPORTED;
  if (between.residual || between.mean || end.mean || end.inputs.mean) return GW_UNSUPPORTED;
  const GwExpansion* expansion = separable->expansion;
  const GwFusion& expanded = expansion && expansion->fusion ? *expansion->fusion : kNothing;
  const GwConvolution widening = expansion ? simplified(expansion->convolution) : GwConvolution{};
  if (expansion && (!is_matrix_product(widening) || between.inputs.mean)) return GW_UNSUPPORTED;
  if (expanded.residual || expanded.mean || expanded.inputs.mean) return GW_UNSUPPORTED;
  const int64_t outputs = volume_of(kOutputs, pointwise);
  if (outputs == 0) return GW_OK;
  PreparedFusion prepared(grouped, between);
  if (!prepared.has_memory()) return GW_OUT_OF_MEMORY;
  const double all = work(grouped) + work(pointwise) + (expansion ? work(widening) : 0);
  const GwExecutor chosen = choose_executor(all < kLittleWork, executor);
  gw_want_large_pages(out, 4 * outputs);
  const GwJob first{GW_FORWARD, &grouped,         inputs,  separable->grouped_kernel,
                    nullptr,    &prepared.fusion, nullptr, &chosen};
  const GwJob last{GW_FORWARD, &pointwise, nullptr, separable->pointwise_kernel, out, &end, nullptr, &chosen};
  if (!expansion) return finish(family->run_separable(nullptr, first, last));
  const GwJob before{GW_FORWARD, &widening, inputs, expansion->kernel, nullptr, &expanded, nullptr, &chosen};
  return finish(family->run_separable(&before, first, last));
}

extern "C" int gw_max_pool(int element, const GwConvolution* c, const void* inputs, void* outputs, uint8_t* places,
                           const GwExecutor* executor) {
  return max_pool(GW_FORWARD, element, c, inputs, outputs, places, executor);
}

extern "C" int gw_max_pool_gradient(int element, const GwConvolution* c, const void* gradient, const uint8_t* places,
                                    void* out, const GwExecutor* executor) {
  return max_pool(GW_INPUT_GRADIENT, element, c, gradient, out, const_cast<uint8_t*>(places), executor);
}

extern "C" int gw_shuffle(int64_t pixels, int64_t rows, int64_t columns, const float* in, float* out,
                          const GwExecutor* executor) {
  const int64_t floats = rows < 1 || columns < 1 ? -1 : volume(pixels, rows, columns, 1);
  if (floats < 0 || !is_valid(executor) || (floats > 0 && !are_there({in, out}))) return GW_INVALID;
  const GwExecutor chosen = choose_executor(floats < kFewFloats, executor);
  gw_want_large_pages(out, 4 * floats);
  gw_kernels().shuffle({pixels, rows, columns, in, out, &chosen});
  return finish(GW_OK);
}

extern "C" int gw_normalize(int passes, const GwNormalization* n, const GwExecutor* executor) {
  if (!are_valid(passes, n, executor)) return GW_INVALID;
  const int64_t floats = n->pixels * n->channels;
  const GwExecutor chosen = choose_executor(floats < kFewFloats, executor);
  if (passes & GW_NORMALIZE) gw_want_large_pages(n->outputs, 4 * floats);
  if (passes & GW_GRADIENT_SUMS) gw_want_large_pages(n->residual_gradient, 4 * floats);
  if (passes & GW_GRADIENT) gw_want_large_pages(n->inputs_gradient, 4 * floats);
  return finish(gw_kernels().normalize(passes, *n, chosen));
}

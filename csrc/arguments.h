// What the C interface refuses: whatever would touch foreign memory, overflow or divide by zero. Python explains to its
// callers what is wrong; bindings check that arrays have the sizes that they tell.
#pragma once
#include <stdint.h>

#include <initializer_list>

#include "groupwise.h"
#include "roles.h"

namespace {

// The product of four sizes, or -1 where one is negative or the bytes of as many floats overflow.
inline int64_t volume(int64_t a, int64_t b, int64_t c, int64_t d) {
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
inline bool axis_is_valid(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation,
                          int64_t padding) {
  if (kernel < 1 || stride < 1 || dilation < 1 || padding < 0) return false;
  int64_t reach, extent;
  return !__builtin_mul_overflow(out, stride, &reach) && !__builtin_mul_overflow(kernel, dilation, &extent) &&
         reach < kMost && extent < kMost && padding < kMost && size < kMost;
}

// No fewer than all that is seen along such an axis, the image included.
inline int64_t seen(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding) {
  return size + padding + kernel * dilation + (out > 1 ? out * stride : 0);
}

// How many elements one of a convolution's three arrays has.
inline int64_t volume_of(Role role, const GwConvolution& c) {
  if (role == kInputs) return volume(c.batch, c.height, c.width, c.in_channels);
  if (role == kOutputs) return volume(c.batch, c.out_height, c.out_width, c.out_channels);
  return volume(c.kernel_height, c.kernel_width, c.in_channels / c.groups, c.out_channels);
}

inline bool is_below(int64_t value, int64_t end) { return value >= 0 && value < end; }

inline bool is_valid(const GwConvolution& c) {
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
  return volume_of(kInputs, c) >= 0 && volume_of(kOutputs, c) >= 0 && is_below(volume_of(kKernel, c), kMost) &&
         is_below(volume(rows, columns, c.in_channels, 1), kMostSeen) &&
         is_below(volume(rows, columns, c.out_channels, 1), kMostSeen);
}

inline bool is_activation(int64_t number) { return number >= 0 && number < GW_ACTIVATIONS; }
inline bool is_valid(const GwExecutor* executor) { return !executor || (executor->run && executor->threads >= 1); }

// Whether an array that a pass reads or writes is there, or empty.
inline bool is_there(Role role, const GwConvolution& c, const void* array) { return array || volume_of(role, c) == 0; }

inline bool are_there(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (!array) return false;
  }
  return true;
}

inline bool is_valid(const GwReading& reading) {
  const bool is_plain = !reading.mean && !reading.scale && !reading.shift && !reading.summand;
  return is_activation(reading.activation) && (is_plain || (reading.mean && reading.scale && reading.shift));
}

// Whether a pass can compute this beside its sums.
inline bool is_valid(int pass, const GwFusion& fusion) {
  const GwReading &inputs = fusion.inputs, &outputs = fusion.outputs;
  const bool ends = fusion.scale || fusion.bias || fusion.residual || fusion.activation != GW_LINEAR;
  const bool counts = fusion.mean || fusion.variance, goes_on = fusion.sums;
  if (!is_valid(inputs) || !is_valid(outputs) || !is_activation(fusion.activation)) return false;
  if (pass != GW_FORWARD && (ends || counts)) return false;
  if (pass == GW_FORWARD && outputs.mean) return false;
  if (!fusion.mean != !fusion.variance || (fusion.raw_inputs && !fusion.sums)) return false;
  // The inputs' reading is of no use to an input gradient that ends before it.
  return pass == GW_INPUT_GRADIENT ? goes_on == (inputs.mean != nullptr) && !inputs.summand : !goes_on;
}

// The arguments of gw_convolve.
inline bool are_valid(int pass, const GwConvolution* c, const float* a, const float* b, const float* out,
                      const GwFusion* fusion, const GwExecutor* executor) {
  if (!c || !is_valid(*c) || !is_valid(executor) || pass < GW_FORWARD || pass > GW_KERNEL_GRADIENT) return false;
  if (fusion && !is_valid(pass, *fusion)) return false;
  if (fusion && fusion->sums && !is_there(kInputs, *c, fusion->raw_inputs)) return false;
  const Role* roles = kRoles[pass];
  return is_there(roles[0], *c, a) && is_there(roles[1], *c, b) && is_there(roles[2], *c, out);
}

// Whether one convolution's inputs are of the shape of another one's outputs.
inline bool reads(const GwConvolution& c, const GwConvolution& before) {
  return c.batch == before.batch && c.height == before.out_height && c.width == before.out_width &&
         c.in_channels == before.out_channels;
}

// The arguments of gw_convolve_separable.
inline bool are_valid(const GwSeparable* s, const float* inputs, const float* out, const GwExecutor* executor) {
  if (!s || !is_valid(s->grouped) || !is_valid(s->pointwise) || !is_valid(executor)) return false;
  for (const GwFusion* fusion : {s->between, s->end}) {
    if (fusion && !is_valid(GW_FORWARD, *fusion)) return false;
  }
  const GwConvolution &first = s->expansion ? s->expansion->convolution : s->grouped, &last = s->pointwise;
  if (s->expansion) {
    const GwFusion* fusion = s->expansion->fusion;
    if (!is_valid(first) || (fusion && !is_valid(GW_FORWARD, *fusion)) || !reads(s->grouped, first) ||
        !is_there(kKernel, first, s->expansion->kernel)) {
      return false;
    }
  }
  return reads(last, s->grouped) && is_there(kInputs, first, inputs) &&
         is_there(kKernel, s->grouped, s->grouped_kernel) && is_there(kKernel, last, s->pointwise_kernel) &&
         is_there(kOutputs, last, out);
}

// The arguments of gw_max_pool, or those of its gradient.
inline bool are_valid(GwPass pass, int element, const GwConvolution* c, const void* in, const void* out,
                      const uint8_t* places, const GwExecutor* executor) {
  if (!c || !is_valid(*c) || !is_valid(executor) || element < GW_FLOAT32 || element > GW_BFLOAT16) return false;
  if (c->in_channels != c->groups || c->out_channels != c->groups) return false;
  return is_there(kRoles[pass][0], *c, in) && is_there(kRoles[pass][2], *c, out) &&
         (pass == GW_FORWARD || is_there(kOutputs, *c, places));
}

// Whether all that the passes of a batch norm read or write is there.
inline bool are_there(int passes, const GwNormalization& n) {
  const bool ends_in_images = passes & ~GW_MOMENTS, has_gradient = passes & (GW_GRADIENT_SUMS | GW_GRADIENT);
  if (!are_there({n.mean, n.variance}) || (ends_in_images && !are_there({n.gamma, n.beta}))) return false;
  if (has_gradient && !n.sums) return false;
  if (n.pixels == 0) return true;
  return n.inputs && (!(passes & GW_NORMALIZE) || n.outputs) && (!(passes & GW_GRADIENT_SUMS) || n.gradient) &&
         (!(passes & GW_GRADIENT) || (n.inputs_gradient && (n.gradient || n.residual_gradient)));
}

// The arguments of gw_normalize.
inline bool are_valid(int passes, const GwNormalization* n, const GwExecutor* executor) {
  constexpr int every = GW_MOMENTS | GW_NORMALIZE | GW_GRADIENT_SUMS | GW_GRADIENT;
  return n && is_valid(executor) && passes >= 1 && !(passes & ~every) && n->channels >= 1 && n->channels < kMost &&
         volume(n->pixels, n->channels, 1, 1) >= 0 && is_activation(n->activation) && are_there(passes, *n);
}

}  // namespace

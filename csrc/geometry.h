// Where a pass reads and writes along one axis of the image.
//
// Both passes that make an image are one gather: out[o] = sum over taps of in[...] * kernel[tap].
// Forward: in index = o * stride + tap * dilation - padding. Input gradient: the taps with
// (o + padding - tap * dilation) divisible by the stride, at that quotient; so they repeat with period `stride`.
#pragma once
#include <stdint.h>

#include "groupwise.h"

namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Whether it is a 1x1 convolution of stride 1: whose outputs are its inputs times a matrix.
inline bool is_matrix_product(const GwConvolution& c) {
  return c.kernel_height == 1 && c.kernel_width == 1 && c.stride_y == 1 && c.stride_x == 1 && c.pad_top == 0 &&
         c.pad_left == 0 && c.out_height == c.height && c.out_width == c.width;
}

struct Axis {
  int64_t in_size, out_size;  // of what this pass reads and writes
  int64_t taps;               // the kernel's size
  int64_t stride, dilation, padding;
  bool transposed;  // the input gradient

  // How many kinds of output there are: outputs o and o + phases() see the same taps.
  int64_t phases() const { return transposed ? minimum(stride, maximum(1, out_size)) : 1; }
  // How far the reading moves when the writing moves by phases().
  int64_t step() const { return transposed ? 1 : stride; }
  // Whether outputs of this phase see this tap, and where: reading at `offset` for the phase's first output.
  bool sees(int64_t phase, int64_t tap, int64_t* offset) const {
    if (!transposed) {
      *offset = tap * dilation - padding;
      return true;
    }
    const int64_t distance = phase + padding - tap * dilation;
    if (distance % stride) return false;
    *offset = distance / stride;
    return true;
  }
  int64_t count(int64_t phase) const { return phase < out_size ? (out_size - phase - 1) / phases() + 1 : 0; }
};

// An axis of the forward pass as the pass at hand sees it.
inline Axis seen_from(bool transposed, Axis axis) {
  if (!transposed) return axis;
  return {axis.out_size, axis.in_size, axis.taps, axis.stride, axis.dilation, axis.padding, true};
}
inline Axis vertical_axis(const GwConvolution& c, bool transposed) {
  return seen_from(transposed, {c.height, c.out_height, c.kernel_height, c.stride_y, c.dilation_y, c.pad_top, false});
}
inline Axis horizontal_axis(const GwConvolution& c, bool transposed) {
  return seen_from(transposed, {c.width, c.out_width, c.kernel_width, c.stride_x, c.dilation_x, c.pad_left, false});
}

}  // namespace

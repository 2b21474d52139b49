// What each instruction set's build of the kernels offers to the dispatch.
#pragma once
#include "groupwise.h"

// What the tasks of a call have gathered of what they wrote, for each channel: mean and squared deviations from it, or
// two sums.
struct GwTotals {
  double pixels;
  double *first, *second;
};

// One pass of one convolution, its sizes checked.
struct GwJob {
  GwPass pass;
  const GwConvolution* convolution;
  const float *a, *b;
  float* out;
  const GwFusion* fusion;  // never null; arrays of channels go on, with zeros, for kSpareFloats past the last channel
  GwTotals* totals;        // zeros, to be added to; null where nothing is gathered
  const GwExecutor* executor;

  static constexpr int64_t kSpareFloats = 48;
  const GwReading& reading_of_a() const { return pass == GW_INPUT_GRADIENT ? fusion->outputs : fusion->inputs; }
  const GwReading& reading_of_b() const { return fusion->outputs; }  // the kernel's gradient alone reads two images
};

// A family of kernels for convolutions.
struct GwFamily {
  const char* name;
  bool (*computes)(const GwConvolution&);
  // Whether it is the fastest, where it computes the convolution and no family before it is.
  bool (*is_fastest)(const GwConvolution&);
  GwStatus (*run)(const GwJob&);
  // Computes one forward, and of its outputs, which are written nowhere, a 1x1 convolution of stride 1; or null. The
  // expansion, a 1x1 that the first one reads, written nowhere either, is null for none.
  GwStatus (*run_separable)(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise);
};

// A max pooling forward, or its gradient, its sizes checked.
struct GwPoolJob {
  GwPass pass;  // GW_FORWARD or GW_INPUT_GRADIENT
  GwElement element;
  const GwConvolution* convolution;
  const void* in;
  void* out;
  uint8_t* places;  // of the outputs' maxima: written forward (unless null), read by the gradient
  const GwExecutor* executor;
};

// What is added up along one axis of a resize: for output o the `counts[o]` inputs from firsts[o] on, weighted with
// (high * 2^kLowBits + low) / 2^kWeightBits. A row of weights has `taps` of them, a multiple of 4, zeros behind.
struct GwTaps {
  static constexpr int kWeightBits = 22, kLowBits = 11;
  int64_t outputs, taps;
  const int32_t *firsts, *counts;
  const int16_t *high, *low;
};

// A resize, its sizes checked. `middle` holds the resized rows, `middle_bytes` apart: at least kSpare bytes more than
// one has.
struct GwResizeJob {
  static constexpr int64_t kSpare = 32;
  const GwResizing* sizes;
  GwTaps horizontal, vertical;
  const uint8_t* in;
  uint8_t *middle, *out;
  int64_t middle_bytes;
};

// A channel shuffle, its sizes checked: each pixel's channels are (rows, columns), and become (columns, rows).
struct GwShuffleJob {
  int64_t pixels, rows, columns;
  const float* in;
  float* out;
  const GwExecutor* executor;
};

struct GwKernels {
  const char* name;
  const GwFamily* families;  // until one without a name
  GwStatus (*max_pool)(const GwPoolJob&);
  GwStatus (*normalize)(int passes, const GwNormalization&, const GwExecutor&);
  void (*resize)(const GwResizeJob&);
  void (*shuffle)(const GwShuffleJob&);
};

// A name of its own for each instruction set's build.
#define GW_JOIN_(a, b) a##b
#define GW_JOIN(a, b) GW_JOIN_(a, b)
#define GW_NAME(name) GW_JOIN(gw_##name##_, GW_SET)

// Plain loops, compiled once.
GwStatus gw_reference(const GwJob&);

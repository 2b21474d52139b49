// What each instruction set's build of the kernels offers to the dispatch.
#pragma once
#include "groupwise.h"

// One pass of one convolution, its sizes checked.
struct GwJob {
  GwPass pass;
  const GwConvolution* convolution;
  const float *a, *b;
  float* out;
  const GwEpilogue* epilogue;  // never null; all zero where nothing follows
  const GwExecutor* executor;
};

// A family of kernels for convolutions.
struct GwFamily {
  const char* name;
  bool (*computes)(const GwConvolution&);
  // Whether it is the fastest, where it computes the convolution and no family before it is.
  bool (*is_fastest)(const GwConvolution&);
  GwStatus (*run)(const GwJob&);
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

struct GwKernels {
  const char* name;
  const GwFamily* families;  // until one without a name
  GwStatus (*max_pool)(const GwPoolJob&);
  GwStatus (*normalize)(int passes, const GwNormalization&, const GwExecutor&);
};

// A name of its own for each instruction set's build.
#define GW_JOIN_(a, b) a##b
#define GW_JOIN(a, b) GW_JOIN_(a, b)
#define GW_NAME(name) GW_JOIN(gw_##name##_, GW_SET)

// Plain loops, compiled once.
GwStatus gw_reference(const GwJob&);

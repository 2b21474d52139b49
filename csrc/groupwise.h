// The whole C interface of the core: pointers and sizes, no framework, no Python.
//
// All images are NHWC, float32 unless said otherwise, all kernels HWIO: (kernel height, kernel width, in_channels /
// groups, out_channels). Nothing needs to be aligned. Outputs are written whole, whatever they held before.
#pragma once
#include <stdint.h>

#define GW_PUBLIC __attribute__((visibility("default")))

extern "C" {

// One 2-D convolution. Padding at the bottom and right follows from the output's size.
typedef struct GwConvolution {
  int64_t batch, height, width, in_channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width, groups;
  int64_t stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
} GwConvolution;

typedef enum GwPass {
  GW_FORWARD = 0,          // inputs, kernel -> outputs
  GW_INPUT_GRADIENT = 1,   // outputs' gradient, kernel -> inputs' gradient
  GW_KERNEL_GRADIENT = 2,  // inputs, outputs' gradient -> kernel's gradient
} GwPass;

// epilogue.h says what they are.
typedef enum GwActivation {
  GW_LINEAR = 0,
  GW_RELU = 1,
  GW_RELU6 = 2,
  GW_SILU = 3,
  GW_HARD_SWISH = 4,
  GW_ACTIVATIONS  // how many there are
} GwActivation;

// Whether the gradient of an activation is computed from its outputs; otherwise from what it was computed from.
GW_PUBLIC int gw_gradient_reads_outputs(int64_t activation);

// How a pass reads an image: activation((image - mean) * scale + shift + summand) for each of its channels. Zeros
// around the image are zeros after this. Where mean is null, the image is read as it is.
typedef struct GwReading {
  const float *mean, *scale, *shift;  // one for each channel
  const float* summand;               // of the image's shape, or null
  int64_t activation;                 // GwActivation
} GwReading;

// What a pass computes beside its sums, on the images' way into and out of registers.
typedef struct GwFusion {
  // How inputs are read, and how the gradient passes read the outputs' gradient. So a batch norm before the
  // convolution, and what one behind it makes of the gradient, need no images of their own.
  GwReading inputs, outputs;
  // What follows a forward pass: activation(sums * scale + bias + residual).
  const float *scale, *bias;  // out_channels values, or null: 1 and 0
  const float* residual;      // of the outputs' shape, or null
  int64_t activation;         // GwActivation
  // Of what a forward pass writes, for each channel: mean and biased variance, both 0 where there is nothing; or null.
  float *mean, *variance;
  // An input gradient goes on through how the inputs are read, which has no summand then: with these raw inputs, what
  // passes the activation, times scale, is written, and `sums` receives the sums of what passes, then those of its
  // products with (raw inputs - mean): the gradients to shift and to scale. Or null.
  const float* raw_inputs;
  float* sums;
} GwFusion;

// How to run `body(argument, task)` for every task in [0, tasks), each once, on up to `threads` threads.
// `run` returns when all are done; the caller's thread takes part.
typedef void (*GwBody)(void* argument, int64_t task);
typedef struct GwExecutor {
  void (*run)(void* state, int64_t tasks, GwBody body, void* argument);
  void* state;
  int64_t threads;  // at least 1
} GwExecutor;

typedef enum GwStatus {
  GW_OK = 0,
  // Sizes that would touch foreign memory, overflow or divide by zero; an array that is null and not empty; an
  // activation that is none; an executor without run or threads.
  GW_INVALID = 1,
  GW_UNSUPPORTED = 2,  // the named family does not compute this convolution, or not with this fusion
  GW_OUT_OF_MEMORY = 3,
} GwStatus;

// Computes one pass. `fusion`: null for nothing beside the sums. `family`: a name that gw_family_name returns, or null
// for the fastest. `executor`: null for the core's own threads. The same inputs, threads and machine give the same
// bits.
GW_PUBLIC int gw_convolve(int pass, const GwConvolution*, const float* a, const float* b, float* out, const GwFusion*,
                          const GwExecutor*, const char* family);

// A 1x1 convolution of stride 1, as the first of three, and what it computes beside its sums: no residual, it is not
// counted, and it reads its inputs as they are; null for nothing.
typedef struct GwExpansion {
  GwConvolution convolution;
  const float* kernel;
  const GwFusion* fusion;
} GwExpansion;

// A depthwise convolution, or one of narrow groups, and a 1x1 convolution of stride 1 that reads its outputs.
typedef struct GwSeparable {
  GwConvolution grouped, pointwise;
  const float *grouped_kernel, *pointwise_kernel;
  // What each computes beside its sums; null for nothing. What is between them lies nowhere as a whole: it has no
  // residual, it is counted by neither, and the pointwise reads it as it is.
  const GwFusion *between, *end;
  // What the grouped convolution reads, or null for the inputs as they are.
  const GwExpansion* expansion;
} GwSeparable;

// Computes both forward, or all three, a few rows after the other, so that what is between them never leaves the
// caches; `inputs` are those of the first. Rows of the expansion that two tasks see are computed twice. It is
// GW_UNSUPPORTED where the grouped convolution's fastest family is neither "depthwise" nor "narrow", and where another
// is not 1x1 of stride 1. Executor and bits as for gw_convolve.
GW_PUBLIC int gw_convolve_separable(const GwSeparable*, const float* inputs, float* out, const GwExecutor*);

typedef enum GwElement { GW_FLOAT32 = 0, GW_BFLOAT16 = 1 } GwElement;

// Max pooling, of the sizes of a depthwise convolution without dilation, whose windows have at most 256 places. Padding
// is never a maximum. `places` receives which place of its window, in row-major order, each output was found at: the
// first maximum, or the last value that is not a number; 0 where a window sees nothing but padding. It may be null.
GW_PUBLIC int gw_max_pool(int element, const GwConvolution*, const void* inputs, void* outputs, uint8_t* places,
                          const GwExecutor*);
// The inputs' gradient: each output's, added at its place.
GW_PUBLIC int gw_max_pool_gradient(int element, const GwConvolution*, const void* gradient, const uint8_t* places,
                                   void* out, const GwExecutor*);

// A batch normalised per channel: a matrix of pixels and channels, outputs =
// activation((inputs - mean) * gamma / sqrt(variance + epsilon) + beta + residual).
typedef struct GwNormalization {
  int64_t pixels, channels;
  int64_t activation;  // GwActivation
  int64_t count;       // of how many pixels, on all devices, mean and variance are; 0 where they are constants
  double epsilon;
  const float *inputs, *residual;  // residual: or null
  const float *gamma, *beta;       // as are mean and variance: one for each channel
  float *mean, *variance;          // the variance biased; both 0 where there are no pixels
  // The gradient passes read it where the activation's gradient does; null, or another activation: what the activation
  // saw is computed anew, from inputs and residual.
  float* outputs;
  const float* gradient;  // of the outputs
  float* sums;            // the gradients of beta, then those of gamma
  float *residual_gradient, *inputs_gradient;
} GwNormalization;

// The passes, so that statistics and sums can be reduced over devices between them; those given together run in order.
typedef enum GwNormalizationPass {
  GW_MOMENTS = 1,    // inputs -> mean, variance
  GW_NORMALIZE = 2,  // inputs, residual, gamma, beta, mean, variance -> outputs
  // inputs, outputs or residual, gradient, gamma, beta, mean, variance -> sums, residual_gradient unless null
  GW_GRADIENT_SUMS = 4,
  // the same and sums -> inputs_gradient; reads residual_gradient, unless null, for gradient
  GW_GRADIENT = 8,
} GwNormalizationPass;

// Computes the passes that `passes` is the sum of; executor and bits as for gw_convolve.
GW_PUBLIC int gw_normalize(int passes, const GwNormalization*, const GwExecutor*);

// Transposes the channels of each pixel, (rows, columns) of them, into (columns, rows): a channel shuffle of as many
// groups as there are rows, and its inverse where there are as many as columns. Executor as for gw_convolve.
GW_PUBLIC int gw_shuffle(int64_t pixels, int64_t rows, int64_t columns, const float* in, float* out, const GwExecutor*);

// The weights of a resize along an axis: Pillow's filters of these names.
typedef enum GwFilter { GW_BILINEAR = 0, GW_BICUBIC = 1, GW_LANCZOS = 2 } GwFilter;

// An image of bytes, or a rectangle of one, that becomes another one of any size.
typedef struct GwResizing {
  int64_t height, width, channels;
  int64_t row_bytes;  // from one row to the next, no fewer than a row's
  int64_t out_height, out_width;
  int64_t filter;    // GwFilter
  int64_t mirrored;  // whether left and right change places
} GwResizing;

// Resizes on the caller's thread. `out` has no gaps. The bits are those of Pillow's Image.resize.
GW_PUBLIC int gw_resize(const GwResizing*, const uint8_t* in, uint8_t* out);

// The name of the fastest family for this convolution; null if the sizes are invalid.
GW_PUBLIC const char* gw_family(const GwConvolution*);
// Those of all families, by number from 0 on; null past the last, which is "reference", plain loops for every
// convolution.
GW_PUBLIC const char* gw_family_name(int64_t number);

// The instruction set in use.
GW_PUBLIC const char* gw_instruction_set(void);
// The names of those that this library was built for, whether the machine has them or not, by number from 0 on; null
// past the last, which is the best.
GW_PUBLIC const char* gw_instruction_set_name(int64_t number);
// Uses another one from now on; returns GW_UNSUPPORTED, and changes nothing, if the machine lacks it.
GW_PUBLIC int gw_use_instruction_set(const char* name);

// The core's own threads, for callers that bring none. 0 returns to GROUPWISE_THREADS or, without it, to one for each
// core that the calling thread may run on, as its affinity is at each call, and no more than gw_cpu_limit, which is
// read then and kept.
GW_PUBLIC void gw_set_threads(int64_t threads);
GW_PUBLIC int64_t gw_threads(void);

// How many cores' time this process's control groups (a container's --cpus) allow it, rounded up; 0: as many as it
// likes. `root` is the folder of the system's files, null for "/".
GW_PUBLIC int64_t gw_cpu_limit(const char* root);

// Gives the scratch memory that no call is using back to the system, but for 2 MB a thread. By itself that happens to
// what has been needed once only, when a thread ends, and to what has not been needed for 20 seconds.
GW_PUBLIC void gw_release_memory(void);
// What else that is to do, of a library over this one.
GW_PUBLIC void gw_when_memory_is_released(void (*release)(void));
}

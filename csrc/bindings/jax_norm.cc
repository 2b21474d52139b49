// Batch norm's passes as handlers of XLA's foreign function interface.
//
// Arguments and results are the fields below, arrays of rank 4 (images), 1 (a value for each channel) and 2 (sums); the
// last of a list may lack where it is optional. One attribute, "settings", three int64: the activation, into how many
// parts of this size the batch is cut that mean and variance are of (0: they are constants), the bits of epsilon.
#include <stddef.h>

#include <initializer_list>

#include "jax_call.h"

namespace {

// A pointer among GwNormalization's, and the rank of its array.
struct Field {
  size_t offset;
  int64_t rank;
};

#define FIELD(name, rank) \
  Field { offsetof(GwNormalization, name), rank }
constexpr Field kInputs = FIELD(inputs, 4), kResidual = FIELD(residual, 4), kGamma = FIELD(gamma, 1);
constexpr Field kBeta = FIELD(beta, 1), kMean = FIELD(mean, 1), kVariance = FIELD(variance, 1);
constexpr Field kOutputs = FIELD(outputs, 4), kGradient = FIELD(gradient, 4), kSums = FIELD(sums, 2);
constexpr Field kResidualGradient = FIELD(residual_gradient, 4), kInputsGradient = FIELD(inputs_gradient, 4);
#undef FIELD

using Fields = std::initializer_list<Field>;

struct Pass {
  GwNormalizationPass number;
  Fields arguments, results;
  bool last_is_optional;
};

const Fields kMomentsIn = {kInputs}, kMomentsOut = {kMean, kVariance};
const Fields kNormalizeIn = {kInputs, kGamma, kBeta, kMean, kVariance, kResidual}, kNormalizeOut = {kOutputs};
// The last one is the residual where the activation's gradient reads what it saw.
const Fields kSumsIn = {kInputs, kGradient, kGamma, kBeta, kMean, kVariance, kOutputs};
const Fields kSumsOut = {kSums, kResidualGradient};
const Fields kGradientIn = {kInputs, kGradient, kGamma, kBeta, kMean, kVariance, kSums};
const Fields kGradientOut = {kInputsGradient};

// Stores the arrays' addresses; false where one is not of the inputs' shape or channels.
bool read_fields(const XlaItems& items, const Fields& fields, const int64_t* shape, GwNormalization* n) {
  int64_t index = 0;
  for (const Field& field : fields) {
    if (index == items.size) break;
    const XlaBuffer* buffer = find_buffer(items, index++, XLA_TYPE_F32, field.rank);
    if (!buffer || buffer->dimensions[field.rank - 1] != n->channels) return false;
    if (field.rank == 4 && memcmp(buffer->dimensions, shape, 4 * sizeof *shape) != 0) return false;
    if (field.rank == 2 && buffer->dimensions[0] != 2) return false;
    memcpy(reinterpret_cast<char*>(n) + field.offset, static_cast<const void*>(&buffer->data), sizeof buffer->data);
  }
  return true;
}

bool has_size(const XlaItems& items, const Fields& fields, bool last_is_optional) {
  const int64_t most = int64_t(fields.size());
  return items.size == most || (last_is_optional && items.size == most - 1);
}

// Returns what is wrong with the call, or null. What is checked here guards memory; the core checks the rest.
const char* read_call(const Pass& pass, const XlaCallFrame& frame, GwNormalization* n) {
  const XlaItems &arguments = frame.arguments, &results = frame.results;
  const bool optional_result = pass.last_is_optional && pass.results.size() > 1;
  if (!has_size(arguments, pass.arguments, pass.last_is_optional) ||
      !has_size(results, pass.results, optional_result)) {
    return "groupwise: the call has the wrong number of arguments or results";
  }
  const XlaBuffer* inputs = find_buffer(arguments, 0, XLA_TYPE_F32, 4);
  const int64_t* settings = find_settings(frame.attributes, 3);
  if (!inputs || !settings) return "groupwise: the call needs float32 images of rank 4 and its settings";
  const int64_t* shape = inputs->dimensions;
  n->pixels = shape[0] * shape[1] * shape[2], n->channels = shape[3];
  n->activation = settings[0];
  n->count = settings[1] * n->pixels;
  memcpy(&n->epsilon, settings + 2, sizeof n->epsilon);
  if (!read_fields(arguments, pass.arguments, shape, n) || !read_fields(results, pass.results, shape, n)) {
    return "groupwise: an array is not float32 of the inputs' shape or channels";
  }
  if (pass.number == GW_GRADIENT_SUMS && !gw_gradient_reads_outputs(n->activation)) {
    n->residual = n->outputs;
    n->outputs = nullptr;
  }
  return nullptr;
}

XlaError* handle(const Pass& pass, const XlaCallFrame* frame) {
  return answer(frame, [&] {
    GwNormalization normalization{};
    if (const char* mistake = read_call(pass, *frame, &normalization)) return refuse(frame, mistake);
    const Pool pool(*frame);
    return report(frame, gw_normalize(pass.number, &normalization, &pool.executor));
  });
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_moments(XlaCallFrame* frame) {
  return handle({GW_MOMENTS, kMomentsIn, kMomentsOut, false}, frame);
}
GW_PUBLIC XlaError* gw_jax_normalize(XlaCallFrame* frame) {
  return handle({GW_NORMALIZE, kNormalizeIn, kNormalizeOut, true}, frame);
}
GW_PUBLIC XlaError* gw_jax_gradient_sums(XlaCallFrame* frame) {
  return handle({GW_GRADIENT_SUMS, kSumsIn, kSumsOut, true}, frame);
}
GW_PUBLIC XlaError* gw_jax_gradient(XlaCallFrame* frame) {
  return handle({GW_GRADIENT, kGradientIn, kGradientOut, false}, frame);
}
}

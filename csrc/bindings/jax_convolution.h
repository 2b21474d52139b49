// What the handlers of convolutions share: the three arrays of a pass, and the sizes that follow from their shapes.
#pragma once
#include "jax_call.h"
#include "roles.h"

namespace {

// A pass's arrays, as the core takes them.
struct Arrays {
  GwConvolution sizes;
  const float *a, *b;
  float* out;
  const int64_t* shapes[3];  // by Role
};

// Arrays one after the other, from `index` on.
class Sequence {
 public:
  Sequence(const XlaItems& items, int64_t index) : items_(items), index_(index) {}
  // The next one, of this shape.
  float* next(const int64_t* shape, int64_t rank) {
    const XlaBuffer* buffer = find_buffer(items_, index_++, XLA_TYPE_F32, rank);
    const bool fits = buffer && !memcmp(buffer->dimensions, shape, size_t(rank) * sizeof *shape);
    all_fit_ = all_fit_ && fits;
    return fits ? static_cast<float*>(buffer->data) : nullptr;
  }
  bool has_ended_well() const { return all_fit_ && index_ == items_.size; }

 private:
  const XlaItems& items_;
  int64_t index_;
  bool all_fit_ = true;
};

// Fills in the sizes from the three shapes; false where they contradict one another.
inline bool read_sizes(const int64_t* const* shapes, const int64_t* settings, GwConvolution* c) {
  const int64_t *inputs = shapes[kInputs], *kernel = shapes[kKernel], *outputs = shapes[kOutputs];
  *c = {inputs[0], inputs[1],   inputs[2],   inputs[3],   outputs[1],  outputs[2],  outputs[3],  kernel[0],
        kernel[1], settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6]};
  return outputs[0] == inputs[0] && kernel[3] == outputs[3] && c->groups > 0 && inputs[3] % c->groups == 0 &&
         kernel[2] == inputs[3] / c->groups;
}

// Reads the first two arguments, the first result and the first seven of `settings`: groups, strides, dilation, top and
// left padding. Returns what is wrong, or null. What is checked here guards memory; the core checks the rest.
inline const char* read_arrays(GwPass pass, const XlaCallFrame& frame, const int64_t* settings, Arrays* arrays) {
  const XlaBuffer* a = find_buffer(frame.arguments, 0, XLA_TYPE_F32, 4);
  const XlaBuffer* b = find_buffer(frame.arguments, 1, XLA_TYPE_F32, 4);
  const XlaBuffer* out = find_buffer(frame.results, 0, XLA_TYPE_F32, 4);
  if (!a || !b || !out || !settings) return "groupwise: the call needs float32 arrays of rank 4 and its settings";
  const Role* roles = kRoles[pass];
  arrays->shapes[roles[0]] = a->dimensions;
  arrays->shapes[roles[1]] = b->dimensions;
  arrays->shapes[roles[2]] = out->dimensions;
  arrays->a = static_cast<const float*>(a->data);
  arrays->b = static_cast<const float*>(b->data);
  arrays->out = static_cast<float*>(out->data);
  return read_sizes(arrays->shapes, settings, &arrays->sizes)
             ? nullptr
             : "groupwise: the shapes of inputs, kernel and outputs contradict one another";
}

// Runs a pass on XLA's threads.
inline XlaError* run_pass(GwPass pass, const XlaCallFrame* frame, const Arrays& arrays, const GwFusion& fusion) {
  const Pool pool(*frame);
  return report(frame,
                gw_convolve(pass, &arrays.sizes, arrays.a, arrays.b, arrays.out, &fusion, &pool.executor, nullptr));
}

}  // namespace

// The core's three passes as handlers of XLA's foreign function interface, on XLA's own threads.
//
// Arguments: the two arrays of the pass; forward, a bias (rank 1) and a residual (rank 4) may follow, in any order.
// One attribute, "settings", eight int64: groups, strides, dilation, top and left padding, activation.
#include "jax_call.h"
#include "roles.h"

namespace {

// One call's arguments, as the core takes them.
struct Call {
  GwConvolution convolution;
  GwFusion fusion;
  const float *a, *b;
  float* out;
};

const XlaBuffer* image_buffer(const XlaItems& items, int64_t index) {
  return find_buffer(items, index, XLA_TYPE_F32, 4);
}

// Fills in the sizes from the three shapes; false where they contradict one another.
bool read_sizes(const int64_t* inputs, const int64_t* kernel, const int64_t* outputs, const int64_t* settings,
                GwConvolution* c) {
  *c = {inputs[0], inputs[1],   inputs[2],   inputs[3],   outputs[1],  outputs[2],  outputs[3],  kernel[0],
        kernel[1], settings[0], settings[1], settings[2], settings[3], settings[4], settings[5], settings[6]};
  return outputs[0] == inputs[0] && kernel[3] == outputs[3] && c->groups > 0 && inputs[3] % c->groups == 0 &&
         kernel[2] == inputs[3] / c->groups;
}

bool read_epilogue(const XlaItems& arguments, const int64_t* outputs, int64_t activation, GwFusion* fusion) {
  *fusion = {};
  fusion->activation = activation;
  for (int64_t i = 2; i < arguments.size; ++i) {
    const XlaBuffer *bias = find_buffer(arguments, i, XLA_TYPE_F32, 1), *residual = image_buffer(arguments, i);
    if (bias && bias->dimensions[0] == outputs[3]) {
      fusion->bias = static_cast<const float*>(bias->data);
    } else if (residual && !memcmp(residual->dimensions, outputs, 4 * sizeof *outputs)) {
      fusion->residual = static_cast<const float*>(residual->data);
    } else {
      return false;
    }
  }
  return activation >= 0 && activation < GW_ACTIVATIONS;
}

// Returns what is wrong with the call, or null. What is checked here guards memory; the core checks the rest.
const char* read_call(GwPass pass, const XlaCallFrame& frame, Call* call) {
  const XlaItems &arguments = frame.arguments, &results = frame.results;
  if (arguments.size < 2 || results.size != 1 || (pass != GW_FORWARD && arguments.size > 2)) {
    return "groupwise: the call has the wrong number of arguments or results";
  }
  const XlaBuffer *a = image_buffer(arguments, 0), *b = image_buffer(arguments, 1), *out = image_buffer(results, 0);
  const int64_t* settings = find_settings(frame.attributes, 8);
  if (!a || !b || !out || !settings) return "groupwise: the call needs float32 arrays of rank 4 and its settings";
  const int64_t* shapes[3];
  const Role* roles = kRoles[pass];
  shapes[roles[0]] = a->dimensions, shapes[roles[1]] = b->dimensions, shapes[roles[2]] = out->dimensions;
  if (!read_sizes(shapes[kInputs], shapes[kKernel], shapes[kOutputs], settings, &call->convolution)) {
    return "groupwise: the shapes of inputs, kernel and outputs contradict one another";
  }
  if (!read_epilogue(arguments, shapes[kOutputs], settings[7], &call->fusion)) {
    return "groupwise: the bias, residual or activation does not fit the outputs";
  }
  call->a = static_cast<const float*>(a->data);
  call->b = static_cast<const float*>(b->data);
  call->out = static_cast<float*>(out->data);
  return nullptr;
}

XlaError* handle(GwPass pass, const XlaCallFrame* frame) {
  return answer(frame, [=] {
    Call call;
    if (const char* mistake = read_call(pass, *frame, &call)) return refuse(frame, mistake);
    const Pool pool(*frame);
    const GwFusion* fusion = pass == GW_FORWARD ? &call.fusion : nullptr;
    return report(frame,
                  gw_convolve(pass, &call.convolution, call.a, call.b, call.out, fusion, &pool.executor, nullptr));
  });
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_forward(XlaCallFrame* frame) { return handle(GW_FORWARD, frame); }
GW_PUBLIC XlaError* gw_jax_input_gradient(XlaCallFrame* frame) { return handle(GW_INPUT_GRADIENT, frame); }
GW_PUBLIC XlaError* gw_jax_kernel_gradient(XlaCallFrame* frame) { return handle(GW_KERNEL_GRADIENT, frame); }
}

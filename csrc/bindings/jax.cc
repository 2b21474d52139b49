// The core's three passes as handlers of XLA's foreign function interface, on XLA's own threads.
//
// Arguments: the two arrays of the pass; forward, a bias (rank 1), a residual (rank 4) and, behind a bias, a scale
// (rank 1) may follow.
// One attribute, "settings", eight int64: groups, strides, dilation, top and left padding, activation.
#include "jax_convolution.h"

namespace {

bool read_epilogue(const XlaItems& arguments, const int64_t* outputs, int64_t activation, GwFusion* fusion) {
  fusion->activation = activation;
  for (int64_t i = 2; i < arguments.size; ++i) {
    const XlaBuffer* channels = find_buffer(arguments, i, XLA_TYPE_F32, 1);
    const XlaBuffer* residual = find_buffer(arguments, i, XLA_TYPE_F32, 4);
    if (channels && channels->dimensions[0] == outputs[3] && !fusion->scale) {
      (fusion->bias ? fusion->scale : fusion->bias) = static_cast<const float*>(channels->data);
    } else if (residual && !memcmp(residual->dimensions, outputs, 4 * sizeof *outputs)) {
      fusion->residual = static_cast<const float*>(residual->data);
    } else {
      return false;
    }
  }
  return activation >= 0 && activation < GW_ACTIVATIONS;
}

XlaError* handle(GwPass pass, const XlaCallFrame* frame) {
  return answer(frame, [=] {
    const XlaItems& arguments = frame->arguments;
    if (arguments.size < 2 || frame->results.size != 1 || (pass != GW_FORWARD && arguments.size > 2)) {
      return refuse(frame, "groupwise: the call has the wrong number of arguments or results");
    }
    const int64_t* settings = find_settings(frame->attributes, 8);
    Arrays arrays;
    GwFusion fusion{};
    if (const char* mistake = read_arrays(pass, *frame, settings, &arrays)) return refuse(frame, mistake);
    if (!read_epilogue(arguments, arrays.shapes[kOutputs], settings[7], &fusion)) {
      return refuse(frame, "groupwise: the bias, residual, scale or activation does not fit the outputs");
    }
    return run_pass(pass, frame, arrays, fusion);
  });
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_forward(XlaCallFrame* frame) { return handle(GW_FORWARD, frame); }
GW_PUBLIC XlaError* gw_jax_input_gradient(XlaCallFrame* frame) { return handle(GW_INPUT_GRADIENT, frame); }
GW_PUBLIC XlaError* gw_jax_kernel_gradient(XlaCallFrame* frame) { return handle(GW_KERNEL_GRADIENT, frame); }
}

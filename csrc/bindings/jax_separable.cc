// Two convolutions in one pass, the second one 1x1, as a handler of XLA's foreign function interface.
//
// Arguments: inputs, the first kernel, the second one; then as far as "settings" say that they are there the first
// one's bias and scale, the second one's bias, residual and scale. One attribute, "settings", seventeen int64: the
// first one's groups, strides, dilation, top and left padding, activation, biases and scales (0 or 1), the height and
// width between the two; the second one's groups, activation, biases, residuals and scales.
#include "jax_convolution.h"

namespace {

// Fills in both sizes; false where the shapes contradict one another.
bool read_both(const XlaBuffer& inputs, const XlaBuffer& kernel, const XlaBuffer& pointwise, const XlaBuffer& outputs,
               const int64_t* settings, GwSeparable* both) {
  const int64_t between[] = {inputs.dimensions[0], settings[10], settings[11], kernel.dimensions[3]};
  const int64_t plain[] = {settings[12], 1, 1, 1, 1, 0, 0};
  const int64_t* first[] = {inputs.dimensions, kernel.dimensions, between};
  const int64_t* second[] = {between, pointwise.dimensions, outputs.dimensions};
  both->grouped_kernel = static_cast<const float*>(kernel.data);
  both->pointwise_kernel = static_cast<const float*>(pointwise.data);
  return read_sizes(first, settings, &both->grouped) && read_sizes(second, plain, &both->pointwise);
}

XlaError* handle(const XlaCallFrame* frame) {
  return answer(frame, [=] {
    const int64_t* settings = find_settings(frame->attributes, 17);
    const XlaBuffer* images[4];
    for (int64_t i = 0; i < 4; ++i)
      images[i] = find_buffer(i < 3 ? frame->arguments : frame->results, i % 3, XLA_TYPE_F32, 4);
    if (!settings || !images[0] || !images[1] || !images[2] || !images[3]) {
      return refuse(frame, "groupwise: the call needs float32 arrays of rank 4 and its settings");
    }
    GwFusion between{}, end{};
    GwSeparable both{{}, {}, nullptr, nullptr, &between, &end};
    if (!read_both(*images[0], *images[1], *images[2], *images[3], settings, &both)) {
      return refuse(frame, "groupwise: the shapes of inputs, kernels and outputs contradict one another");
    }
    Sequence arguments(frame->arguments, 3);
    const int64_t *middle = images[1]->dimensions + 3, *outputs = images[3]->dimensions;
    between.activation = settings[7], end.activation = settings[13];
    if (settings[8]) between.bias = arguments.next(middle, 1);
    if (settings[9]) between.scale = arguments.next(middle, 1);
    if (settings[14]) end.bias = arguments.next(outputs + 3, 1);
    if (settings[15]) end.residual = arguments.next(outputs, 4);
    if (settings[16]) end.scale = arguments.next(outputs + 3, 1);
    if (!arguments.has_ended_well()) {
      return refuse(frame, "groupwise: a bias, scale or residual does not fit the outputs");
    }
    const Pool pool(*frame);
    auto* out = static_cast<float*>(images[3]->data);
    return report(frame, gw_convolve_separable(&both, static_cast<const float*>(images[0]->data), out, &pool.executor));
  });
}

}  // namespace

extern "C" GW_PUBLIC XlaError* gw_jax_separable(XlaCallFrame* frame) { return handle(frame); }

// Two convolutions in one pass, the second one 1x1, perhaps after an expansion, a 1x1 too, as a handler of XLA's
// foreign function interface.
//
// Arguments: inputs, the first kernel, the second one, the expansion's where there is one; then as far as "settings"
// say that they are there the first one's bias and scale, the second one's bias, residual and scale, the expansion's
// bias and scale. One attribute, "settings", seventeen int64: the first one's groups, strides, dilation, top and left
// padding, activation, biases and scales (0 or 1), the height and width between the two; the second one's groups,
// activation, biases, residuals and scales. Where there is an expansion four more: its groups, activation, biases and
// scales.
#include "jax_convolution.h"

namespace {

constexpr size_t kPlain = 17, kExpanding = 21;

// The images and kernels of a call, null where one is not there or of another kind.
struct Operands {
  const XlaBuffer *inputs, *kernel, *pointwise, *expansion, *outputs;
  const int64_t* settings;
  bool expands;

  explicit Operands(const XlaCallFrame& frame)
      : inputs(image(frame.arguments, 0)), kernel(image(frame.arguments, 1)), pointwise(image(frame.arguments, 2)),
        outputs(image(frame.results, 0)), settings(find_settings(frame.attributes, kPlain)), expands(!settings) {
    if (expands) settings = find_settings(frame.attributes, kExpanding);
    expansion = expands ? image(frame.arguments, 3) : nullptr;
  }
  bool are_there() const { return settings && inputs && kernel && pointwise && outputs && (!expands || expansion); }

 private:
  static const XlaBuffer* image(const XlaItems& items, int64_t index) {
    return find_buffer(items, index, XLA_TYPE_F32, 4);
  }
};

// Fills in all sizes and kernels; false where the shapes contradict one another.
bool read_all(const Operands& all, GwSeparable* both, GwExpansion* expansion) {
  const int64_t *settings = all.settings, *inputs = all.inputs->dimensions;
  const int64_t between[] = {inputs[0], settings[10], settings[11], all.kernel->dimensions[3]};
  const int64_t plain[] = {settings[12], 1, 1, 1, 1, 0, 0};
  const int64_t wide[] = {inputs[0], inputs[1], inputs[2], all.expands ? all.expansion->dimensions[3] : inputs[3]};
  const int64_t* first[] = {wide, all.kernel->dimensions, between};
  const int64_t* second[] = {between, all.pointwise->dimensions, all.outputs->dimensions};
  both->grouped_kernel = static_cast<const float*>(all.kernel->data);
  both->pointwise_kernel = static_cast<const float*>(all.pointwise->data);
  if (all.expands) {
    const int64_t before[] = {settings[kPlain], 1, 1, 1, 1, 0, 0};
    const int64_t* widening[] = {inputs, all.expansion->dimensions, wide};
    if (!read_sizes(widening, before, &expansion->convolution)) return false;
    expansion->kernel = static_cast<const float*>(all.expansion->data);
    both->expansion = expansion;
  }
  return read_sizes(first, settings, &both->grouped) && read_sizes(second, plain, &both->pointwise);
}

XlaError* handle(const XlaCallFrame* frame) {
  return answer(frame, [=] {
    const Operands all(*frame);
    if (!all.are_there()) return refuse(frame, "groupwise: the call needs float32 arrays of rank 4 and its settings");
    GwFusion between{}, end{}, expanded{};
    GwExpansion expansion{{}, nullptr, &expanded};
    GwSeparable both{{}, {}, nullptr, nullptr, &between, &end, nullptr};
    if (!read_all(all, &both, &expansion)) {
      return refuse(frame, "groupwise: the shapes of inputs, kernels and outputs contradict one another");
    }
    Sequence arguments(frame->arguments, all.expands ? 4 : 3);
    const int64_t *settings = all.settings, *middle = all.kernel->dimensions + 3, *outputs = all.outputs->dimensions;
    between.activation = settings[7], end.activation = settings[13];
    if (settings[8]) between.bias = arguments.next(middle, 1);
    if (settings[9]) between.scale = arguments.next(middle, 1);
    if (settings[14]) end.bias = arguments.next(outputs + 3, 1);
    if (settings[15]) end.residual = arguments.next(outputs, 4);
    if (settings[16]) end.scale = arguments.next(outputs + 3, 1);
    if (all.expands) {
      expanded.activation = settings[18];
      if (settings[19]) expanded.bias = arguments.next(all.expansion->dimensions + 3, 1);
      if (settings[20]) expanded.scale = arguments.next(all.expansion->dimensions + 3, 1);
    }
    if (!arguments.has_ended_well()) {
      return refuse(frame, "groupwise: a bias, scale or residual does not fit the outputs");
    }
    const Pool pool(*frame);
    const auto* inputs = static_cast<const float*>(all.inputs->data);
    return report(frame, gw_convolve_separable(&both, inputs, static_cast<float*>(all.outputs->data), &pool.executor));
  });
}

}  // namespace

extern "C" GW_PUBLIC XlaError* gw_jax_separable(XlaCallFrame* frame) { return handle(frame); }

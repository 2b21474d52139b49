// TensorFlow's operations over the core, through TensorFlow's C interface:
//
//   GroupwiseConv2D(inputs, kernel) -> outputs
//   GroupwiseFusedConv2D(inputs, kernel, bias, residual, scale) -> activation(outputs * scale + bias + residual)
//   GroupwiseConv2DInputGradient(outputs' gradient, kernel, inputs' shape) -> inputs' gradient
//   GroupwiseConv2DKernelGradient(inputs, outputs' gradient, kernel's shape) -> kernel's gradient
//
// Attributes: groups, strides and dilations (vertical, horizontal), padding (top, bottom, left, right; empty is "same",
// settled at each call because the image's size may differ). The fused one has four more: activation (GwActivation),
// biases, residuals and scales (how many are given, 0 or 1). Arrays are float32, shapes int32.
#include "tensorflow_convolution.h"

#include <utility>

namespace {

constexpr const char* kSubject = "GroupwiseConv2D";

struct Fused : Attributes {
  int64_t biases = 0, residuals = 0, scales = 0;
};

template <bool is_fused>
void* create(TF_OpKernelConstruction* construction) {
  return make<Fused>(construction, kSubject, [=](const Status& status, Fused* fused) {
    return !is_fused || (read_number(construction, "activation", GW_ACTIVATIONS - 1, status, &fused->activation) &&
                         read_number(construction, "biases", 1, status, &fused->biases) &&
                         read_number(construction, "residuals", 1, status, &fused->residuals) &&
                         read_number(construction, "scales", 1, status, &fused->scales));
  });
}

void destroy(void* kernel) { delete static_cast<Fused*>(kernel); }

template <GwPass number>
void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const Fused& attributes = *static_cast<const Fused*>(kernel);
    Arrays arrays(context, status);
    Pass pass(number);
    if (!read_pass(attributes, &arrays, &pass)) return false;
    GwFusion fusion{};
    fusion.activation = attributes.activation;
    if (attributes.biases) fusion.bias = arrays.argument("bias", {pass.sizes.out_channels});
    if (attributes.residuals) fusion.residual = arrays.argument("residual", pass.shapes[kOutputs]);
    if (attributes.scales) fusion.scale = arrays.argument("scale", {pass.sizes.out_channels});
    return run(pass, arrays.result(pass.result()), fusion, status);
  });
}

template <GwPass number, bool is_fused = false>
void add(const char* name, Operation::Texts inputs, const char* output) {
  Operation::Texts more;
  if (is_fused) more = {"activation: int", "biases: int >= 0", "residuals: int >= 0", "scales: int >= 0"};
  register_operation(
      {name, std::move(inputs), {output}, attributes_and(more), create<is_fused>, compute<number>, destroy});
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  add<GW_FORWARD>("GroupwiseConv2D", {"inputs: float", "kernel: float"}, "outputs: float");
  add<GW_FORWARD, true>("GroupwiseFusedConv2D",
                        {"inputs: float", "kernel: float", "bias: biases * float", "residual: residuals * float",
                         "scale: scales * float"},
                        "outputs: float");
  add<GW_INPUT_GRADIENT>("GroupwiseConv2DInputGradient", {"gradient: float", "kernel: float", "shape: int32"},
                         "input_gradient: float");
  add<GW_KERNEL_GRADIENT>("GroupwiseConv2DKernelGradient", {"inputs: float", "gradient: float", "shape: int32"},
                          "kernel_gradient: float");
  return true;
}();

}  // namespace

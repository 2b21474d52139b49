// Two convolutions in one pass, the second one 1x1, as TensorFlow's operation over the core:
//
//   GroupwiseSeparable(inputs, kernel, pointwise kernel, bias, scale, end's bias, end's residual, end's scale)
//       -> end's activation(outputs * end's scale + end's bias + end's residual)
//
// Attributes: those of every convolution (tensorflow.cc), of the first one; activation, biases and scales: what follows
// it; pointwise_groups, and end_activation, end_biases, end_residuals and end_scales, what follows the second one.
#include "tensorflow_convolution.h"

namespace {

constexpr const char* kSubject = "GroupwiseSeparable";

struct Separable : Attributes {
  int64_t biases = 0, scales = 0, end_activation = GW_LINEAR, end_biases = 0, end_residuals = 0, end_scales = 0;
  Attributes pointwise;
};

void* create(TF_OpKernelConstruction* construction) {
  return make<Separable>(construction, kSubject, [=](const Status& status, Separable* both) {
    both->pointwise.strides = both->pointwise.dilations = {1, 1};
    both->pointwise.padding = {0, 0, 0, 0};
    return read_number(construction, "activation", GW_ACTIVATIONS - 1, status, &both->activation) &&
           read_number(construction, "biases", 1, status, &both->biases) &&
           read_number(construction, "scales", 1, status, &both->scales) &&
           read_number(construction, "pointwise_groups", kLargest, status, &both->pointwise.groups) &&
           read_number(construction, "end_activation", GW_ACTIVATIONS - 1, status, &both->end_activation) &&
           read_number(construction, "end_biases", 1, status, &both->end_biases) &&
           read_number(construction, "end_residuals", 1, status, &both->end_residuals) &&
           read_number(construction, "end_scales", 1, status, &both->end_scales);
  });
}

void destroy(void* kernel) { delete static_cast<Separable*>(kernel); }

// Reads the second kernel, and the sizes of the convolution that it belongs to.
bool read_pointwise(const Separable& both, const Pass& grouped, Arrays* arrays, Pass* pointwise) {
  const Status& status = arrays->status;
  pointwise->shapes[kInputs] = grouped.shapes[kOutputs];
  pointwise->b = arrays->argument(&pointwise->shapes[kKernel]);
  if (!status.is_ok()) return false;
  if (both.pointwise.groups < 1 || pointwise->shapes[kKernel].size() != 4) {
    return status.refuse("the pointwise kernel must have rank 4, and its groups must be positive");
  }
  return resolve(GW_FORWARD, both.pointwise, pointwise->shapes, status, &pointwise->sizes);
}

void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const Separable& both = *static_cast<const Separable*>(kernel);
    Arrays arrays(context, status);
    Pass grouped(GW_FORWARD), pointwise(GW_FORWARD);
    if (!read_pass(both, &arrays, &grouped) || !read_pointwise(both, grouped, &arrays, &pointwise)) return false;
    const Shape middle{grouped.sizes.out_channels}, last{pointwise.sizes.out_channels};
    GwFusion between{}, end{};
    between.activation = both.activation, end.activation = both.end_activation;
    if (both.biases) between.bias = arrays.argument("bias", middle);
    if (both.scales) between.scale = arrays.argument("scale", middle);
    if (both.end_biases) end.bias = arrays.argument("end_bias", last);
    if (both.end_residuals) end.residual = arrays.argument("end_residual", pointwise.result());
    if (both.end_scales) end.scale = arrays.argument("end_scale", last);
    float* out = arrays.result(pointwise.result());
    const GwSeparable separable{grouped.sizes, pointwise.sizes, grouped.b, pointwise.b, &between, &end};
    return status.is_ok() && status.accept(gw_convolve_separable(&separable, grouped.a, out, nullptr));
  });
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  register_operation(
      {kSubject,
       {"inputs: float", "kernel: float", "pointwise_kernel: float", "bias: biases * float", "scale: scales * float",
        "end_bias: end_biases * float", "end_residual: end_residuals * float", "end_scale: end_scales * float"},
       {"outputs: float"},
       attributes_and({"activation: int", "biases: int >= 0", "scales: int >= 0", "pointwise_groups: int",
                       "end_activation: int", "end_biases: int >= 0", "end_residuals: int >= 0",
                       "end_scales: int >= 0"}),
       create,
       compute,
       destroy});
  return true;
}();

}  // namespace

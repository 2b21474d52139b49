// Two convolutions in one pass, the second one 1x1, perhaps after an expansion, a 1x1 too, as TensorFlow's operation
// over the core:
//
//   GroupwiseSeparable(inputs, expansion's kernel, its bias, its scale, kernel, pointwise kernel, bias, scale,
//                      end's bias, end's residual, end's scale)
//       -> end's activation(outputs * end's scale + end's bias + end's residual)
//
// Attributes: those of every convolution (tensorflow.cc), of the first one; activation, biases and scales: what follows
// it; pointwise_groups, and end_activation, end_biases, end_residuals and end_scales, what follows the second one;
// expansions (0 or 1), expansion_groups, expansion_activation, expansion_biases and expansion_scales.
#include "tensorflow_convolution.h"

namespace {

constexpr const char* kSubject = "GroupwiseSeparable";

struct Separable : Attributes {
  int64_t biases = 0, scales = 0, end_activation = GW_LINEAR, end_biases = 0, end_residuals = 0, end_scales = 0;
  int64_t expansions = 0, expansion_biases = 0, expansion_scales = 0;
  Attributes pointwise, expansion;
};

// A 1x1 of stride 1, but for its groups.
void make_plain(Attributes* attributes) {
  attributes->strides = attributes->dilations = {1, 1};
  attributes->padding = {0, 0, 0, 0};
}

bool read_expansion(TF_OpKernelConstruction* construction, const Status& status, Separable* both) {
  make_plain(&both->expansion);
  return read_number(construction, "expansions", 1, status, &both->expansions) &&
         read_number(construction, "expansion_groups", kLargest, status, &both->expansion.groups) &&
         read_number(construction, "expansion_activation", GW_ACTIVATIONS - 1, status, &both->expansion.activation) &&
         read_number(construction, "expansion_biases", 1, status, &both->expansion_biases) &&
         read_number(construction, "expansion_scales", 1, status, &both->expansion_scales);
}

void* create(TF_OpKernelConstruction* construction) {
  return make<Separable>(construction, kSubject, [=](const Status& status, Separable* both) {
    make_plain(&both->pointwise);
    return read_number(construction, "activation", GW_ACTIVATIONS - 1, status, &both->activation) &&
           read_number(construction, "biases", 1, status, &both->biases) &&
           read_number(construction, "scales", 1, status, &both->scales) &&
           read_number(construction, "pointwise_groups", kLargest, status, &both->pointwise.groups) &&
           read_number(construction, "end_activation", GW_ACTIVATIONS - 1, status, &both->end_activation) &&
           read_number(construction, "end_biases", 1, status, &both->end_biases) &&
           read_number(construction, "end_residuals", 1, status, &both->end_residuals) &&
           read_number(construction, "end_scales", 1, status, &both->end_scales) &&
           read_expansion(construction, status, both);
  });
}

void destroy(void* kernel) { delete static_cast<Separable*>(kernel); }

// Reads the kernel of a convolution that reads another one's outputs, and resolves its sizes.
bool read_next(const char* name, const Attributes& attributes, const Pass& before, Arrays* arrays, Pass* next) {
  const Status& status = arrays->status;
  next->shapes[kInputs] = before.shapes[kOutputs];
  next->b = arrays->argument(&next->shapes[kKernel]);
  if (!status.is_ok()) return false;
  if (attributes.groups < 1 || next->shapes[kKernel].size() != 4) {
    return status.refuse(std::string(name) + " kernel must have rank 4, and its groups must be positive");
  }
  return resolve(GW_FORWARD, attributes, next->shapes, status, &next->sizes);
}

// Reads the expansion, where there is one, and the kernel that comes next.
bool read_grouped(const Separable& both, Arrays* arrays, Pass* before, GwFusion* expanded, Pass* grouped) {
  if (!both.expansions) return read_pass(both, arrays, grouped);
  if (both.expansion.groups < 1) return arrays->status.refuse("expansion_groups must be positive");
  if (!read_pass(both.expansion, arrays, before)) return false;
  const Shape channels{before->sizes.out_channels};
  expanded->activation = both.expansion.activation;
  if (both.expansion_biases) expanded->bias = arrays->argument("expansion_bias", channels);
  if (both.expansion_scales) expanded->scale = arrays->argument("expansion_scale", channels);
  return arrays->status.is_ok() && read_next("the", both, *before, arrays, grouped);
}

void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const Separable& both = *static_cast<const Separable*>(kernel);
    Arrays arrays(context, status);
    Pass before(GW_FORWARD), grouped(GW_FORWARD), pointwise(GW_FORWARD);
    GwFusion expanded{}, between{}, end{};
    if (!read_grouped(both, &arrays, &before, &expanded, &grouped) ||
        !read_next("the pointwise", both.pointwise, grouped, &arrays, &pointwise)) {
      return false;
    }
    const Shape middle{grouped.sizes.out_channels}, last{pointwise.sizes.out_channels};
    between.activation = both.activation, end.activation = both.end_activation;
    if (both.biases) between.bias = arrays.argument("bias", middle);
    if (both.scales) between.scale = arrays.argument("scale", middle);
    if (both.end_biases) end.bias = arrays.argument("end_bias", last);
    if (both.end_residuals) end.residual = arrays.argument("end_residual", pointwise.result());
    if (both.end_scales) end.scale = arrays.argument("end_scale", last);
    float* out = arrays.result(pointwise.result());
    const GwExpansion expansion{before.sizes, before.b, &expanded};
    const GwSeparable separable{
        grouped.sizes, pointwise.sizes, grouped.b, pointwise.b, &between, &end, both.expansions ? &expansion : nullptr};
    const float* inputs = both.expansions ? before.a : grouped.a;
    return status.is_ok() && status.accept(gw_convolve_separable(&separable, inputs, out, nullptr));
  });
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  register_operation(
      {kSubject,
       {"inputs: float", "expansion_kernel: expansions * float", "expansion_bias: expansion_biases * float",
        "expansion_scale: expansion_scales * float", "kernel: float", "pointwise_kernel: float", "bias: biases * float",
        "scale: scales * float", "end_bias: end_biases * float", "end_residual: end_residuals * float",
        "end_scale: end_scales * float"},
       {"outputs: float"},
       attributes_and({"activation: int", "biases: int >= 0", "scales: int >= 0", "pointwise_groups: int",
                       "end_activation: int", "end_biases: int >= 0", "end_residuals: int >= 0", "end_scales: int >= 0",
                       "expansions: int >= 0 = 0", "expansion_groups: int = 1", "expansion_activation: int = 0",
                       "expansion_biases: int >= 0 = 0", "expansion_scales: int >= 0 = 0"}),
       create,
       compute,
       destroy});
  return true;
}();

}  // namespace

// Batch norm as TensorFlow's operations over the core:
//
//   GroupwiseNormalize(inputs, gamma, beta, statistics, residual) -> outputs, mean, variance
//   GroupwiseNormalizeGradient(inputs, outputs' gradient, gamma, beta, mean, variance, seen)
//       -> inputs' gradient, sums (the gradients of beta, then those of gamma), residual's gradient
//
// Attributes: activation (GwActivation), epsilon, constants (2 where mean and variance are constants, the statistics
// given; 0 where they are the batch's), residuals (1 where one is added, forward; where its gradient is wanted and what
// the activation's gradient reads is given, the outputs or the residual, backward; else 0). Arrays are float32, of
// shape (..., channels) or (channels,).
#include "tensorflow_call.h"

#include <algorithm>
#include <utility>

namespace {

constexpr const char* kSubject = "GroupwiseNormalize";

struct Attributes {
  int64_t activation = 0, constants = 0, residuals = 0;
  float epsilon = 0;
};

bool read_attributes(TF_OpKernelConstruction* construction, const Status& status, Attributes* attributes) {
  TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &attributes->epsilon, status);
  for (auto [name, value] : {std::pair{"activation", &attributes->activation},
                             {"constants", &attributes->constants},
                             {"residuals", &attributes->residuals}}) {
    if (status.is_ok()) TF_OpKernelConstruction_GetAttrInt64(construction, name, value, status);
  }
  if (!status.is_ok()) return false;
  const int64_t activation = attributes->activation, constants = attributes->constants;
  if (activation < 0 || activation >= GW_ACTIVATIONS) {
    return status.refuse("activation=" + std::to_string(activation) + ": must be from 0 to " +
                         std::to_string(GW_ACTIVATIONS - 1));
  }
  if (constants != 0 && constants != 2) {
    return status.refuse("constants=" + std::to_string(constants) + ": must be 0, or 2 for a mean and a variance");
  }
  return attributes->residuals <= 1 ||
         status.refuse("residuals=" + std::to_string(attributes->residuals) + ": must be 0 or 1");
}

void* create(TF_OpKernelConstruction* construction) {
  const Status status(kSubject);
  auto attributes = std::make_unique<Attributes>();
  if (read_attributes(construction, status, attributes.get())) return attributes.release();
  TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

void destroy(void* kernel) { delete static_cast<Attributes*>(kernel); }

// One call's arrays are of the shape of the first argument, the inputs, or of their channels.
class Call : public Arrays {
 public:
  Call(TF_OpKernelContext* context, const Attributes& attributes, const Status& status) : Arrays(context, status) {
    n.inputs = argument(&images);
    if (!status.is_ok()) return;
    if (images.empty() || images.back() < 1) {
      status.refuse("inputs of shape " + text(images) + ": must be (..., channels), at least one channel");
      return;
    }
    channels = {images.back()};
    n.channels = images.back(), n.pixels = 1;
    for (size_t axis = 0; axis + 1 < images.size(); ++axis) n.pixels *= images[axis];
    n.activation = attributes.activation, n.epsilon = attributes.epsilon;
    n.count = attributes.constants ? 0 : n.pixels;
  }

  // On the core's own threads: TensorFlow's C interface shows none.
  bool run(int passes) const { return status.is_ok() && status.accept(gw_normalize(passes, &n, nullptr)); }

  GwNormalization n{};
  Shape images, channels;
};

bool normalize(const Attributes& attributes, Call* call) {
  GwNormalization& n = call->n;
  n.gamma = call->argument("gamma", call->channels);
  n.beta = call->argument("beta", call->channels);
  const float* mean = attributes.constants ? call->argument("mean", call->channels) : nullptr;
  const float* variance = attributes.constants ? call->argument("variance", call->channels) : nullptr;
  if (attributes.residuals) n.residual = call->argument("residual", call->images);
  n.outputs = call->result(call->images);
  n.mean = call->result(call->channels);
  n.variance = call->result(call->channels);
  if (!n.variance) return false;
  if (!attributes.constants) return call->run(GW_MOMENTS | GW_NORMALIZE);
  std::copy_n(mean, n.channels, n.mean);
  std::copy_n(variance, n.channels, n.variance);
  return call->run(GW_NORMALIZE);
}

bool normalize_gradient(const Attributes& attributes, Call* call) {
  GwNormalization& n = call->n;
  n.gradient = call->argument("gradient", call->images);
  n.gamma = call->argument("gamma", call->channels);
  n.beta = call->argument("beta", call->channels);
  n.mean = call->argument("mean", call->channels);
  n.variance = call->argument("variance", call->channels);
  if (attributes.residuals) {
    float* seen = call->argument("seen", call->images);
    if (gw_gradient_reads_outputs(n.activation)) n.outputs = seen;
    else n.residual = seen;
  }
  n.inputs_gradient = call->result(call->images);
  n.sums = call->result({2, n.channels});
  if (attributes.residuals) n.residual_gradient = call->result(call->images);
  return call->run(GW_GRADIENT_SUMS | GW_GRADIENT);
}

template <bool (*body)(const Attributes&, Call*)>
void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const Attributes& attributes = *static_cast<const Attributes*>(kernel);
    Call call(context, attributes, status);
    return body(attributes, &call);
  });
}

template <bool (*body)(const Attributes&, Call*)>
void add(const char* name, Operation::Texts inputs, Operation::Texts outputs) {
  register_operation({name,
                      std::move(inputs),
                      std::move(outputs),
                      {"activation: int", "epsilon: float", "constants: int >= 0", "residuals: int >= 0"},
                      create,
                      compute<body>,
                      destroy});
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  add<normalize>(
      "GroupwiseNormalize",
      {"inputs: float", "gamma: float", "beta: float", "statistics: constants * float", "residual: residuals * float"},
      {"outputs: float", "mean: float", "variance: float"});
  add<normalize_gradient>("GroupwiseNormalizeGradient",
                          {"inputs: float", "gradient: float", "gamma: float", "beta: float", "mean: float",
                           "variance: float", "seen: residuals * float"},
                          {"inputs_gradient: float", "sums: float", "residual_gradient: residuals * float"});
  return true;
}();

}  // namespace

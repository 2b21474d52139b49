// Links of a chain, convolutions that read normalised and count, as TensorFlow's operations over the core:
//
//   GroupwiseLink(inputs, kernel, reading) -> outputs, mean, variance
//   GroupwiseLinkInputGradient(gradient, kernel, inputs' shape, reading, inputs, outputs, their reading)
//       -> inputs' gradient, sums (the gradients of the reading's shift, then those of its scale)
//   GroupwiseLinkKernelGradient(inputs, gradient, kernel's shape, reading, outputs, their reading) -> kernel's gradient
//
// A reading is a mean, a scale and a shift: the inputs are read as activation((inputs - mean) * scale + shift), the
// gradient of the outputs as gradient + (outputs - mean) * scale + shift. Attributes: those of every convolution
// (tensorflow.cc); activation (GwActivation); readings and counts: whether the inputs are read so, and whether there
// are statistics, hence how many there are of the arrays that belong to them, 0 or 1. Arrays are float32, shapes int32.
#include "tensorflow_convolution.h"

#include <utility>

namespace {

constexpr const char* kSubject = "GroupwiseLink";

struct Link : Attributes {
  int64_t readings = 0, counts = 0;
};

void* create(TF_OpKernelConstruction* construction) {
  return make<Link>(construction, kSubject, [=](const Status& status, Link* link) {
    return read_number(construction, "activation", GW_ACTIVATIONS - 1, status, &link->activation) &&
           read_number(construction, "readings", 1, status, &link->readings) &&
           read_number(construction, "counts", 1, status, &link->counts);
  });
}

void destroy(void* kernel) { delete static_cast<Link*>(kernel); }

GwReading read_reading(Arrays* arrays, const Shape& channels, int64_t activation) {
  GwReading reading{};
  reading.mean = arrays->argument("mean", channels);
  reading.scale = arrays->argument("scale", channels);
  reading.shift = arrays->argument("shift", channels);
  reading.activation = activation;
  return reading;
}

// Lets a pass read the outputs' gradient with what of it goes through the statistics.
void read_outputs(Arrays* arrays, Pass* pass, GwReading* reading) {
  const float*& gradient = pass->number == GW_INPUT_GRADIENT ? pass->a : pass->b;
  const float* outputs = arrays->argument("outputs", pass->shapes[kOutputs]);
  *reading = read_reading(arrays, {pass->sizes.out_channels}, GW_LINEAR);
  reading->summand = std::exchange(gradient, outputs);
}

template <GwPass number>
void compute(void* kernel, TF_OpKernelContext* context) {
  answer(context, kSubject, [=](const Status& status) {
    const Link& link = *static_cast<const Link*>(kernel);
    Arrays arrays(context, status);
    Pass pass(number);
    if (!read_pass(link, &arrays, &pass)) return false;
    const Shape in_channels{pass.sizes.in_channels}, out_channels{pass.sizes.out_channels};
    const bool goes_on = number == GW_INPUT_GRADIENT && link.readings;
    GwFusion fusion{};
    if (link.readings) fusion.inputs = read_reading(&arrays, in_channels, link.activation);
    if (goes_on) fusion.raw_inputs = arrays.argument("inputs", pass.shapes[kInputs]);
    if (number != GW_FORWARD && link.counts) read_outputs(&arrays, &pass, &fusion.outputs);
    float* out = arrays.result(pass.result());
    if (goes_on) fusion.sums = arrays.result({2, in_channels[0]});
    if (number == GW_FORWARD && link.counts) {
      fusion.mean = arrays.result(out_channels);
      fusion.variance = arrays.result(out_channels);
    }
    return run(pass, out, fusion, status);
  });
}

template <GwPass number>
void add(const char* name, Operation::Texts inputs, Operation::Texts outputs) {
  register_operation({name, std::move(inputs), std::move(outputs),
                      attributes_and({"activation: int", "readings: int >= 0", "counts: int >= 0"}), create,
                      compute<number>, destroy});
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  add<GW_FORWARD>("GroupwiseLink",
                  {"inputs: float", "kernel: float", "mean: readings * float", "scale: readings * float",
                   "shift: readings * float"},
                  {"outputs: float", "outputs_mean: counts * float", "outputs_variance: counts * float"});
  add<GW_INPUT_GRADIENT>(
      "GroupwiseLinkInputGradient",
      {"gradient: float", "kernel: float", "shape: int32", "mean: readings * float", "scale: readings * float",
       "shift: readings * float", "inputs: readings * float", "outputs: counts * float", "outputs_mean: counts * float",
       "outputs_scale: counts * float", "outputs_shift: counts * float"},
      {"input_gradient: float", "sums: readings * float"});
  add<GW_KERNEL_GRADIENT>(
      "GroupwiseLinkKernelGradient",
      {"inputs: float", "gradient: float", "shape: int32", "mean: readings * float", "scale: readings * float",
       "shift: readings * float", "outputs: counts * float", "outputs_mean: counts * float",
       "outputs_scale: counts * float", "outputs_shift: counts * float"},
      {"kernel_gradient: float"});
  return true;
}();

}  // namespace

// The passes of a chain's link as handlers of XLA's foreign function interface: convolutions that normalise what they
// read and count what they write.
//
// Arguments: the two arrays of the pass; where inputs are normalised, their mean, scale and shift and, for an input
// gradient, they themselves; in a gradient through statistics, mean, scale, shift and summand of the second reading.
// Results: the pass's; forward, mean and variance where they are counted; of an input gradient where inputs are
// normalised, the sums. One attribute, "settings", nine int64: groups, strides, dilation, top and left padding, the
// activation of what is normalised (-1: nothing is), whether there are statistics.
#include "jax_convolution.h"

namespace {

void read_reading(Sequence& arguments, int64_t channels, GwReading* reading) {
  reading->mean = arguments.next(&channels, 1);
  reading->scale = arguments.next(&channels, 1);
  reading->shift = arguments.next(&channels, 1);
}

// Reads what follows a pass's own arrays; false where it is not what `settings` say.
bool read_fusion(GwPass pass, const XlaCallFrame& frame, const Arrays& arrays, const int64_t* settings,
                 GwFusion* fusion) {
  Sequence arguments(frame.arguments, 2), results(frame.results, 1);
  const int64_t *inputs = arrays.shapes[kInputs], *outputs = arrays.shapes[kOutputs];
  const bool normalises = settings[7] >= 0, counts = settings[8] != 0;
  if (normalises) {
    read_reading(arguments, inputs[3], &fusion->inputs);
    fusion->inputs.activation = settings[7];
  }
  if (normalises && pass == GW_INPUT_GRADIENT) {
    const int64_t sums[] = {2, inputs[3]};
    fusion->raw_inputs = arguments.next(inputs, 4);
    fusion->sums = results.next(sums, 2);
  }
  if (counts && pass == GW_FORWARD) {
    fusion->mean = results.next(outputs + 3, 1);
    fusion->variance = results.next(outputs + 3, 1);
  } else if (counts) {
    read_reading(arguments, outputs[3], &fusion->outputs);
    fusion->outputs.summand = arguments.next(outputs, 4);
  }
  return arguments.has_ended_well() && results.has_ended_well();
}

XlaError* handle(GwPass pass, const XlaCallFrame* frame) {
  return answer(frame, [=] {
    const int64_t* settings = find_settings(frame->attributes, 9);
    Arrays arrays;
    GwFusion fusion{};
    if (const char* mistake = read_arrays(pass, *frame, settings, &arrays)) return refuse(frame, mistake);
    if (!read_fusion(pass, *frame, arrays, settings, &fusion)) {
      return refuse(frame, "groupwise: what is normalised or counted does not fit inputs and outputs");
    }
    return run_pass(pass, frame, arrays, fusion);
  });
}

}  // namespace

extern "C" {
GW_PUBLIC XlaError* gw_jax_link(XlaCallFrame* frame) { return handle(GW_FORWARD, frame); }
GW_PUBLIC XlaError* gw_jax_link_input_gradient(XlaCallFrame* frame) { return handle(GW_INPUT_GRADIENT, frame); }
GW_PUBLIC XlaError* gw_jax_link_kernel_gradient(XlaCallFrame* frame) { return handle(GW_KERNEL_GRADIENT, frame); }
}

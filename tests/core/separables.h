// Convolutions of narrow groups, each with a 1x1 that reads its outputs and perhaps one before it, drawn and compared
// with one after the other.
#pragma once
#include "fusions.h"

namespace {

// A drawn end of a forward pass: activation(sums * scale + bias + residual).
struct End {
  Array scale, bias, residual;
  GwFusion fusion{};

  End(int64_t channels, int64_t outputs, bool adds) : scale(channels), bias(channels), residual(outputs) {
    for (Array* array : {&scale, &bias, &residual}) array->fill();
    fusion.scale = draw(0, 1) ? scale.data : nullptr;
    fusion.bias = draw(0, 1) ? bias.data : nullptr;
    fusion.residual = adds && draw(0, 1) ? residual.data : nullptr;
    fusion.activation = draw(0, GW_ACTIVATIONS - 1);
  }
};

// A 1x1 convolution of images of these sizes.
GwConvolution pointwise(int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int64_t groups) {
  return {batch, height, width, in, height, width, out, 1, 1, groups, 1, 1, 1, 1, 0, 0};
}

// A number of groups that divides so many channels.
int64_t draw_groups(int64_t channels) {
  int64_t groups = draw(0, 2) ? 1 : draw(1, 4);
  while (channels % groups) --groups;
  return groups;
}

// One that reads the outputs of `c`.
GwConvolution draw_pointwise(const GwConvolution& c) {
  const int64_t groups = draw_groups(c.out_channels);
  return pointwise(c.batch, c.out_height, c.out_width, c.out_channels, groups * draw(1, 70), groups);
}

// A drawn expansion, a 1x1 convolution of as many outputs as a convolution reads.
struct Widening {
  GwConvolution c;
  Array kernel;
  End end;
  GwExpansion expansion;

  explicit Widening(const GwConvolution& next)
      : c(draw_sizes(next)), kernel(c.in_channels / c.groups * c.out_channels), end(c.out_channels, 0, false),
        expansion{c, kernel.data, draw(0, 7) ? &end.fusion : nullptr} {
    kernel.fill();
  }
  static GwConvolution draw_sizes(const GwConvolution& next) {
    const int64_t groups = draw_groups(next.in_channels);
    return pointwise(next.batch, next.height, next.width, groups * draw(1, 40), next.in_channels, groups);
  }
};

// One after the other by plain loops.
void compute_by_reference(const GwConvolution& c, const Array& a, const Array& b, const Array& to,
                          const GwFusion* fusion) {
  gw_convolve(GW_FORWARD, &c, a.data, b.data, to.data, fusion, nullptr, "reference");
}

// What may be wrong with an image of such magnitudes, as a magnitude that the next convolution multiplies.
void add_doubt(const Array& image) {
  for (int64_t i = 0; i < image.count; ++i) image.data[i] = 4 * image.data[i] + 10;
}

// What the grouped convolution of a pass reads, and what may be wrong with that.
struct Seen {
  Array image, doubt;

  Seen(const Array& x, const Widening* widening, const Reading* reading)
      : image(widening ? widening->c.batch * widening->c.height * widening->c.width * widening->c.out_channels
                       : x.count),
        doubt(image.count) {
    const Array read = reading ? reading->of(x) : x, magnitude = read.magnitude();
    if (widening) {
      compute_by_reference(widening->c, x, widening->kernel, image, widening->expansion.fusion);
      compute_by_reference(widening->c, magnitude, widening->kernel.magnitude(), doubt, nullptr);
      add_doubt(doubt);
    } else {
      for (int64_t i = 0; i < x.count; ++i) image.data[i] = read.data[i], doubt.data[i] = magnitude.data[i];
    }
  }
};

int check_separable(const GwConvolution& c) {
  const GwConvolution p = draw_pointwise(c);
  const Widening drawn(c);
  const Widening* widening = draw(0, 1) ? &drawn : nullptr;
  Array x(c.batch * c.height * c.width * (widening ? drawn.c.in_channels : c.in_channels));
  Array middle(c.batch * c.out_height * c.out_width * c.out_channels);
  Array first(c.kernel_height * c.kernel_width * (c.in_channels / c.groups) * c.out_channels);
  Array second(p.in_channels / p.groups * p.out_channels), out(p.batch * p.height * p.width * p.out_channels);
  for (Array* array : {&x, &first, &second}) array->fill();
  const End between(c.out_channels, 0, false), end(p.out_channels, out.count, true);
  const Reading inputs(c.in_channels, widening ? 0 : x.count, draw(0, GW_ACTIVATIONS - 1), draw(0, 3) == 0);
  const Reading* reading = !widening && draw(0, 1) ? &inputs : nullptr;
  GwFusion reads = between.fusion;
  if (reading) reads.inputs = inputs.reading;
  const GwSeparable separable{
      c, p, first.data, second.data, &reads, &end.fusion, widening ? &drawn.expansion : nullptr};
  gw_set_threads(draw(1, 5));
  Array again(out.count), truth(out.count), bound(out.count);
  for (Array* array : {&out, &again, &truth}) array->poison();
  int status = gw_convolve_separable(&separable, x.data, out.data, nullptr);
  status |= gw_convolve_separable(&separable, x.data, again.data, nullptr);

  const Seen seen(x, widening, reading);
  compute_by_reference(c, seen.image, first, middle, &between.fusion);
  compute_by_reference(p, middle, second, truth, &end.fusion);
  compute_by_reference(c, seen.doubt, first.magnitude(), middle, nullptr);
  add_doubt(middle);
  compute_by_reference(p, middle, second.magnitude(), bound, nullptr);
  const bool is_narrow = c.in_channels / c.groups <= 8 && c.out_channels / c.groups <= 8;
  const bool is_supported = is_narrow || c.in_channels == c.groups;
  if (!is_supported && status == GW_UNSUPPORTED) return 0;
  const char* mistake = status ? "refused" : nullptr;
  if (out.count && memcmp(out.data, again.data, size_t(out.count) * sizeof(float)))
    mistake = "other bits the second time";
  for (int64_t i = 0; i < out.count && !mistake; ++i) {
    if (!(fabs(double(out.data[i]) - truth.data[i]) <= 1e-5 * (4 * bound.data[i] + 10))) mistake = "wrong";
  }
  if (mistake) {
    printf("%s, separable%s: %s, %ld threads: %s, then %ld outputs of %ld groups\n", mistake,
           widening ? " after an expansion" : "", gw_instruction_set(), long(gw_threads()), text(c).c_str(),
           long(p.out_channels), long(p.groups));
  }
  return mistake != nullptr;
}

}  // namespace

// Convolutions of narrow groups, each with a 1x1 that reads its outputs, drawn and compared with one after the other.
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

GwConvolution draw_pointwise(const GwConvolution& c) {
  int64_t groups = draw(0, 2) ? 1 : draw(1, 4);
  while (c.out_channels % groups) --groups;
  return {c.batch,
          c.out_height,
          c.out_width,
          c.out_channels,
          c.out_height,
          c.out_width,
          groups * draw(1, 70),
          1,
          1,
          groups,
          1,
          1,
          1,
          1,
          0,
          0};
}

int check_separable(const GwConvolution& c) {
  const GwConvolution p = draw_pointwise(c);
  Array x(c.batch * c.height * c.width * c.in_channels), middle(c.batch * c.out_height * c.out_width * c.out_channels);
  Array first(c.kernel_height * c.kernel_width * (c.in_channels / c.groups) * c.out_channels);
  Array second(p.in_channels / p.groups * p.out_channels), out(p.batch * p.height * p.width * p.out_channels);
  for (Array* array : {&x, &first, &second}) array->fill();
  const End between(c.out_channels, 0, false), end(p.out_channels, out.count, true);
  const Reading inputs(c.in_channels, x.count, draw(0, GW_ACTIVATIONS - 1), draw(0, 3) == 0);
  GwFusion reads = between.fusion;
  if (draw(0, 1)) reads.inputs = inputs.reading;
  const GwSeparable separable{c, p, first.data, second.data, &reads, &end.fusion};
  gw_set_threads(draw(1, 5));
  Array again(out.count), truth(out.count), bound(out.count);
  for (Array* array : {&out, &again, &truth}) array->poison();
  int status = gw_convolve_separable(&separable, x.data, out.data, nullptr);
  status |= gw_convolve_separable(&separable, x.data, again.data, nullptr);

  const Array seen = reads.inputs.mean ? inputs.of(x) : x;
  const auto reference = [](const GwConvolution& sizes, const Array& a, const Array& b, const Array& to,
                            const GwFusion* fusion) {
    gw_convolve(GW_FORWARD, &sizes, a.data, b.data, to.data, fusion, nullptr, "reference");
  };
  reference(c, seen, first, middle, &between.fusion);
  reference(p, middle, second, truth, &end.fusion);
  // What may be wrong in the middle is multiplied like it.
  reference(c, seen.magnitude(), first.magnitude(), middle, nullptr);
  for (int64_t i = 0; i < middle.count; ++i) middle.data[i] = 4 * middle.data[i] + 10;
  reference(p, middle, second.magnitude(), bound, nullptr);
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
    printf("%s, separable: %s, %ld threads: %s, then %ld outputs of %ld groups\n", mistake, gw_instruction_set(),
           long(gw_threads()), text(c).c_str(), long(p.out_channels), long(p.groups));
  }
  return mistake != nullptr;
}

}  // namespace

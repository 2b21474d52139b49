// What convolutions compute beside their sums, drawn and compared with the same step by step.
#pragma once
#include "convolutions.h"
#include "normalizations.h"

namespace {

// How an image is read, and what comes of it.
struct Reading {
  Array mean, scale, shift, summand;
  GwReading reading{};

  Reading(int64_t channels, int64_t floats, int64_t activation, bool has_summand)
      : mean(channels), scale(channels), shift(channels), summand(floats) {
    for (Array* array : {&mean, &scale, &shift, &summand}) array->fill();
    reading = {mean.data, scale.data, shift.data, has_summand ? summand.data : nullptr, activation};
  }
  // What the activation sees at place i of an image of so many channels.
  double before(const Array& image, int64_t i) const {
    const int64_t c = i % mean.count;
    const double v = (double(image.data[i]) - mean.data[c]) * scale.data[c] + shift.data[c];
    return reading.summand ? v + summand.data[i] : v;
  }
  Array of(const Array& image) const {
    Array read(image.count);
    for (int64_t i = 0; i < image.count; ++i) read.data[i] = float(activated(reading.activation, before(image, i)));
    return read;
  }
};

// A channel's numbers: their count, mean and biased variance in double precision, and their greatest magnitude.
struct Column {
  double mean = 0, variance = 0, most = 0;

  Column(const Array& image, int64_t c, int64_t channels) {
    const double pixels = double(image.count / channels);
    for (int64_t i = c; i < image.count; i += channels) mean += image.data[i] / pixels;
    for (int64_t i = c; i < image.count; i += channels) {
      variance += pow(image.data[i] - mean, 2) / pixels;
      most = fmax(most, fabs(image.data[i] - mean));
    }
  }
};

// One fused pass, whatever of it fits.
struct FusedPass {
  const GwConvolution& c;
  int pass;
  Array x, y, w;
  Reading inputs, outputs;
  bool reads_inputs, reads_outputs, gathers;
  Array mean, variance, sums;
  GwFusion fusion{};

  FusedPass(const GwConvolution& convolution, int number)
      : c(convolution), pass(number), x(c.batch * c.height * c.width * c.in_channels),
        y(c.batch * c.out_height * c.out_width * c.out_channels),
        w(c.kernel_height * c.kernel_width * (c.in_channels / c.groups) * c.out_channels),
        inputs(c.in_channels, x.count, draw(0, GW_ACTIVATIONS - 1), pass != GW_INPUT_GRADIENT && draw(0, 3) == 0),
        outputs(c.out_channels, y.count, GW_LINEAR, draw(0, 3) != 0), reads_inputs(draw(0, 3)),
        reads_outputs(pass != GW_FORWARD && draw(0, 3)), gathers(draw(0, 3)), mean(c.out_channels),
        variance(c.out_channels), sums(2 * c.in_channels) {
    for (Array* array : {&x, &y, &w}) array->fill();
    if (reads_inputs) fusion.inputs = inputs.reading;
    if (reads_outputs) fusion.outputs = outputs.reading;
    if (pass == GW_FORWARD && gathers) fusion.mean = mean.data, fusion.variance = variance.data;
    if (pass == GW_INPUT_GRADIENT && reads_inputs) fusion.raw_inputs = x.data, fusion.sums = sums.data;
  }
  int64_t results() const { return pass == GW_FORWARD ? y.count : pass == GW_INPUT_GRADIENT ? x.count : w.count; }
  int run(Array& out, const std::string& family) {
    for (Array* array : {&out, &mean, &variance, &sums}) array->poison();
    const Array& a = pass == GW_INPUT_GRADIENT ? y : x;
    const Array& b = pass == GW_KERNEL_GRADIENT ? y : w;
    return gw_convolve(pass, &c, a.data, b.data, out.data, &fusion, nullptr, family.c_str());
  }

  // What is wrong with a result, or null.
  const char* mistake_in(const Array& out) const {
    const Array seen = reads_inputs ? inputs.of(x) : x, upstream = reads_outputs ? outputs.of(y) : y;
    const Array& a = pass == GW_INPUT_GRADIENT ? upstream : seen;
    const Array& b = pass == GW_KERNEL_GRADIENT ? upstream : w;
    Array truth(out.count), bound(out.count);
    const Array a_size = a.magnitude(), b_size = b.magnitude();
    gw_convolve(pass, &c, a.data, b.data, truth.data, nullptr, nullptr, "reference");
    gw_convolve(pass, &c, a_size.data, b_size.data, bound.data, nullptr, nullptr, "reference");
    if (fusion.raw_inputs) return mistake_in_gradient(out, truth, bound);
    const double tolerance = pass == GW_KERNEL_GRADIENT ? 3e-5 : 1e-5;
    for (int64_t i = 0; i < out.count; ++i) {
      if (!(fabs(double(out.data[i]) - truth.data[i]) <= tolerance * (bound.data[i] + 1))) return "wrong";
    }
    for (int64_t channel = 0; fusion.mean && channel < c.out_channels; ++channel) {
      const Column column(out, channel, c.out_channels);
      if (!(fabs(mean.data[channel] - column.mean) <= 1e-6 * (column.most + fabs(column.mean)))) return "wrong mean";
      if (!(fabs(variance.data[channel] - column.variance) <=
            1e-5 * column.variance + 1e-12 * column.mean * column.mean))
        return "wrong variance";
    }
    return nullptr;
  }

 private:
  const char* mistake_in_gradient(const Array& out, const Array& truth, const Array& bound) const {
    const int64_t channels = c.in_channels;
    std::vector<double> expected(size_t(2 * channels)), sizes(size_t(2 * channels));
    for (int64_t i = 0; i < out.count; ++i) {
      const int64_t channel = i % channels;
      const double v = inputs.before(x, i), factor = slope(inputs.reading.activation, v),
                   scale = inputs.scale.data[channel];
      // Beside an edge of the activation rounding decides.
      const double size = (bound.data[i] + 1) * fabs(scale) * (1 + fabs(v)) * 2, passed = truth.data[i] * factor;
      const bool is_edge = fabs(v) < 1e-5 || fabs(v - 6) < 1e-5 || fabs(fabs(v) - 3) < 1e-5;
      if (!is_edge && !(fabs(out.data[i] - passed * scale) <= 1e-5 * size)) return "wrong gradient";
      const double deviation = double(x.data[i]) - inputs.mean.data[channel];
      expected[size_t(channel)] += passed,
          sizes[size_t(channel)] += is_edge ? 1e5 * fabs(truth.data[i]) : bound.data[i] + 1;
      expected[size_t(channels + channel)] += passed * deviation;
      sizes[size_t(channels + channel)] +=
          (is_edge ? 1e5 * fabs(truth.data[i]) : (bound.data[i] + 1) * (1 + fabs(v))) * (1 + fabs(deviation));
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!(fabs(sums.data[i] - expected[i]) <= 2e-5 * (sizes[i] + 1))) return "wrong sums";
    }
    return nullptr;
  }
};

int check_fusion(const GwConvolution& c, int pass, const std::string& family) {
  FusedPass fused(c, pass);
  gw_set_threads(draw(1, 5));
  Array out(fused.results()), again(fused.results());
  int status = fused.run(again, family);
  const Array mean = fused.mean, sums = fused.sums;
  status |= fused.run(out, family);
  const char* mistake = status ? "refused" : fused.mistake_in(out);
  const auto differ = [](const Array& one, const Array& other) {
    return one.count && memcmp(one.data, other.data, size_t(one.count) * sizeof(float)) != 0;
  };
  if (differ(out, again) || differ(fused.sums, sums) || differ(fused.mean, mean))
    mistake = "other bits the second time";
  if (mistake) {
    printf("%s, fused: %s, %s, pass %d, %ld threads: %s\n", mistake, family.c_str(), gw_instruction_set(), pass,
           long(gw_threads()), text(c).c_str());
  }
  return mistake != nullptr;
}

}  // namespace

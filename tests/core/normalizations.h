// Batch norms drawn and compared with plain loops.
#pragma once
#include "arrays.h"

namespace {

GwNormalization draw_normalization() {
  GwNormalization n{};
  n.channels = draw(0, 3) ? draw(1, 70) : draw(1, 900);
  n.pixels = draw(0, 9) ? draw(1, draw(0, 9) ? 400 : 400000 / n.channels) : 0;
  n.activation = draw(0, GW_ACTIVATIONS - 1);
  n.count = draw(0, 3) ? n.pixels : 0;
  n.epsilon = draw(0, 1) ? 1e-3 : 1e-5;
  return n;
}

double activated(int64_t activation, double v) {
  switch (activation) {
    case GW_RELU:
      return fmax(v, 0);
    case GW_RELU6:
      return fmin(fmax(v, 0), 6);
    case GW_SILU:
      return v / (1 + exp(-v));
    case GW_HARD_SWISH:
      return v * fmin(fmax(v + 3, 0), 6) / 6;
    default:
      return v;
  }
}

double slope(int64_t activation, double v) {
  switch (activation) {
    case GW_RELU:
      return v > 0;
    case GW_RELU6:
      return v > 0 && v < 6;
    case GW_SILU:
      return 1 / (1 + exp(-v)) + v / (exp(v) + 2 + exp(-v));
    case GW_HARD_SWISH:
      return v <= -3 ? 0 : v >= 3 ? 1 : v / 3 + 0.5;
    default:
      return 1;
  }
}

double before_activation(const GwNormalization& n, int64_t i) {
  const int64_t c = i % n.channels;
  const double scale = 1 / sqrt(double(n.variance[c]) + n.epsilon);
  const double v = (double(n.inputs[i]) - n.mean[c]) * scale * n.gamma[c] + n.beta[c];
  return n.residual ? v + n.residual[i] : v;
}

// One channel's truth: every result in double precision, from the statistics that the passes used.
struct Channel {
  double mean = 0, variance = 0, scale = 0, beta_gradient = 0, gamma_gradient = 0, size = 0;

  Channel(const GwNormalization& n, int64_t c, const double* passed) {
    const int64_t pixels = n.pixels, channels = n.channels;
    for (int64_t p = 0; p < pixels; ++p) mean += n.inputs[p * channels + c] / double(pixels);
    for (int64_t p = 0; p < pixels; ++p) variance += pow(n.inputs[p * channels + c] - mean, 2) / double(pixels);
    scale = 1 / sqrt(double(n.variance[c]) + n.epsilon);
    for (int64_t p = 0; p < pixels; ++p) {
      const double gradient = passed[p * channels + c];
      beta_gradient += gradient;
      gamma_gradient += gradient * (double(n.inputs[p * channels + c]) - n.mean[c]) * scale;
      size += fabs(n.gradient[p * channels + c]) * (1 + fabs(n.inputs[p * channels + c] - n.mean[c]) * scale);
    }
  }
};

bool is_near(double actual, double truth, double size) { return fabs(actual - truth) <= 2e-5 * (size + 1); }

// What is wrong with a normalisation's results, or null.
const char* mistake_in(const GwNormalization& n) {
  const int64_t pixels = n.pixels, channels = n.channels;
  std::vector<double> passed(size_t(pixels * channels));
  for (int64_t i = 0; i < pixels * channels; ++i) {
    const int64_t c = i % channels;
    const double scale = 1 / sqrt(double(n.variance[c]) + n.epsilon);
    const double size = fabs(n.inputs[i] * n.gamma[c] * scale) + fabs(n.mean[c] * n.gamma[c] * scale);
    const double v = before_activation(n, i);
    if (!is_near(n.outputs[i], activated(n.activation, v), size)) return "wrong outputs";
    // The outputs say on which side of an edge the core was.
    passed[size_t(i)] = n.gradient[i] * slope(n.activation, gw_gradient_reads_outputs(n.activation) ? n.outputs[i] : v);
    if (n.residual_gradient && !is_near(n.residual_gradient[i], passed[size_t(i)], fabs(n.gradient[i]) * (size + 1))) {
      return "wrong residual gradient";
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const Channel truth(n, c, passed.data());
    if (!is_near(n.mean[c], truth.mean, 1) || !is_near(n.variance[c], truth.variance, truth.variance)) {
      return "wrong statistics";
    }
    if (!is_near(n.sums[c], truth.beta_gradient, truth.size)) return "wrong gradient of beta";
    if (!is_near(n.sums[channels + c], truth.gamma_gradient, truth.size)) return "wrong gradient of gamma";
    for (int64_t i = c; i < pixels * channels; i += channels) {
      const double normalised = (double(n.inputs[i]) - n.mean[c]) * truth.scale;
      const double share = n.count ? (truth.beta_gradient + normalised * truth.gamma_gradient) / double(n.count) : 0;
      const double slope = fabs(n.gamma[c]) * truth.scale, size = fabs(n.gradient[i]) + fabs(normalised) + 1;
      if (!is_near(n.inputs_gradient[i], n.gamma[c] * truth.scale * (passed[size_t(i)] - share), slope * size)) {
        return "wrong gradient of the inputs";
      }
    }
  }
  return nullptr;
}

int check(GwNormalization n) {
  const int64_t floats = n.pixels * n.channels;
  Array x(floats), residual(floats), gradient(floats), gamma(n.channels), beta(n.channels);
  for (Array* array : {&x, &residual, &gradient, &gamma, &beta}) array->fill();
  const bool has_residual = draw(0, 1);
  const char* mistake = nullptr;
  Array former(floats);
  for (int run = 0; run < 2; ++run) {
    Array out(floats), mean(n.channels), variance(n.channels), sums(2 * n.channels), passed(floats), result(floats);
    for (Array* array : {&out, &mean, &variance, &sums, &passed, &result}) array->poison();
    n.inputs = x.data, n.gamma = gamma.data, n.beta = beta.data, n.gradient = gradient.data;
    n.residual = has_residual ? residual.data : nullptr;
    n.mean = mean.data, n.variance = variance.data, n.outputs = out.data, n.sums = sums.data;
    n.residual_gradient = has_residual ? passed.data : nullptr;
    n.inputs_gradient = result.data;
    gw_set_threads(draw(1, 5));
    int status = gw_normalize(GW_MOMENTS | GW_NORMALIZE, &n, nullptr);
    // Without a residual the outputs are not needed.
    GwNormalization backward = n;
    // Where rounding decides on which side of an edge of hard swish a number is, no gradient comes.
    for (int64_t i = 0; i < floats && n.activation == GW_HARD_SWISH; ++i) {
      if (fabs(fabs(before_activation(n, i)) - 3) < 1e-3) gradient.data[i] = 0;
    }
    if (!has_residual && draw(0, 1)) backward.outputs = nullptr;
    status |= gw_normalize(GW_GRADIENT_SUMS | GW_GRADIENT, &backward, nullptr);
    if (status) mistake = "refused";
    if (run && floats && memcmp(former.data, result.data, size_t(floats) * sizeof(float))) {
      mistake = "other bits the second time";
    }
    if (floats) memcpy(former.data, result.data, size_t(floats) * sizeof(float));
    if (!mistake) mistake = mistake_in(n);
  }
  if (mistake) {
    printf("%s: normalisation, %s, %ld pixels, %ld channels, activation %ld, count %ld, %ld threads\n", mistake,
           gw_instruction_set(), long(n.pixels), long(n.channels), long(n.activation), long(n.count),
           long(gw_threads()));
  }
  return mistake != nullptr;
}

}  // namespace

// Draws convolutions and compares every family, pass and instruction set with the reference, max poolings and batch
// norms with plain loops, and calls at once with calls one after the other; ends with 1 on a mistake.
//
//   driver [SPECS A KIND] [SEED]
//
// Arrays lie at unaligned addresses and end where their memory ends, for the sanitizers to see; outputs are poisoned
// first, and every pass runs twice, to give the same bits. Tolerance: 1e-5 * conv(|x|, |w|), 3e-5 for kernel gradients.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "groupwise.h"

namespace {

std::mt19937_64 engine;

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

// Floats that begin four bytes past an aligned address, and end where the allocation does.
struct Array {
  std::vector<char> memory;
  float* data;
  int64_t count;

  explicit Array(int64_t n) : memory(size_t(n + 1) * sizeof(float)), count(n) {
    data = reinterpret_cast<float*>(memory.data()) + 1;
  }
  void fill() {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) data[i] = normal(engine);
  }
  void poison() {
    for (int64_t i = 0; i < count; ++i) data[i] = NAN;
  }
  Array magnitude() const {
    Array other(count);
    for (int64_t i = 0; i < count; ++i) other.data[i] = fabsf(data[i]);
    return other;
  }
};

GwConvolution draw_convolution(const std::string& family) {
  for (;;) {
    GwConvolution c{};
    int64_t in_width = 1, out_width = 1;
    c.groups = 1;
    if (family == "depthwise") {
      c.groups = draw(2, 70);
      out_width = draw(0, 1) ? 1 : draw(1, 5);
    } else if (family == "narrow") {
      c.groups = draw(2, 40);
      in_width = draw(1, 15);
      out_width = draw(0, 1) ? in_width : draw(1, 15);
      if (draw(0, 1)) in_width = out_width = int64_t{1} << draw(1, 3);
    } else {
      c.groups = draw(0, 1) ? 1 : draw(1, 4);
      in_width = draw(1, 70);
      out_width = draw(1, 70);
    }
    c.in_channels = c.groups * in_width;
    c.out_channels = c.groups * out_width;
    c.batch = draw(0, 9) ? draw(1, 3) : 0;
    c.height = draw(1, 33);
    c.width = draw(1, 33);
    const bool pointwise = draw(0, 4) == 0;
    c.kernel_height = pointwise ? 1 : draw(1, 5);
    c.kernel_width = pointwise ? 1 : draw(1, 5);
    const int64_t most = draw(0, 19) ? 3 : 40;  // larger than the image, now and then
    c.stride_y = draw(1, most);
    c.stride_x = draw(1, most);
    c.dilation_y = draw(1, 3);
    c.dilation_x = draw(1, 3);
    const int64_t extent_y = (c.kernel_height - 1) * c.dilation_y + 1;
    const int64_t extent_x = (c.kernel_width - 1) * c.dilation_x + 1;
    c.pad_top = pointwise && draw(0, 1) ? 0 : draw(0, extent_y + 2);
    c.pad_left = pointwise && draw(0, 1) ? 0 : draw(0, extent_x + 2);
    const int64_t height = c.height + c.pad_top + (pointwise ? 0 : draw(0, extent_y + 2)) - extent_y;
    const int64_t width = c.width + c.pad_left + (pointwise ? 0 : draw(0, extent_x + 2)) - extent_x;
    if (height < 0 || width < 0) continue;
    c.out_height = height / c.stride_y + 1;
    c.out_width = width / c.stride_x + 1;
    // Padding at the bottom and right is what the outputs make it, cropping included.
    if (draw(0, 19) == 0) c.out_height = draw(1, c.out_height + 3);
    if (draw(0, 19) == 0) c.out_width = draw(1, c.out_width + 3);
    const double work =
        double(c.batch + 1) * c.out_height * c.out_width * c.out_channels * in_width * c.kernel_height * c.kernel_width;
    if (work < (draw(0, 9) ? 1e6 : 2e7)) return c;
  }
}

std::string text(const GwConvolution& c) {
  char line[400];
  snprintf(line, sizeof line,
           "inputs %ldx%ldx%ldx%ld outputs %ldx%ldx%ld kernel %ldx%ld groups %ld strides %ld,%ld dilation %ld,%ld "
           "padding %ld,%ld",
           long(c.batch), long(c.height), long(c.width), long(c.in_channels), long(c.out_height), long(c.out_width),
           long(c.out_channels), long(c.kernel_height), long(c.kernel_width), long(c.groups), long(c.stride_y),
           long(c.stride_x), long(c.dilation_y), long(c.dilation_x), long(c.pad_top), long(c.pad_left));
  return line;
}

int check(const GwConvolution& c, int pass, const std::string& family) {
  Array x(c.batch * c.height * c.width * c.in_channels), y(c.batch * c.out_height * c.out_width * c.out_channels);
  Array w(c.kernel_height * c.kernel_width * (c.in_channels / c.groups) * c.out_channels), bias(c.out_channels);
  Array residual(y.count);
  for (Array* array : {&x, &y, &w, &bias, &residual}) array->fill();
  const Array& a = pass == GW_INPUT_GRADIENT ? y : x;
  const Array& b = pass == GW_KERNEL_GRADIENT ? y : w;
  const int64_t count = pass == GW_FORWARD ? y.count : pass == GW_INPUT_GRADIENT ? x.count : w.count;
  Array out(count), again(count), truth(count), bound(count);
  out.poison();
  again.poison();
  truth.poison();
  GwEpilogue epilogue{draw(0, 1) ? bias.data : nullptr, draw(0, 1) ? residual.data : nullptr,
                      draw(0, GW_ACTIVATIONS - 1)};
  const GwEpilogue* after = pass == GW_FORWARD && draw(0, 1) ? &epilogue : nullptr;
  gw_set_threads(draw(1, 5));
  int status = gw_convolve(pass, &c, a.data, b.data, out.data, after, nullptr, family.c_str());
  status |= gw_convolve(pass, &c, a.data, b.data, again.data, after, nullptr, family.c_str());
  gw_convolve(pass, &c, a.data, b.data, truth.data, after, nullptr, "reference");
  const Array a_size = a.magnitude(), b_size = b.magnitude();
  gw_convolve(pass, &c, a_size.data, b_size.data, bound.data, nullptr, nullptr, "reference");
  const char* mistake = status ? "refused" : nullptr;
  if (count && memcmp(out.data, again.data, size_t(count) * sizeof(float))) mistake = "other bits the second time";
  const double tolerance = pass == GW_KERNEL_GRADIENT ? 3e-5 : 1e-5;
  for (int64_t i = 0; i < count && !mistake; ++i) {
    const double scale = bound.data[i] + (after ? 10.0 : 0.0);
    if (!(fabs(double(out.data[i]) - truth.data[i]) <= tolerance * scale + 1e-30)) mistake = "wrong";
  }
  if (mistake) {
    printf("%s: %s, %s, pass %d, %ld threads: %s\n", mistake, family.c_str(), gw_instruction_set(), pass,
           long(gw_threads()), text(c).c_str());
  }
  return mistake != nullptr;
}

// Whether calls from several threads at once, which share the core's threads and its memory, give the same bits as one
// after the other; some need more scratch memory than stays with a thread.
int check_at_once() {
  constexpr int callers = 4, convolutions = 12;
  struct Case {
    GwConvolution c;
    Array x, w, out;
  };
  std::vector<Case> cases;
  for (int i = 0; i < convolutions; ++i) {
    GwConvolution c = draw_convolution(i % 2 ? "narrow" : "wide");
    c.batch = 3;
    // The second column of taps sees nothing.
    if (i % 3 == 0) c.kernel_width = 2, c.dilation_x = 40 + draw(100000, 400000) / c.in_channels;
    cases.push_back({c, Array(c.batch * c.height * c.width * c.in_channels),
                     Array(c.kernel_height * c.kernel_width * c.in_channels / c.groups * c.out_channels),
                     Array(c.batch * c.out_height * c.out_width * c.out_channels)});
    Case& last = cases.back();
    last.x.fill(), last.w.fill(), last.out.poison();
  }
  const auto run = [](const Case& one, Array& out) {
    return gw_convolve(GW_FORWARD, &one.c, one.x.data, one.w.data, out.data, nullptr, nullptr, nullptr);
  };
  gw_set_threads(3);
  std::atomic<int> mistakes{0};
  for (Case& one : cases) mistakes += run(one, one.out) != GW_OK;
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      for (int i = 0; i < 2 * convolutions; ++i) {
        const Case& one = cases[size_t((i + caller) % convolutions)];
        Array out(one.out.count);
        mistakes += run(one, out) != GW_OK || memcmp(out.data, one.out.data, size_t(out.count) * sizeof(float));
        if (i % 5 == caller) gw_release_memory();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (mistakes) printf("%d calls at once, %s: other bits than alone\n", mistakes.load(), gw_instruction_set());
  return mistakes;
}

// Floats or bfloat16 that begin at an odd element, and end where the allocation does.
struct Elements {
  GwElement type;
  std::vector<char> memory;
  int64_t count;

  Elements(GwElement t, int64_t n) : type(t), memory(size_t(n + 1) * size(), char(0x5a)), count(n) {}
  size_t size() const { return type == GW_FLOAT32 ? 4 : 2; }
  char* data() { return memory.data() + size(); }
  float operator[](int64_t i) const {
    uint32_t bits = 0;
    memcpy(reinterpret_cast<char*>(&bits) + 4 - size(), memory.data() + size_t(i + 1) * size(), size());
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  // A value that bfloat16 holds.
  void set(int64_t i, float value) {
    memcpy(data() + size_t(i) * size(), reinterpret_cast<const char*>(&value) + 4 - size(), size());
  }
};

GwConvolution draw_pooling() {
  for (;;) {
    GwConvolution c{};
    c.batch = draw(0, 9) ? draw(1, 3) : 0;
    c.height = draw(1, 33);
    c.width = draw(1, 33);
    c.groups = c.in_channels = c.out_channels = draw(0, 2) ? draw(1, 70) : draw(1, 4) * 16;
    const bool usual = draw(0, 1);
    c.kernel_height = usual ? draw(2, 3) : draw(1, 6);
    c.kernel_width = usual ? c.kernel_height : draw(1, 6);
    c.stride_y = usual ? 2 : draw(1, 7);
    c.stride_x = usual ? 2 : draw(1, 7);
    c.dilation_y = c.dilation_x = 1;
    c.pad_top = draw(0, c.kernel_height + 2);
    c.pad_left = draw(0, c.kernel_width + 2);
    const int64_t height = c.height + c.pad_top + draw(0, c.kernel_height + 2) - c.kernel_height;
    const int64_t width = c.width + c.pad_left + draw(0, c.kernel_width + 2) - c.kernel_width;
    if (height < 0 || width < 0) continue;
    c.out_height = height / c.stride_y + 1;
    c.out_width = width / c.stride_x + 1;
    return c;
  }
}

// One window's maximum, the index of the input it was found at (-1: nowhere) and its place in the window.
struct Maximum {
  float value = -INFINITY;
  int64_t input = -1;
  int place = 0;
};

Maximum find_maximum(const GwConvolution& c, const Elements& x, int64_t image, int64_t p, int64_t q, int64_t channel) {
  Maximum best;
  for (int64_t place = 0; place < c.kernel_height * c.kernel_width; ++place) {
    const int64_t i = p * c.stride_y - c.pad_top + place / c.kernel_width;
    const int64_t j = q * c.stride_x - c.pad_left + place % c.kernel_width;
    if (i < 0 || i >= c.height || j < 0 || j >= c.width) continue;
    const int64_t index = ((image * c.height + i) * c.width + j) * c.in_channels + channel;
    if (best.input < 0 || x[index] > best.value || isnan(x[index])) best = {x[index], index, int(place)};
  }
  return best;
}

const char* find_pooling_mistake(const GwConvolution& c, GwElement type) {
  const int64_t inputs = c.batch * c.height * c.width * c.in_channels;
  const int64_t outputs = c.batch * c.out_height * c.out_width * c.in_channels;
  Elements x(type, inputs), y(type, outputs), dy(type, outputs), dx(type, inputs), again(type, inputs);
  // Few different values, so that maxima are often equal, and now and then one that is not a number.
  for (int64_t i = 0; i < inputs; ++i) x.set(i, draw(0, 50) ? float(draw(-3, 3)) : NAN);
  for (int64_t i = 0; i < outputs; ++i) dy.set(i, float(draw(-99, 99)));
  std::vector<uint8_t> places(size_t(outputs), 0);
  std::vector<double> truth(size_t(inputs), 0), bound(size_t(inputs), 0);
  gw_set_threads(draw(1, 5));
  if (gw_max_pool(type, &c, x.data(), y.data(), places.data(), nullptr)) return "refused";
  if (gw_max_pool_gradient(type, &c, dy.data(), places.data(), dx.data(), nullptr)) return "refused the gradient";
  gw_set_threads(draw(1, 5));
  gw_max_pool_gradient(type, &c, dy.data(), places.data(), again.data(), nullptr);
  if (dx.memory != again.memory) return "other bits with other threads";
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t pixel = i / c.in_channels, row = pixel / c.out_width;
    const Maximum best =
        find_maximum(c, x, row / c.out_height, row % c.out_height, pixel % c.out_width, i % c.in_channels);
    if (!(y[i] == best.value || (isnan(y[i]) && isnan(best.value)))) return "wrong maximum";
    if (places[size_t(i)] != best.place) return "wrong place";
    if (best.input < 0) continue;
    truth[size_t(best.input)] += double(dy[i]);
    bound[size_t(best.input)] += fabs(double(dy[i]));
  }
  for (int64_t i = 0; i < inputs; ++i) {
    const double tolerance = (type == GW_FLOAT32 ? 1e-6 : 1.0 / 256) * bound[size_t(i)];
    if (!(fabs(double(dx[i]) - truth[size_t(i)]) <= tolerance)) return "wrong gradient";
  }
  return nullptr;
}

int check_pooling(const GwConvolution& c, GwElement type) {
  const char* mistake = find_pooling_mistake(c, type);
  if (mistake) {
    printf("%s: max pooling, %s, %s, %ld threads: %s\n", mistake, gw_instruction_set(),
           type == GW_FLOAT32 ? "float32" : "bfloat16", long(gw_threads()), text(c).c_str());
  }
  return mistake != nullptr;
}

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
    passed[size_t(i)] = n.gradient[i] * slope(n.activation, n.activation <= GW_RELU6 ? n.outputs[i] : v);
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

int main(int count, char** arguments) {
  const int64_t specs = count > 1 ? atol(arguments[1]) : 1000;
  engine.seed(count > 2 ? uint64_t(atol(arguments[2])) : 0);
  int mistakes = 0;
  for (const char* set : {"baseline", "avx2", "avx512", "neon"}) {
    if (gw_use_instruction_set(set) != GW_OK) continue;
    for (const char* family : {"depthwise", "narrow", "wide"}) {
      for (int64_t i = 0; i < specs; ++i) mistakes += check(draw_convolution(family), int(i % 3), family);
      printf("%s, %s: %ld convolutions drawn\n", set, family, long(specs));
      fflush(stdout);
    }
    for (int64_t i = 0; i < specs; ++i) mistakes += check_pooling(draw_pooling(), i % 2 ? GW_BFLOAT16 : GW_FLOAT32);
    printf("%s: %ld poolings drawn\n", set, long(specs));
    for (int64_t i = 0; i < specs; ++i) mistakes += check(draw_normalization());
    printf("%s: %ld normalisations drawn\n", set, long(specs));
    fflush(stdout);
    mistakes += check_at_once();
  }
  printf("%d mistakes\n", mistakes);
  return mistakes != 0;
}

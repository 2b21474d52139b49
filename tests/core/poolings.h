// Max poolings drawn and compared with plain loops.
#pragma once
#include "arrays.h"

namespace {

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

}  // namespace

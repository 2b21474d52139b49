// Convolutions drawn and compared with the reference, and calls at once with calls one after the other.
#pragma once
#include <atomic>
#include <thread>

#include "arrays.h"

namespace {

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
      const int64_t most = draw(0, 3) ? 70 : 400;          // with many channels, few pixels
      in_width = draw(0, 3) ? draw(1, most) : draw(1, 4);  // as few as a photograph's, now and then
      out_width = draw(1, most);
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

int check(const GwConvolution& c, int pass, const std::string& family) {
  Array x(c.batch * c.height * c.width * c.in_channels), y(c.batch * c.out_height * c.out_width * c.out_channels);
  Array w(c.kernel_height * c.kernel_width * (c.in_channels / c.groups) * c.out_channels), bias(c.out_channels);
  Array residual(y.count), scale(c.out_channels);
  for (Array* array : {&x, &y, &w, &bias, &residual, &scale}) array->fill();
  const Array& a = pass == GW_INPUT_GRADIENT ? y : x;
  const Array& b = pass == GW_KERNEL_GRADIENT ? y : w;
  const int64_t count = pass == GW_FORWARD ? y.count : pass == GW_INPUT_GRADIENT ? x.count : w.count;
  Array out(count), again(count), truth(count), bound(count);
  out.poison();
  again.poison();
  truth.poison();
  GwFusion fusion{};
  fusion.scale = draw(0, 1) ? scale.data : nullptr;
  fusion.bias = draw(0, 1) ? bias.data : nullptr;
  fusion.residual = draw(0, 1) ? residual.data : nullptr;
  fusion.activation = draw(0, GW_ACTIVATIONS - 1);
  const GwFusion* after = pass == GW_FORWARD && draw(0, 1) ? &fusion : nullptr;
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
    const double size = bound.data[i] * (after && fusion.scale ? 4.0 : 1.0) + (after ? 10.0 : 0.0);
    if (!(fabs(double(out.data[i]) - truth.data[i]) <= tolerance * size + 1e-30)) mistake = "wrong";
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

}  // namespace

// Plain loops in double precision: every case, and the truth that the fast families are tested against.
#include "epilogue.h"
#include "geometry.h"
#include "kernels.h"
#include "threads/parallel.h"

namespace {

struct Loops {
  const GwJob& job;
  const GwConvolution& c;
  int64_t in_width, out_width;  // channels of a group

  explicit Loops(const GwJob& j)
      : job(j), c(*j.convolution), in_width(c.in_channels / c.groups), out_width(c.out_channels / c.groups) {}

  int64_t input(int64_t n, int64_t y, int64_t x) const { return ((n * c.height + y) * c.width + x) * c.in_channels; }
  int64_t output(int64_t n, int64_t y, int64_t x) const {
    return ((n * c.out_height + y) * c.out_width + x) * c.out_channels;
  }
  int64_t kernel(int64_t ky, int64_t kx, int64_t i) const {
    return ((ky * c.kernel_width + kx) * in_width + i) * c.out_channels;
  }

  void forward(int64_t n) const {
    const GwFusion& e = *job.fusion;
    for (int64_t y = 0; y < c.out_height; ++y)
      for (int64_t x = 0; x < c.out_width; ++x)
        for (int64_t o = 0; o < c.out_channels; ++o) {
          double sum = 0;
          for (int64_t ky = 0; ky < c.kernel_height; ++ky)
            for (int64_t kx = 0; kx < c.kernel_width; ++kx) {
              const int64_t iy = y * c.stride_y - c.pad_top + ky * c.dilation_y;
              const int64_t ix = x * c.stride_x - c.pad_left + kx * c.dilation_x;
              if (iy < 0 || iy >= c.height || ix < 0 || ix >= c.width) continue;
              const float* from = job.a + input(n, iy, ix) + o / out_width * in_width;
              for (int64_t i = 0; i < in_width; ++i) sum += double(from[i]) * job.b[kernel(ky, kx, i) + o];
            }
          const int64_t at = output(n, y, x) + o;
          if (e.scale) sum *= e.scale[o];
          if (e.bias) sum += e.bias[o];
          if (e.residual) sum += e.residual[at];
          job.out[at] = float(with_activation(e.activation, [=](auto activation) { return activation.value(sum); }));
        }
  }

  void input_gradient(int64_t n) const {
    for (int64_t y = 0; y < c.height; ++y)
      for (int64_t x = 0; x < c.width; ++x)
        for (int64_t i = 0; i < c.in_channels; ++i) {
          double sum = 0;
          const int64_t group = i / in_width;
          for (int64_t ky = 0; ky < c.kernel_height; ++ky)
            for (int64_t kx = 0; kx < c.kernel_width; ++kx) {
              const int64_t sy = y + c.pad_top - ky * c.dilation_y, sx = x + c.pad_left - kx * c.dilation_x;
              if (sy < 0 || sx < 0 || sy % c.stride_y || sx % c.stride_x) continue;
              const int64_t oy = sy / c.stride_y, ox = sx / c.stride_x;
              if (oy >= c.out_height || ox >= c.out_width) continue;
              const float* from = job.a + output(n, oy, ox) + group * out_width;
              const float* weights = job.b + kernel(ky, kx, i % in_width) + group * out_width;
              for (int64_t o = 0; o < out_width; ++o) sum += double(from[o]) * weights[o];
            }
          job.out[input(n, y, x) + i] = float(sum);
        }
  }

  // `row` is one row of the kernel as a matrix: a tap and an input channel of the group.
  void kernel_gradient(int64_t row) const {
    const int64_t i = row % in_width, kx = row / in_width % c.kernel_width, ky = row / in_width / c.kernel_width;
    for (int64_t o = 0; o < c.out_channels; ++o) {
      double sum = 0;
      for (int64_t n = 0; n < c.batch; ++n)
        for (int64_t y = 0; y < c.out_height; ++y)
          for (int64_t x = 0; x < c.out_width; ++x) {
            const int64_t iy = y * c.stride_y - c.pad_top + ky * c.dilation_y;
            const int64_t ix = x * c.stride_x - c.pad_left + kx * c.dilation_x;
            if (iy < 0 || iy >= c.height || ix < 0 || ix >= c.width) continue;
            sum += double(job.a[input(n, iy, ix) + o / out_width * in_width + i]) * job.b[output(n, y, x) + o];
          }
      job.out[row * c.out_channels + o] = float(sum);
    }
  }
};

}  // namespace

GwStatus gw_reference(const GwJob& job) {
  if (job.fusion->inputs.mean || job.fusion->outputs.mean || job.totals) return GW_UNSUPPORTED;
  const Loops loops(job);
  const GwConvolution& c = *job.convolution;
  struct Call {
    const Loops* loops;
    void (Loops::*part)(int64_t) const;
  } call{&loops, job.pass == GW_FORWARD          ? &Loops::forward
                 : job.pass == GW_INPUT_GRADIENT ? &Loops::input_gradient
                                                 : &Loops::kernel_gradient};
  const int64_t tasks = job.pass == GW_KERNEL_GRADIENT ? c.kernel_height * c.kernel_width * loops.in_width : c.batch;
  const auto body = [](void* argument, int64_t task) {
    const Call& the = *static_cast<Call*>(argument);
    (the.loops->*the.part)(task);
  };
  job.executor->run(job.executor->state, tasks, body, &call);
  return GW_OK;
}

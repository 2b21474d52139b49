// The pass that makes a kernel: its gradient.
#pragma once
#include "lanes_image.h"

namespace {

// Adds to sums[tap][channel] over the pixels of a row: input of the tap and channel times the output's gradient.
template <int Width, int Taps, int Channels>
struct Accumulate {
  const float* x[Taps];           // each tap's first input, at the first of the channels
  int64_t step, gradient_step;    // between two pixels

  template <int First, int Channel = 0>
  GW_INLINE void fixed(Vector* sums, const float* from, Vector gradient) const {
    sums[Channel] += input_vector<Width, First + Channel>(from) * gradient;
    if constexpr (Channel + 1 < Channels) fixed<First, Channel + 1>(sums, from, gradient);
  }

  template <int First>
  GW_INLINE void row(Vector* sums, const float* gradient, int64_t pixels, const Gather& gather) const {
    for (int64_t j = 0; j < pixels; ++j) {
      const Vector g = load(gradient + j * gradient_step);
#pragma GCC unroll 16
      for (int k = 0; k < Taps; ++k) {
        const float* from = x[k] + j * step;
        if constexpr (Width != 0) {
          fixed<First>(sums + k * Channels, from, g);
        } else {
#pragma GCC unroll 4
          for (int i = 0; i < Channels; ++i) sums[k * Channels + i] += gather(from + i) * g;
        }
      }
    }
  }
};

template <int Width, int Taps, int Channels, int First>
__attribute__((noinline)) void accumulate(const float* const* x, int64_t step, const Gather& gather,
                                          const float* gradient, int64_t gradient_step, int64_t pixels, float* totals) {
  Accumulate<Width, Taps, Channels> add{{}, step, gradient_step};
  Vector sums[Taps * Channels];
#pragma GCC unroll 32
  for (int k = 0; k < Taps; ++k) add.x[k] = x[k];
#pragma GCC unroll 32
  for (int i = 0; i < Taps * Channels; ++i) sums[i] = load(totals + i * kLanes);
  add.template row<First>(sums, gradient, pixels, gather);
#pragma GCC unroll 32
  for (int i = 0; i < Taps * Channels; ++i) store(totals + i * kLanes, sums[i]);
}

template <int Width>
class KernelPass {
 public:
  explicit KernelPass(const GwJob& job) : lanes_(job) {
    const Lanes<Width>& l = lanes_;
    slots_ = minimum(rows_seen(l.vertical), maximum(1, l.vertical.in_size));
    taps_ = l.vertical.taps * l.horizontal.taps;
    total_block_ = taps_ * l.in_width * kLanes;
  }

  GwStatus run() {
    const Lanes<Width>& l = lanes_;
    const int64_t rows = l.c.batch * l.vertical.out_size;
    // A part of the rows has sums of its own; the parts are added in order, so that the bits do not depend on timing.
    const int64_t parts = maximum(1, minimum(rows, 4 * l.job.executor->threads));
    const int64_t gather_floats = l.blocks * int64_t(sizeof(Gather) / sizeof(float));
    const int64_t part_floats = l.blocks * total_block_;
    float* memory = gw_scratch(GW_CALL_SLOT, size_t(parts * part_floats + gather_floats));
    if (!memory) return GW_OUT_OF_MEMORY;
    gathers_ = reinterpret_cast<Gather*>(memory + parts * part_floats);
    for (int64_t v = 0; v < l.blocks; ++v) gathers_[v] = l.gather(v);
    const GwStatus status = try_parallel(*l.job.executor, parts, [&](int64_t part) {
      return add_rows(rows * part / parts, rows * (part + 1) / parts, memory + part * part_floats);
    });
    if (status != GW_OK) return status;
    move_in_parallel(*l.job.executor, l.blocks, parts * part_floats,
                     [&](int64_t v) { add_parts(v, memory, parts, part_floats); });
    return GW_OK;
  }

 private:
  // Taps whose sums are in registers at once: a depthwise 3x3 kernel's nine, else a row's three.
  static constexpr int kMostTaps = Width == 1 ? 9 : 3;
  static int64_t taps_at_once(int64_t left) { return left >= kMostTaps ? kMostTaps : left >= 3 ? 3 : 1; }
  // Channels whose sums are: as many as leave registers for the inputs. A gather takes one.
  static constexpr int kFittingChannels = GW_REGISTERS >= 32 ? 8 : 2;
  static constexpr int kChunk = Width == 0 ? 1 : Width < kFittingChannels ? Width : kFittingChannels;

  bool add_rows(int64_t first, int64_t last, float* totals) const {
    const Lanes<Width>& l = lanes_;
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    const int64_t gradient_pixel = l.blocks * kLanes;
    const int64_t stretch = maximum(kShortestStretch, minimum(kLongestStretch, kStretchFloats / gradient_pixel));
    const int64_t gradient_floats = stretch * gradient_pixel;
    // One row more than the ring's, of zeros: what taps above and below the image read.
    float* memory = gw_scratch(GW_TASK_SLOT, size_t((slots_ + 1) * l.row + gradient_floats + slots_ * words +
                                                    2 * taps_ * words));
    if (!memory) return false;
    float* zeros = memory + slots_ * l.row;
    float* copied = zeros + l.row;
    auto* tags = reinterpret_cast<int64_t*>(copied + gradient_floats);
    auto** x = reinterpret_cast<const float**>(tags + slots_);
    __builtin_memset(totals, 0, size_t(l.blocks * total_block_) * sizeof(float));
    __builtin_memset(zeros, 0, size_t(l.row) * sizeof(float));
    const int64_t in_row = l.horizontal.in_size * l.in_channels;
    Ring ring(memory, tags, slots_, l.row);
    int64_t image = -1;
    for (int64_t n = first; n < last; ++n) {
      const int64_t y = n % l.vertical.out_size;
      if (n / l.vertical.out_size != image) {
        image = n / l.vertical.out_size;
        ring = Ring(memory, tags, slots_, l.row);
      }
      const float* from = l.job.a + image * l.vertical.in_size * in_row;
      int64_t next_row = 0;
      for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
        const int64_t in_y = y * l.vertical.stride - l.vertical.padding + ky * l.vertical.dilation;
        const bool inside = in_y >= 0 && in_y < l.vertical.in_size;
        if (inside) next_row = in_y + 1;
        const auto copy = [&](int64_t index, float* to) { l.copy_row(from + index * in_row, to); };
        const float* row = inside ? ring.row(in_y, copy) : zeros;
        for (int64_t kx = 0; kx < l.horizontal.taps; ++kx) {
          const int64_t column = kx * l.horizontal.dilation - l.horizontal.padding - l.columns.low;
          x[ky * l.horizontal.taps + kx] = row + column * l.pixel;
        }
      }
      const int64_t gradient_row = l.horizontal.out_size * l.out_channels;
      const float* gradient = l.job.b + n * gradient_row;
      const float* next = n + 1 < last ? gradient + gradient_row : gradient;
      const int64_t ahead = minimum(l.vertical.stride, l.vertical.in_size - next_row) * in_row;
      for (int64_t j = 0; j < l.horizontal.out_size; j += stretch) {
        const int64_t pixels = minimum(stretch, l.horizontal.out_size - j);
        const int64_t asked = ahead * j / l.horizontal.out_size;
        prefetch(next + j * l.out_channels, pixels * l.out_channels);
        prefetch(from + next_row * in_row + asked, ahead * (j + pixels) / l.horizontal.out_size - asked);
        // Read in order once: at the distance of pixels it came at half the speed.
        copy_pixels(gradient + j * l.out_channels, pixels, l.out_channels, copied);
        for (int64_t v = 0; v < l.blocks; ++v)
          add_block(v, x, x + taps_, copied + v * kLanes, j, pixels, totals + v * total_block_);
      }
    }
    return true;
  }

  // All taps and channels of one vector of output channels; sums stand as [tap group][tap or channel][lane].
  void add_block(int64_t v, const float* const* taps, const float** x, const float* gradient, int64_t first,
                 int64_t pixels, float* totals) const {
    const Lanes<Width>& l = lanes_;
    const int64_t offset = l.start(v) + (Width ? 0 : gathers_[v].first) + first * l.horizontal.stride * l.pixel;
    for (int64_t t = 0; t < taps_; ++t) x[t] = taps[t] + offset;
    for (int64_t t = 0, size; t < taps_; t += size) {
      size = taps_at_once(taps_ - t);
      float* to = totals + t * l.in_width * kLanes;
      if (size == kMostTaps) add_taps<kMostTaps>(v, x + t, gradient, pixels, to);
      else if (size == 3) add_taps<3>(v, x + t, gradient, pixels, to);
      else add_taps<1>(v, x + t, gradient, pixels, to);
    }
  }

  template <int Taps>
  void add_taps(int64_t v, const float** x, const float* gradient, int64_t pixels, float* totals) const {
    const Lanes<Width>& l = lanes_;
    const int64_t step = l.horizontal.stride * l.pixel;
    if constexpr (Width == 0) {
      for (int64_t i = 0; i < l.in_width; ++i) {
        accumulate<0, Taps, 1, 0>(x, step, gathers_[v], gradient, l.blocks * kLanes, pixels,
                                  totals + i * Taps * kLanes);
        for (int k = 0; k < Taps; ++k) ++x[k];
      }
      for (int k = 0; k < Taps; ++k) x[k] -= l.in_width;
    } else {
      channels<Taps, kChunk, 0>(x, step, gathers_[v], gradient, pixels, totals);
    }
  }
  template <int Taps, int Chunk, int First>
  void channels(const float** x, int64_t step, const Gather& gather, const float* gradient, int64_t pixels,
                float* totals) const {
    accumulate<Width, Taps, Chunk, First>(x, step, gather, gradient, lanes_.blocks * kLanes, pixels,
                                          totals + First * Taps * kLanes);
    if constexpr (First + Chunk < Width)
      channels<Taps, Chunk, First + Chunk>(x, step, gather, gradient, pixels, totals);
  }

  // Where add_taps keeps the sum of a tap and a channel, given the taps done at once and the tap among them.
  int64_t total_index(int64_t tap, int64_t channel) const {
    int64_t t = 0, size;
    for (;; t += size) {
      size = taps_at_once(taps_ - t);
      if (tap < t + size) break;
    }
    return t * lanes_.in_width + channel / kChunk * kChunk * size + (tap - t) * kChunk + channel % kChunk;
  }

  void add_parts(int64_t v, const float* memory, int64_t parts, int64_t part_floats) const {
    const Lanes<Width>& l = lanes_;
    const int64_t count = l.out_channels - v * kLanes;
    for (int64_t tap = 0; tap < taps_; ++tap)
      for (int64_t i = 0; i < l.in_width; ++i) {
        const float* from = memory + v * total_block_ + total_index(tap, i) * kLanes;
        Vector sum{};
        for (int64_t part = 0; part < parts; ++part) sum += load(from + part * part_floats);
        store_some(l.job.out + (tap * l.in_width + i) * l.out_channels + v * kLanes, sum, count);
      }
  }

  Lanes<Width> lanes_;
  int64_t slots_, taps_, total_block_;
  Gather* gathers_ = nullptr;
};

template <int Width>
GwStatus run_lanes(const GwJob& job) {
  return job.pass == GW_KERNEL_GRADIENT ? KernelPass<Width>(job).run() : ImagePass<Width>(job).run();
}

}  // namespace

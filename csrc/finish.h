// The end of a pass that makes an image: what follows its sums, what is gathered of that, and writing it.
#pragma once
#include "epilogue.h"
#include "gathering.h"
#include "jobs.h"

namespace {

// What a forward pass makes of the sums of one vector of channels: activation(sums * scale + bias + residual).
template <typename Activation>
struct ForwardEnd {
  const float* residual;
  int64_t count;
  bool gathers;
  Vector scale, bias, centre, first, second;

  GW_INLINE void open(const GwJob& job, const Gathering& gathering, int64_t channel, int64_t channels) {
    const GwFusion& fusion = *job.fusion;
    residual = fusion.residual, count = channels, gathers = gathering.is_wanted();
    scale = fusion.scale ? load_some(fusion.scale + channel, count) : splat(1);
    bias = fusion.bias ? load_some(fusion.bias + channel, count) : Vector{};
    centre = gathers ? load_some(gathering.centre() + channel, count) : Vector{};
    first = second = Vector{};
  }
  GW_INLINE Vector operator()(Vector sums, int64_t position) {
    sums = sums * scale + bias;
    if (residual) sums += load_some(residual + position, count);
    sums = Activation::value(sums);
    if (gathers) {
      centre = centre == centre ? centre : sums;  // the first pixel of all is where deviations are from
      const Vector deviation = sums - centre;
      first += deviation;
      second += deviation * deviation;
    }
    return sums;
  }
  GW_INLINE void close(Gathering& gathering, int64_t channel) const {
    if (gathers) gathering.add(channel, count, centre, first, second);
  }
};

// What an input gradient makes of them: what passes the activation of how the inputs were read, times scale.
template <typename Activation>
struct GradientEnd {
  const float* raw;
  int64_t count;
  Vector mean, scale, shift, first, second;

  GW_INLINE void open(const GwJob& job, const Gathering&, int64_t channel, int64_t channels) {
    const GwReading& reading = job.fusion->inputs;
    raw = job.fusion->raw_inputs, count = channels;
    mean = load(reading.mean + channel), scale = load(reading.scale + channel), shift = load(reading.shift + channel);
    first = second = Vector{};
  }
  GW_INLINE Vector operator()(Vector sums, int64_t position) {
    const Vector deviation = load_some(raw + position, count) - mean;
    const Vector passed = Activation::passed(sums, deviation * scale + shift);
    first += passed;
    second += passed * deviation;
    return passed * scale;
  }
  GW_INLINE void close(Gathering& gathering, int64_t channel) const {
    gathering.add(channel, count, Vector{}, first, second);
  }
};

class Finish {
 public:
  static constexpr int64_t kLine = 64 / sizeof(float);

  // `group_width` channels are written one after the other.
  Finish(const GwJob& job, int64_t floats, int64_t group_width, Gathering& gathering)
      : job_(job), gathering_(gathering), out_(job.out),
        read_(job.fusion->raw_inputs ? job.fusion->raw_inputs : job.fusion->residual),
        plain_(!read_ && !job.fusion->scale && !job.fusion->bias && job.fusion->activation == GW_LINEAR &&
               !gathering.is_wanted()),
        // Larger outputs have left the caches before they are read: write around them. Reading what is about to be
        // overwritten halved the speed of ResNeXt's first stage.
        streaming_(floats >= kStreamingFloats && group_width % kLanes == 0 &&
                   reinterpret_cast<uintptr_t>(out_) % sizeof(Vector) == 0) {}
  Finish(const Finish&) = delete;
  ~Finish() {
    gathering_.settle();
    if (streaming_) fence_streaming();
  }

  // Where pixels are written: their floats begin at first, first + distance and so on.
  struct Pixels {
    int64_t count, first, distance;
  };

  // Writes `vectors` vectors of channels from `channel` on, the vectors of a pixel one after the other, for they share
  // cache lines. `channels` of them exist.
  template <int Most>
  GW_INLINE void write(const Vector* sums, int64_t vectors, const Pixels& pixels, int64_t channel,
                       int64_t channels) const {
    if (!plain_ || channels < vectors * kLanes || pixels.count != Most)
      return write_some(sums, vectors, pixels, channel, channels);
#pragma GCC unroll 32
    for (int p = 0; p < Most; ++p) write_pixel(sums + p * vectors, vectors, pixels.first + p * pixels.distance);
  }

  // Asks for what `write` will read beside the sums, while these are computed: no prefetcher foresees a few lines of
  // each pixel. Unasked, a 1x1 convolution of 512 outputs took longer with its residual than an addition after it.
  GW_INLINE void ask(int64_t floats, const Pixels& pixels) const {
    if (!read_) return;
    const float* from = read_ + pixels.first;
    for (int64_t p = 0; p < pixels.count; ++p, from += pixels.distance) {
      for (int64_t i = 0; i < floats; i += kLine) __builtin_prefetch(from + i, 0, 3);
      __builtin_prefetch(from + floats - 1, 0, 3);
    }
  }

  // Where what the end reads beside the sums of `position` is; null where it reads nothing.
  const float* beside(int64_t position) const { return read_ ? read_ + position : nullptr; }

  // Where outputs may be written at once: nothing follows, they stay in the cache, and pixels have no gaps.
  float* direct(int64_t position, int64_t gap) const {
    return plain_ && !streaming_ && gap == 0 ? out_ + position : nullptr;
  }

  // Writes whole pixels whose sums lie `step` floats apart, in order: written through a vector that is a part of a
  // cache line, scattered ones took twice as long.
  void write_pixels(const float* sums, int64_t step, int64_t position, int64_t pixels, int64_t channels) const {
    if (plain_ && step == channels) return write_row(sums, position, pixels * channels);
    with_end([&](auto end) {
      for (int64_t c = 0; c < channels; c += kLine)
        write_block<kLine / kLanes>(end, sums + c, step, {pixels, position + c, channels}, c, channels - c);
    });
  }

  // After all channels of `pixels` pixels have been written.
  void count(int64_t pixels) const { gathering_.count(pixels); }

 private:
  GW_INLINE void write_pixel(const Vector* sums, int64_t vectors, int64_t position) const {
    for (int64_t q = 0; q < vectors; ++q) {
      if (streaming_) store_streaming(out_ + position + q * kLanes, sums[q]);
      else store(out_ + position + q * kLanes, sums[q]);
    }
  }
  // Not inlined: a tile of few channels took 1.1 times as long beside all this.
  __attribute__((noinline)) void write_some(const Vector* sums, int64_t vectors, const Pixels& pixels, int64_t channel,
                                            int64_t channels) const {
    if (plain_ && channels >= vectors * kLanes) {
      for (int64_t p = 0; p < pixels.count; ++p)
        write_pixel(sums + p * vectors, vectors, pixels.first + p * pixels.distance);
      return;
    }
    const float* from = reinterpret_cast<const float*>(sums);
    with_end([&](auto end) {
      if (vectors == 2) write_block<2>(end, from, 2 * kLanes, pixels, channel, channels);
      else write_block<1>(end, from, kLanes, pixels, channel, channels);
    });
  }

  // Calls function(an end to be opened), compiled for each by itself.
  template <typename Function>
  GW_INLINE void with_end(const Function& function) const {
    if (job_.fusion->raw_inputs)
      with_activation(job_.fusion->inputs.activation, [&](auto row) { function(GradientEnd<decltype(row)>{}); });
    else with_activation(job_.fusion->activation, [&](auto row) { function(ForwardEnd<decltype(row)>{}); });
  }

  // `Vectors` vectors of channels of some pixels, fewer where fewer channels exist.
  template <int Vectors, typename End>
  GW_INLINE void write_block(const End&, const float* sums, int64_t step, const Pixels& pixels, int64_t channel,
                             int64_t channels) const {
    if constexpr (Vectors > 1) {
      if (channels <= (Vectors - 1) * kLanes)
        return write_block<Vectors - 1>(End{}, sums, step, pixels, channel, channels);
    }
    End ends[Vectors];
    const int64_t last = minimum(kLanes, channels - (Vectors - 1) * kLanes);
    const bool streaming = streaming_ && last == kLanes && pixels.distance % kLanes == 0;
#pragma GCC unroll 4
    for (int q = 0; q < Vectors; ++q) ends[q].open(job_, gathering_, channel + q * kLanes, count_of<Vectors>(q, last));
    int64_t position = pixels.first;
    for (int64_t p = 0; p < pixels.count; ++p, sums += step, position += pixels.distance) {
#pragma GCC unroll 4
      for (int q = 0; q < Vectors; ++q) {
        const int64_t at = position + q * kLanes;
        const Vector result = ends[q](load_some(sums + q * kLanes, count_of<Vectors>(q, last)), at);
        if (streaming) store_streaming(out_ + at, result);
        else store_some(out_ + at, result, count_of<Vectors>(q, last));
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Vectors; ++q) ends[q].close(gathering_, channel + q * kLanes);
  }
  // The channels of a block's vector: all but the last one are whole.
  template <int Vectors>
  static GW_INLINE int64_t count_of(int q, int64_t last) {
    return q + 1 < Vectors ? kLanes : last;
  }

  void write_row(const float* from, int64_t position, int64_t count) const {
    int64_t i = 0;
    if (streaming_) {
      const int64_t before = minimum(count, round_up(position, kLine) - position);
      for (; i < before; ++i) out_[position + i] = from[i];
      for (; i + kLine <= count; i += kLine)
        for (int64_t v = 0; v < kLine; v += kLanes) store_streaming(out_ + position + i + v, load(from + i + v));
    }
    for (; i + kLanes <= count; i += kLanes) store(out_ + position + i, load(from + i));
    for (; i < count; ++i) out_[position + i] = from[i];
  }

  static constexpr int64_t kStreamingFloats = int64_t{1} << 20;
  const GwJob& job_;
  Gathering& gathering_;
  float* out_;
  const float* read_;  // an image of the outputs' shape that the end reads, or null
  bool plain_, streaming_;
};

}  // namespace

// What comes with a convolution, prepared for the kernels.
#pragma once
#include <string.h>

#include "kernels.h"
#include "threads/scratch.h"

namespace {

// What a convolution computes beside its sums, as the kernels want it.
class PreparedFusion {
 public:
  GwFusion fusion;

  PreparedFusion(const GwConvolution& c, const GwFusion& given) : fusion(given) {
    const bool counts = given.mean, sums = given.sums;
    channels_ = counts ? c.out_channels : sums ? c.in_channels : 0;
    const int64_t inputs = padded(given.inputs, c.in_channels), outputs = padded(given.outputs, c.out_channels);
    if (4 * channels_ + 3 * (inputs + outputs) == 0) return;
    memory_ = scratch_.take(size_t(4 * channels_ + 3 * (inputs + outputs)));
    has_memory_ = memory_;
    if (!memory_) return;
    auto* doubles = reinterpret_cast<double*>(memory_);
    totals_ = {0, doubles, doubles + channels_};
    for (int64_t i = 0; i < 2 * channels_; ++i) doubles[i] = 0;
    float* to = pad(fusion.inputs, c.in_channels, inputs, memory_ + 4 * channels_);
    pad(fusion.outputs, c.out_channels, outputs, to);
  }
  bool has_memory() const { return has_memory_; }
  GwTotals* totals() { return channels_ ? &totals_ : nullptr; }

  // Writes what has been gathered.
  void tell() const {
    for (int64_t c = 0; c < channels_; ++c) {
      if (fusion.sums) {
        fusion.sums[c] = float(totals_.first[c]);
        fusion.sums[channels_ + c] = float(totals_.second[c]);
      } else {
        fusion.mean[c] = float(totals_.first[c]);
        fusion.variance[c] = totals_.pixels > 0 ? float(totals_.second[c] / totals_.pixels) : 0;
      }
    }
  }

 private:
  static int64_t padded(const GwReading& reading, int64_t channels) {
    return reading.mean ? channels + GwJob::kSpareFloats : 0;
  }
  // Copies a reading's arrays to where they may be read past their end; returns what follows.
  static float* pad(GwReading& reading, int64_t channels, int64_t floats, float* to) {
    if (floats == 0) return to;
    for (const float** array : {&reading.mean, &reading.scale, &reading.shift}) {
      memcpy(to, *array, size_t(channels) * sizeof(float));
      memset(to + channels, 0, size_t(floats - channels) * sizeof(float));
      *array = to;
      to += floats;
    }
    return to;
  }

  Scratch scratch_;
  float* memory_ = nullptr;
  bool has_memory_ = true;
  int64_t channels_;  // of what is gathered
  GwTotals totals_{};
};

}  // namespace

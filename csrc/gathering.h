// What a pass gathers of each channel while it writes: sums, or mean and squared deviations.
//
// A task adds in single precision, over some hundred or thousand pixels, and settles in double precision. Deviations
// are from the mean of the pixels settled last, so that a mean a thousand times the deviation costs no digit: where
// such means differ much, so do the pixels, and their variance is large. The tasks' totals are added in order.
#pragma once
#include "geometry.h"
#include "kernels.h"
#include "simd.h"

namespace {

class Gathering {
 public:
  // What a task needs of the call's memory.
  static int64_t floats(int64_t channels) { return round_up(7 * padded(channels) + 2, 16); }

  // Gathers nothing where `memory` is null; sums alone unless it `deviates`.
  Gathering(float* memory, int64_t channels, bool deviates) : channels_(channels), deviates_(deviates) {
    if (!memory) return;
    const int64_t size = padded(channels);
    totals_ = reinterpret_cast<double*>(memory);
    centre_ = memory + 4 * size + 2;
    first_ = centre_ + size;
    second_ = first_ + size;
    __builtin_memset(memory, 0, size_t(floats(channels)) * sizeof(float));
    // The first pixel settles it.
    for (int64_t c = 0; deviates && c < size; ++c) centre_[c] = __builtin_nanf("");
  }

  bool is_wanted() const { return totals_; }
  const float* centre() const { return centre_; }
  // Of `count` channels: sums of deviations from the centre and of their squares, or any two sums.
  GW_INLINE void add(int64_t channel, int64_t count, Vector centre, Vector first, Vector second) {
    store_some(centre_ + channel, centre, count);
    store_some(first_ + channel, load_some(first_ + channel, count) + first, count);
    store_some(second_ + channel, load_some(second_ + channel, count) + second, count);
  }
  // After `pixels` pixels of all channels have been added.
  void count(int64_t pixels) {
    pixels_ += pixels;
    if (pixels_ >= kFewest) settle();
  }
  void settle() {
    if (!totals_ || pixels_ == 0) return;
    double *mean = totals_ + 1, *squares = mean + channels_;
    const double before = totals_[0], pixels = double(pixels_), share = pixels / (before + pixels);
    for (int64_t c = 0; c < channels_; ++c) {
      if (deviates_) {
        const double rest = first_[c] / pixels, centre = centre_[c] + rest, distance = centre - mean[c];
        const double square = second_[c] - first_[c] * rest;
        mean[c] += distance * share;
        squares[c] += (square < 0 ? 0 : square) + distance * distance * before * share;
        centre_[c] = float(centre);
      } else {
        mean[c] += first_[c];
        squares[c] += second_[c];
      }
      first_[c] = second_[c] = 0;
    }
    totals_[0] = before + pixels;
    pixels_ = 0;
  }

  // Adds up what a call's tasks, one after the other in memory, have settled.
  static void merge(const float* memory, int64_t tasks, int64_t channels, bool deviates, GwTotals* totals) {
    for (int64_t task = 0; task < tasks; ++task, memory += floats(channels)) {
      const double *part = reinterpret_cast<const double*>(memory), *mean = part + 1, *squares = mean + channels;
      const double before = totals->pixels, pixels = part[0], share = pixels / (before + pixels);
      if (pixels == 0) continue;
      for (int64_t c = 0; c < channels; ++c) {
        const double distance = mean[c] - totals->first[c];
        totals->first[c] += deviates ? distance * share : mean[c];
        totals->second[c] += squares[c] + (deviates ? distance * distance * before * share : 0);
      }
      totals->pixels += pixels;
    }
  }

 private:
  static constexpr int64_t kFewest = 128;
  static int64_t padded(int64_t channels) { return round_up(channels, 16); }

  int64_t channels_, pixels_ = 0;
  bool deviates_;
  double* totals_ = nullptr;  // pixels; for each channel the mean or first sum; the squares or second sum
  float *centre_ = nullptr, *first_ = nullptr, *second_ = nullptr;
};

}  // namespace

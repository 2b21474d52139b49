// How an image is read: as it is, or normalised on its way out of memory.
#pragma once
#include "epilogue.h"
#include "kernels.h"

namespace {

// Where a reading's summand is, so many floats from its beginning; null where it has none.
inline const float* summand_at(const GwReading& reading, int64_t offset) {
  return reading.summand ? reading.summand + offset : nullptr;
}

// The image as it is.
struct AsItIs {
  GW_INLINE Vector operator()(const float* from, int64_t, int64_t count) const { return load_some(from, count); }
};

// activation((image - mean) * scale + shift + summand).
template <typename Activation>
struct Normalised {
  const GwReading& reading;
  const float* image;

  // `count` channels of a pixel from `channel` on; the lanes left over hold anything.
  GW_INLINE Vector operator()(const float* from, int64_t channel, int64_t count) const {
    const GwReading& r = reading;
    Vector v = (load_some(from, count) - load(r.mean + channel)) * load(r.scale + channel) + load(r.shift + channel);
    if (r.summand) v += load_some(r.summand + (from - image), count);
    return Activation::value(v);
  }
};

// Calls function(read) with what reads `count` channels as read(address, first channel, count): compiled for each
// activation by itself.
template <typename Function>
GW_INLINE auto with_reading(const GwReading& reading, const float* image, const Function& function) {
  if (!reading.mean) return function(AsItIs{});
  return with_activation(reading.activation,
                         [&](auto row) { return function(Normalised<decltype(row)>{reading, image}); });
}

}  // namespace

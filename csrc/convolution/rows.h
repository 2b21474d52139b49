// Rows of images, copied one after the other into memory that a pass reads again and again.
//
// While a row of outputs is computed, the rows that the next one needs are asked for, a few cache lines at a time, so
// that memory works meanwhile. Asked for in larger pieces, they kept the first-level cache from asking for anything
// else: a convolution took up to 1.4 times as long, and groups of 8 at stride 2 1.2 times where they asked once for
// each vector of channels. Copying a little at a time came out as fast, and slower in the cache. Rows of an image that
// lies nowhere are computed where others are copied.
#pragma once
#include "geometry.h"
#include "reading.h"

namespace {

// Floats between two pixels of a copy: whole vectors, and no even number of cache lines, for then pixels drive one
// another out of the first-level cache: 512 channels took 1.6 times as long.
inline int64_t pitch(int64_t channels) {
  constexpr int64_t line = 64 / sizeof(float);
  return channels >= 4 * line && channels % (2 * line) == 0 ? channels + line : round_up(channels, kLanes);
}

// How a row is copied.
struct RowShape {
  int64_t width, channels;  // pixels of the image's row, and floats of one
  int64_t first, count;     // pixels that are copied
  int64_t pixel;            // floats between two of them in the copy
  int64_t before, floats;   // zeros before the first, and all floats of a copied row
  int64_t slots;            // rows that are kept
};

// How rows come about that lie nowhere in memory: write(maker, row, to) computes one of `floats` floats of an image.
struct RowSource {
  void (*write)(void* maker, int64_t row, float* to);
  void* maker;
  const float* image;
  int64_t floats;
};

class Rows {
 public:
  // Row `next` is the first that will be read. `memory` holds shape.slots rows. `source`: null for the image itself.
  Rows(const float* image, const GwReading& reading, const RowShape& shape, float* memory, int64_t next,
       const RowSource* source = nullptr)
      : shape_(shape), image_(source ? source->image : image), reading_(reading), memory_(memory), next_(next),
        source_(source), row_(source ? source->floats : shape.width * shape.channels) {
    for (int64_t slot = 0; slot < shape.slots; ++slot) {
      float* row = memory + slot * shape.floats;
      const int64_t after = shape.before + shape.count * shape.pixel;
      __builtin_memset(row, 0, size_t(shape.before) * sizeof(float));
      __builtin_memset(row + after, 0, size_t(shape.floats - after) * sizeof(float));
    }
  }

  // A row, copied by now. It stays until shape.slots later ones have been read.
  const float* row(int64_t index) {
    for (; next_ <= index; ++next_) copy(next_);
    return memory_ + index % shape_.slots * shape_.floats;
  }

  // From now on a step asks for a part of the rows before `end`: after `steps` all are on their way.
  void plan(int64_t end, int64_t steps) {
    asked_ = image_ + next_ * row_;
    end_ = image_ + maximum(next_, end) * row_;
    share_ = divide_up(end_ - asked_, kLine * maximum(1, steps)) * kLine;
  }
  GW_INLINE void step() {
    for (const float* last = end_ - asked_ < share_ ? end_ : asked_ + share_; asked_ < last; asked_ += kLine) {
      __builtin_prefetch(asked_, 0, 2);
      if (reading_.summand) __builtin_prefetch(reading_.summand + (asked_ - image_), 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(float);

  void copy(int64_t index) {
    const int64_t channels = shape_.channels;
    float* to = memory_ + index % shape_.slots * shape_.floats + shape_.before;
    if (source_) return source_->write(source_->maker, index, to);
    const float* from = image_ + (index * shape_.width + shape_.first) * channels;
    if (shape_.pixel == channels && !reading_.mean) {
      __builtin_memcpy(to, from, size_t(shape_.count * channels) * sizeof(float));
      return;
    }
    with_reading(reading_, image_, [&](auto read) {
      for (int64_t k = 0; k < shape_.count; ++k, from += channels, to += shape_.pixel) {
        int64_t c = 0;
#pragma GCC unroll 4
        for (; c + kLanes <= channels; c += kLanes) store(to + c, read(from + c, c, kLanes));
        if (c < channels) store(to + c, read(from + c, c, channels - c));
      }
    });
  }

  const RowShape shape_;
  const float *image_, *asked_ = nullptr, *end_ = nullptr;
  const GwReading& reading_;
  float* memory_;
  int64_t next_;
  const RowSource* source_;
  int64_t row_, share_ = 0;  // floats of a row of the image
};

}  // namespace

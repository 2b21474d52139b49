// What the families share: loops over tasks, rows of an image copied into scratch memory, the end of a forward pass.
#pragma once
#include "epilogue.h"
#include "geometry.h"
#include "kernels.h"
#include "simd.h"
#include "threads/parallel.h"
#include "threads/scratch.h"

namespace {

// Runs function(task) for every task in [0, tasks).
template <typename Function>
void parallel(const GwExecutor& executor, int64_t tasks, const Function& function) {
  if (executor.threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(task);
    return;
  }
  executor.run(
      executor.state, tasks, [](void* argument, int64_t task) { (*static_cast<const Function*>(argument))(task); },
      const_cast<Function*>(&function));
}

// The same for tasks that move `floats` floats in all: a few are moved before another thread has woken up.
template <typename Function>
void move_in_parallel(const GwExecutor& executor, int64_t tasks, int64_t floats, const Function& function) {
  constexpr int64_t few = 1 << 16;
  if (floats > few) return parallel(executor, tasks, function);
  for (int64_t task = 0; task < tasks; ++task) function(task);
}

// The same as parallel for functions that can run out of memory: GW_OK if every one returned true.
template <typename Function>
GwStatus try_parallel(const GwExecutor& executor, int64_t tasks, const Function& function) {
  bool failed = false;
  parallel(executor, tasks, [&](int64_t task) {
    if (!function(task)) __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
  });
  return failed ? GW_OUT_OF_MEMORY : GW_OK;
}

// The tasks of a pass that makes an image: ranges of rows, none across two images.
struct RowTasks {
  int64_t rows, rows_per_task, tasks_per_image, tasks;

  RowTasks(int64_t batch, int64_t out_rows, int64_t most_rows, int64_t threads) : rows(out_rows) {
    // Four tasks a thread even out the noise of a shared machine.
    const int64_t even = divide_up(batch * rows, 4 * threads);
    rows_per_task = maximum(1, minimum(minimum(even, most_rows), rows));
    tasks_per_image = divide_up(rows, rows_per_task);
    rows_per_task = divide_up(rows, maximum(1, tasks_per_image));
    tasks = batch * tasks_per_image;
  }
  int64_t image(int64_t task) const { return task / tasks_per_image; }
  int64_t first(int64_t task) const { return task % tasks_per_image * rows_per_task; }
  int64_t last(int64_t task) const { return minimum(rows, first(task) + rows_per_task); }
};

// The columns that a pass reads, those outside of the image included: [low, low + count).
struct Columns {
  int64_t low = 0, count = 0;

  explicit Columns(const Axis& axis) {
    int64_t high = -1;
    bool any = false;
    for (int64_t phase = 0; phase < axis.phases(); ++phase) {
      for (int64_t tap = 0, offset; tap < axis.taps; ++tap) {
        if (axis.count(phase) == 0 || !axis.sees(phase, tap, &offset)) continue;
        const int64_t end = offset + (axis.count(phase) - 1) * axis.step();
        low = any ? minimum(low, offset) : offset;
        high = any ? maximum(high, end) : end;
        any = true;
      }
    }
    count = high - low + 1;
  }
};

// The last rows copied, each kept in slot row % slots.
class Ring {
 public:
  Ring(float* memory, int64_t* tags, int64_t slots, int64_t floats)
      : memory_(memory), tags_(tags), slots_(slots), floats_(floats) {
    for (int64_t i = 0; i < slots; ++i) tags_[i] = -1;
  }
  template <typename Copy>
  const float* row(int64_t index, const Copy& copy) {
    const int64_t slot = index % slots_;
    float* memory = memory_ + slot * floats_;
    if (tags_[slot] != index) {
      copy(index, memory);
      tags_[slot] = index;
    }
    return memory;
  }

 private:
  float* memory_;
  int64_t* tags_;
  int64_t slots_, floats_;
};

// How many input rows lie between the first and the last that one output row sees, both included.
inline int64_t rows_seen(const Axis& axis) {
  const int64_t extent = (axis.taps - 1) * axis.dilation + 1;
  return axis.transposed ? (extent - 1) / axis.stride + 1 : extent;
}

// Asks for memory that will be read soon, so that it comes while something else is computed. Into the second-level
// cache: in the first, depthwise convolutions took 1.5 times as long. What lies past an array's end is not fetched.
// `rows` rows of `width` floats, `distance` floats apart, are asked for in `times` pieces.
class Ahead {
 public:
  Ahead(const float* p, int64_t rows, int64_t width, int64_t distance, int64_t times)
      : row_(p), rows_(rows), width_(width), distance_(distance),
        share_(divide_up(rows * divide_up(width, kLine), maximum(1, times))) {}
  GW_INLINE void ask() {
    for (int64_t lines = share_; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(row_ + column_, 0, 2);
      column_ += kLine;
      if (column_ < width_) continue;
      column_ = 0;
      row_ += distance_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(float);
  const float* row_;
  int64_t rows_, width_, distance_, share_, column_ = 0;
};

// The end of a forward pass: what follows the sums, and writing them.
class Finish {
 public:
  static constexpr int64_t kLine = 64 / sizeof(float);

  // `group_width` channels are written one after the other.
  Finish(const GwJob& job, int64_t floats, int64_t group_width)
      : out_(job.out), epilogue_(*job.epilogue),
        plain_(!epilogue_.bias && !epilogue_.residual && epilogue_.activation == GW_LINEAR),
        // Larger outputs have left the caches before they are read: write around them. Reading what is about to be
        // overwritten halved the speed of ResNeXt's first stage.
        streaming_(floats >= kStreamingFloats && group_width % kLanes == 0 &&
                   reinterpret_cast<uintptr_t>(out_) % sizeof(Vector) == 0) {}

  // Writes `vectors` vectors of channels, from `channel` on, of pixels whose floats begin at position, position +
  // distance and so on: the vectors of a pixel one after the other, for they share cache lines.
  template <int Pixels>
  GW_INLINE void write(const Vector* sums, int64_t vectors, int64_t pixels, int64_t position, int64_t distance,
                       int64_t channel, int64_t channels) const {
    if (!plain_ || channels < vectors * kLanes || pixels != Pixels)
      return write_some(sums, vectors, pixels, position, distance, channel, channels);
#pragma GCC unroll 32
    for (int p = 0; p < Pixels; ++p) write_pixel(sums + p * vectors, vectors, position + p * distance);
  }

  // Asks for the residual of what `write` will write, while the sums are computed: no prefetcher foresees a few lines
  // of each pixel. Unasked, a 1x1 convolution of 512 outputs took longer with its residual than an addition after it.
  GW_INLINE void ask(int64_t floats, int64_t pixels, int64_t position, int64_t distance) const {
    if (!epilogue_.residual) return;
    for (const float* from = epilogue_.residual + position; pixels > 0; --pixels, from += distance) {
      for (int64_t i = 0; i < floats; i += kLine) __builtin_prefetch(from + i, 0, 3);
      __builtin_prefetch(from + floats - 1, 0, 3);
    }
  }

  // Where outputs may be written at once: nothing follows, they stay in the cache, and pixels have no gaps.
  float* direct(int64_t position, int64_t gap) const {
    return plain_ && !streaming_ && gap == 0 ? out_ + position : nullptr;
  }

  // Writes whole pixels whose sums lie `distance` floats apart, in order: written through a vector that is a part of a
  // cache line, scattered ones took twice as long.
  void write_pixels(const float* sums, int64_t distance, int64_t position, int64_t pixels, int64_t channels) const {
    if (plain_ && distance == channels) return write_row(sums, position, pixels * channels);
    with_activation(epilogue_.activation, [&](auto activation) {
      for (int64_t p = 0; p < pixels; ++p, sums += distance, position += channels) {
        for (int64_t c = 0; c < channels; c += kLanes) {
          const int64_t count = channels - c;
          const Vector total = with_summands(load_some(sums + c, count), c, position + c, count);
          store_some(out_ + position + c, activation.value(total), count);
        }
      }
    });
  }

  ~Finish() {
    if (streaming_) fence_streaming();
  }

 private:
  GW_INLINE void write_pixel(const Vector* sums, int64_t vectors, int64_t position) const {
    for (int64_t q = 0; q < vectors; ++q) {
      if (streaming_) store_streaming(out_ + position + q * kLanes, sums[q]);
      else store(out_ + position + q * kLanes, sums[q]);
    }
  }
  // Not inlined: a tile of few channels took 1.1 times as long beside all this.
  __attribute__((noinline)) void write_some(const Vector* sums, int64_t vectors, int64_t pixels, int64_t position,
                                            int64_t distance, int64_t channel, int64_t channels) const {
    if (plain_ && channels >= vectors * kLanes) {
      for (int64_t p = 0; p < pixels; ++p) write_pixel(sums + p * vectors, vectors, position + p * distance);
      return;
    }
    with_activation(epilogue_.activation, [&](auto activation) {
      for (int64_t p = 0; p < pixels; ++p, position += distance) {
        for (int64_t q = 0; q < vectors && q * kLanes < channels; ++q) {
          const int64_t at = position + q * kLanes, c = channel + q * kLanes, count = channels - q * kLanes;
          const Vector result = activation.value(with_summands(sums[p * vectors + q], c, at, count));
          if (streaming_) store_streaming(out_ + at, result);
          else store_some(out_ + at, result, count);
        }
      }
    });
  }

  // The sums of `count` channels from `channel` on, at `position` in the outputs, with their bias and residual.
  GW_INLINE Vector with_summands(Vector sums, int64_t channel, int64_t position, int64_t count) const {
    if (epilogue_.bias) sums += load_some(epilogue_.bias + channel, count);
    if (epilogue_.residual) sums += load_some(epilogue_.residual + position, count);
    return sums;
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
  float* out_;
  GwEpilogue epilogue_;
  bool plain_, streaming_;
};

}  // namespace

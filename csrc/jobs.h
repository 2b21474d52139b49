// What the families share: loops over tasks, rows of an image copied into scratch memory.
#pragma once
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
// `rows` rows of `width` floats, `distance` floats apart, are asked for in `times` pieces, and so are those from
// `other` on, unless it is null; of each piece a few lines at a time.
class Ahead {
 public:
  Ahead(const float* p, const float* other, int64_t rows, int64_t width, int64_t distance, int64_t times)
      : row_(p), other_(other), rows_(rows), width_(width), distance_(distance) {
    // Rows without gaps are one: of 3 channels each pixel's would be a line.
    if (width_ == distance_) width_ *= rows_, rows_ = 1;
    share_ = divide_up(rows_ * divide_up(width_, kLine), maximum(1, times));
  }
  // How many lines of a piece to ask for at each of `times` times.
  int64_t lines(int64_t times) const { return divide_up(share_, maximum(1, times)); }
  GW_INLINE void ask(int64_t lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(row_ + column_, 0, 2);
      if (other_) __builtin_prefetch(other_ + column_, 0, 2);
      column_ += kLine;
      if (column_ < width_) continue;
      column_ = 0;
      row_ += distance_;
      if (other_) other_ += distance_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(float);
  const float *row_, *other_;
  int64_t rows_, width_, distance_, share_, column_ = 0;
};

}  // namespace

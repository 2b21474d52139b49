// The passes that make an image: forward and input gradient.
#pragma once
#include "lanes.h"

namespace {

// Up to three neighbouring taps of one row of the kernel.
struct Run {
  const float* x;   // row, at the first tap's column for the phase's first output
  const float* w;   // weights of the first vector of output channels: [channel of the group][tap][lane]
  int64_t taps;
};

template <int Taps, int Strip, typename Input>
GW_INLINE void add_channel(Vector* sums, const float* w, const Input& input) {
  Vector weights[Taps];
#pragma GCC unroll 4
  for (int k = 0; k < Taps; ++k) weights[k] = load(w + k * kLanes);
#pragma GCC unroll 32
  for (int i = 0; i < Strip + Taps - 1; ++i) {
    const Vector x = input(i);
#pragma GCC unroll 4
    for (int k = 0; k < Taps; ++k) {
      if (i >= k && i - k < Strip) sums[i - k] += x * weights[k];
    }
  }
}

template <int Width, int Taps, int Strip, int Channel = 0>
GW_INLINE void add_fixed(Vector* sums, const float* x, const float* w, int64_t step) {
  add_channel<Taps, Strip>(sums, w + Channel * Taps * kLanes,
                           [=](int i) { return input_vector<Width, Channel>(x + i * step); });
  if constexpr (Channel + 1 < Width) {
    // Read the inputs again: kept in registers they would push the sums out to memory.
    asm volatile("" ::: "memory");
    add_fixed<Width, Taps, Strip, Channel + 1>(sums, x, w, step);
  }
}

template <int Width, int Taps, int Strip>
GW_INLINE void add_run(Vector* sums, const Lanes<Width>& lanes, const Gather& gather, const float* x, const float* w,
                       int64_t step) {
  if constexpr (Width != 0) {
    add_fixed<Width, Taps, Strip>(sums, x, w, step);
  } else {
    for (int64_t i = 0; i < lanes.in_width; ++i) {
      add_channel<Taps, Strip>(sums, w + i * Taps * kLanes,
                               [&](int p) { return gather(x + gather.first + i + p * step); });
    }
  }
}

// Where a strip reads and writes.
struct Place {
  const Run* runs;
  int64_t count;               // of runs
  int64_t x_offset, w_offset;  // of the strip and the vector of channels in every run
  int64_t step;                // floats read between two output pixels
  int64_t pixels, position, distance, channel, channels;  // as for Finish
};

// One strip of one vector of output channels.
template <int Width, int Strip>
__attribute__((noinline)) void strip(const Lanes<Width>& lanes, const Gather& gather, const Place& place,
                                     const Finish& finish) {
  Vector sums[Strip];
#pragma GCC unroll 32
  for (int s = 0; s < Strip; ++s) sums[s] = Vector{};
  for (int64_t r = 0; r < place.count; ++r) {
    const Run& run = place.runs[r];
    const float *x = run.x + place.x_offset, *w = run.w + place.w_offset;
    if (run.taps == 3) add_run<Width, 3, Strip>(sums, lanes, gather, x, w, place.step);
    else if (run.taps == 2) add_run<Width, 2, Strip>(sums, lanes, gather, x, w, place.step);
    else add_run<Width, 1, Strip>(sums, lanes, gather, x, w, place.step);
  }
  // A copy, for Finish counts through it: the sums themselves stay in registers.
  Vector written[Strip];
#pragma GCC unroll 32
  for (int s = 0; s < Strip; ++s) written[s] = sums[s];
  finish.write<Strip>(written, 1, place.pixels, place.position, place.distance, place.channel, place.channels);
}

// The taps that one phase of the columns sees, in order of their offsets, cut into runs.
struct PhaseRuns {
  struct Item {
    int64_t tap, offset, taps, weights;  // `weights`: where the run's begin, in floats, within a row of the kernel
  };
  Item* items;
  int64_t count = 0, floats = 0;

  PhaseRuns(const Axis& axis, int64_t phase, int64_t in_width, Item* memory) : items(memory) {
    for (int64_t step = 0; step < axis.taps; ++step) {
      // Of the input gradient the last tap reads first.
      const int64_t tap = axis.transposed ? axis.taps - 1 - step : step;
      int64_t offset;
      if (!axis.sees(phase, tap, &offset)) continue;
      Item* last = count ? &items[count - 1] : nullptr;
      if (last && axis.step() == 1 && last->taps < 3 && offset == last->offset + last->taps &&
          one_apart(axis, *last, tap)) {
        ++last->taps;
      } else {
        items[count++] = {tap, offset, 1, 0};
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      items[i].weights = floats;
      floats += items[i].taps * in_width * kLanes;
    }
  }
  // The tap that stands `k` after a run's first.
  static int64_t tap(const Axis& axis, const Item& item, int64_t k) {
    return axis.transposed ? item.tap - k * axis.stride / common(axis) : item.tap + k;
  }

 private:
  // Neighbouring offsets are stride / gcd(stride, dilation) taps apart in the input gradient.
  static int64_t common(const Axis& axis) {
    int64_t a = axis.stride, b = axis.dilation;
    while (b) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
  static bool one_apart(const Axis& axis, const Item& item, int64_t next) {
    return tap(axis, item, item.taps) == next;
  }
};

// Everything about one pass that makes an image, prepared once a call.
template <int Width>
class ImagePass {
 public:
  explicit ImagePass(const GwJob& job) : lanes_(job) {
    const Lanes<Width>& l = lanes_;
    slots_ = minimum(rows_seen(l.vertical), maximum(1, l.vertical.in_size));
    phases_ = minimum(l.horizontal.phases(), maximum(1, l.horizontal.out_size));
    kernel_row_ = l.horizontal.taps * l.in_width * kLanes;
    kernel_block_ = l.vertical.taps * phases_ * kernel_row_;
  }

  GwStatus run() {
    const Lanes<Width>& l = lanes_;
    const int64_t item_floats =
        phases_ * int64_t((l.horizontal.taps * sizeof(PhaseRuns::Item) + sizeof(PhaseRuns)) / sizeof(float));
    const int64_t gather_floats = l.blocks * int64_t(sizeof(Gather) / sizeof(float));
    float* memory = gw_scratch(GW_CALL_SLOT, size_t(l.blocks * kernel_block_ + item_floats + gather_floats));
    if (!memory) return GW_OUT_OF_MEMORY;
    weights_ = memory;
    runs_ = reinterpret_cast<PhaseRuns*>(memory + l.blocks * kernel_block_);
    auto* items = reinterpret_cast<PhaseRuns::Item*>(runs_ + phases_);
    for (int64_t phase = 0; phase < phases_; ++phase)
      runs_[phase] = PhaseRuns(l.horizontal, phase, l.in_width, items + phase * l.horizontal.taps);
    gathers_ = reinterpret_cast<Gather*>(memory + l.blocks * kernel_block_ + item_floats);
    move_in_parallel(*l.job.executor, l.blocks, l.blocks * kernel_block_, [&](int64_t v) { pack(v); });
    const RowTasks tasks(l.c.batch, l.vertical.out_size, l.vertical.out_size, l.job.executor->threads);
    return try_parallel(*l.job.executor, tasks.tasks, [&](int64_t task) {
      return rows(tasks.image(task), tasks.first(task), tasks.last(task));
    });
  }

 private:
  // Lays out the weights of a vector of output channels: [phase][kernel row][run][channel of the group][tap][lane].
  void pack(int64_t v) const {
    const Lanes<Width>& l = lanes_;
    gathers_[v] = l.gather(v);
    for (int64_t phase = 0; phase < phases_; ++phase) {
      const PhaseRuns& runs = runs_[phase];
      for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
        float* to = weights_ + v * kernel_block_ + (phase * l.vertical.taps + ky) * kernel_row_;
        for (int64_t r = 0; r < runs.count; ++r)
          for (int64_t i = 0; i < l.in_width; ++i)
            for (int64_t k = 0; k < runs.items[r].taps; ++k, to += kLanes)
              store(to, l.weights(ky, PhaseRuns::tap(l.horizontal, runs.items[r], k), i, v));
      }
    }
  }

  bool rows(int64_t image, int64_t first, int64_t last) const {
    const Lanes<Width>& l = lanes_;
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    const int64_t most_runs = l.vertical.taps * l.horizontal.taps;
    const int64_t run_floats = most_runs * int64_t(sizeof(Run) / sizeof(float));
    float* memory = gw_scratch(GW_TASK_SLOT, size_t(slots_ * (l.row + words) + run_floats));
    if (!memory) return false;
    auto* runs = reinterpret_cast<Run*>(memory + slots_ * l.row);
    Ring ring(memory, reinterpret_cast<int64_t*>(memory + slots_ * l.row + run_floats), slots_, l.row);
    const int64_t in_row = l.horizontal.in_size * l.in_channels, in_image = l.vertical.in_size * in_row;
    const float* from = l.job.a + image * in_image;
    const int64_t out_row = l.horizontal.out_size * l.out_channels;
    const Finish finish(l.job, l.c.batch * l.vertical.out_size * out_row, l.out_channels);
    int64_t next_row = 0;
    for (int64_t y = first; y < last; ++y) {
      const int64_t position = (image * l.vertical.out_size + y) * out_row;
      for (int64_t phase = 0; phase < phases_; ++phase) {
        const PhaseRuns& columns = runs_[phase];
        int64_t count = 0;
        for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
          int64_t offset;
          if (!l.vertical.sees(y % l.vertical.phases(), ky, &offset)) continue;
          const int64_t in_y = y / l.vertical.phases() * l.vertical.step() + offset;
          if (in_y < 0 || in_y >= l.vertical.in_size) continue;
          const float* row = ring.row(in_y, [&](int64_t index, float* to) { l.copy_row(from + index * in_row, to); });
          next_row = maximum(next_row, in_y + 1);
          const float* w = weights_ + (phase * l.vertical.taps + ky) * kernel_row_;
          for (int64_t r = 0; r < columns.count; ++r) {
            const PhaseRuns::Item& item = columns.items[r];
            runs[count++] = {row + (item.offset - l.columns.low) * l.pixel, w + item.weights, item.taps};
          }
        }
        const int64_t ahead = phase ? 0 : minimum(l.vertical.step(), l.vertical.in_size - next_row) * in_row;
        phase_row(runs, count, phase, position, finish, from + next_row * in_row, ahead);
      }
    }
    return true;
  }

  // All pixels of one phase of one output row, strip by strip, all channels of a strip together; meanwhile the `ahead`
  // floats at `next` are asked for.
  void phase_row(const Run* runs, int64_t count, int64_t phase, int64_t position, const Finish& finish,
                 const float* next, int64_t ahead) const {
    const Lanes<Width>& l = lanes_;
    const int64_t pixels = l.horizontal.count(phase), step = l.horizontal.step() * l.pixel;
    const int64_t distance = l.horizontal.phases() * l.out_channels;
    for (int64_t j = 0, size; j < pixels; j += size) {
      const int64_t left = pixels - j;
      size = left + 1 >= kStrip ? kStrip : left + 1 >= kStrip / 2 ? kStrip / 2 : left + 1 >= 3 ? 3 : 1;
      const auto function = size == kStrip       ? strip<Width, kStrip>
                            : size == kStrip / 2 ? strip<Width, kStrip / 2>
                            : size == 3          ? strip<Width, 3>
                                                 : strip<Width, 1>;
      size = minimum(size, left);
      const int64_t asked = ahead * j / pixels;
      prefetch(next + asked, ahead * (j + size) / pixels - asked);
      for (int64_t v = 0; v < l.blocks; ++v) {
        const int64_t channel = v * kLanes;
        const Place place{runs, count, l.start(v) + j * step, v * kernel_block_, step, size,
                          position + phase * l.out_channels + j * distance + channel, distance, channel,
                          l.out_channels - channel};
        function(l, gathers_[v], place, finish);
      }
    }
  }

  Lanes<Width> lanes_;
  int64_t slots_, phases_, kernel_row_, kernel_block_;
  float* weights_ = nullptr;
  PhaseRuns* runs_ = nullptr;
  Gather* gathers_ = nullptr;
};

}  // namespace

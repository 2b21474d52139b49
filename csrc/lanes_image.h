// The passes that make an image: forward and input gradient.
#pragma once
#include "lanes.h"
#include "runs.h"

namespace {

// A run of taps in one row of the image.
struct RowRun {
  const float* x;  // at the first tap's column for the phase's first output
  const float* w;  // weights of the first vector of output channels: [channel of the group][tap][lane]
  int64_t taps;
  int64_t channel_distance;  // floats between the weights of two channels
};

// A single pixel has a sum for each tap of a run: one sum would wait for itself, four cycles a multiply-add.
template <int Strip>
constexpr int kSums = Strip == 1 ? kLongestRun : Strip;

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
      if (i >= k && i - k < Strip) sums[Strip == 1 ? k : i - k] += x * weights[k];
    }
  }
}

template <int Width, int Taps, int Strip, int Channel = 0>
GW_INLINE void add_fixed(Vector* sums, const float* x, const float* w, int64_t step, int64_t channel_distance) {
  add_channel<Taps, Strip>(sums, w, [=](int i) { return input_vector<Width, Channel>(x + i * step); });
  if constexpr (Channel + 1 < Width) {
    // Read the inputs again: kept in registers they would push the sums out to memory.
    asm volatile("" ::: "memory");
    add_fixed<Width, Taps, Strip, Channel + 1>(sums, x, w + channel_distance, step, channel_distance);
  }
}

template <int Width, int Taps, int Strip>
GW_INLINE void add_run(Vector* sums, const Lanes<Width>& lanes, const Gather& gather, const float* x, const float* w,
                       int64_t step, int64_t channel_distance) {
  if constexpr (Width != 0) {
    add_fixed<Width, Taps, Strip>(sums, x, w, step, channel_distance);
  } else {
    for (int64_t i = 0; i < lanes.in_width; ++i) {
      add_channel<Taps, Strip>(sums, w + i * channel_distance,
                               [&](int p) { return gather(x + gather.first + i + p * step); });
    }
  }
}

// Where a strip reads and writes.
struct Place {
  const RowRun* runs;
  int64_t count;                                  // of runs
  int64_t x_offset, w_offset;                     // of the strip and the vector of channels in every run
  int64_t step;                                   // floats read between two output pixels
  int64_t position, distance, channel, channels;  // as for Finish
};

// One strip of one vector of output channels.
template <int Width, int Strip>
__attribute__((noinline)) void strip(const Lanes<Width>& lanes, const Gather& gather, const Place& place,
                                     const Finish& finish) {
  Vector sums[kSums<Strip>];
#pragma GCC unroll 32
  for (int s = 0; s < kSums<Strip>; ++s) sums[s] = Vector{};
  for (int64_t r = 0; r < place.count; ++r) {
    const RowRun& run = place.runs[r];
    const float *x = run.x + place.x_offset, *w = run.w + place.w_offset;
    const int64_t distance = run.channel_distance;
    if (run.taps == 3) add_run<Width, 3, Strip>(sums, lanes, gather, x, w, place.step, distance);
    else if (run.taps == 2) add_run<Width, 2, Strip>(sums, lanes, gather, x, w, place.step, distance);
    else add_run<Width, 1, Strip>(sums, lanes, gather, x, w, place.step, distance);
  }
  if constexpr (Strip == 1) sums[0] += sums[1] + sums[2];
  // A copy, for Finish counts through it: the sums themselves stay in registers.
  Vector written[Strip];
#pragma GCC unroll 32
  for (int s = 0; s < Strip; ++s) written[s] = sums[s];
  finish.write<Strip>(written, 1, Strip, place.position, place.distance, place.channel, place.channels);
}

template <int Width>
using Strip = void (*)(const Lanes<Width>&, const Gather&, const Place&, const Finish&);

template <int Width, int... I>
Strip<Width> strip_of(int64_t pixels, Sequence<I...>) {
  static constexpr Strip<Width> all[] = {strip<Width, I + 1>...};
  return all[pixels - 1];
}

// Everything about one pass that makes an image, prepared once a call.
template <int Width>
class ImagePass {
 public:
  explicit ImagePass(const GwJob& job) : lanes_(job) {
    const Lanes<Width>& l = lanes_;
    slots_ = !l.copied ? 0 : minimum(rows_seen(l.vertical), maximum(1, l.vertical.in_size));
    phases_ = minimum(l.horizontal.phases(), maximum(1, l.horizontal.out_size));
    kernel_row_ = l.horizontal.taps * l.in_width * kLanes;
    kernel_block_ = l.vertical.taps * phases_ * kernel_row_;
  }

  GwStatus run() {
    const Lanes<Width>& l = lanes_;
    const int64_t run_floats = phases_ * int64_t((l.horizontal.taps * sizeof(Run) + sizeof(Runs)) / sizeof(float));
    const int64_t gather_floats = l.blocks * int64_t(sizeof(Gather) / sizeof(float));
    float* memory = gw_scratch(GW_CALL_SLOT, size_t(l.blocks * kernel_block_ + run_floats + gather_floats));
    if (!memory) return GW_OUT_OF_MEMORY;
    weights_ = memory;
    runs_ = reinterpret_cast<Runs*>(memory + l.blocks * kernel_block_);
    auto* items = reinterpret_cast<Run*>(runs_ + phases_);
    for (int64_t phase = 0; phase < phases_; ++phase)
      runs_[phase] = Runs(l.horizontal, phase, l.columns, items + phase * l.horizontal.taps);
    gathers_ = reinterpret_cast<Gather*>(memory + l.blocks * kernel_block_ + run_floats);
    move_in_parallel(*l.job.executor, l.blocks, l.blocks * kernel_block_, [&](int64_t v) { pack(v); });
    const RowTasks tasks(l.c.batch, l.vertical.out_size, l.vertical.out_size, l.job.executor->threads);
    return try_parallel(*l.job.executor, tasks.tasks,
                        [&](int64_t task) { return rows(tasks.image(task), tasks.first(task), tasks.last(task)); });
  }

 private:
  // Lays out the weights of a vector of output channels: [phase][kernel row][run][channel of the group][tap][lane].
  void pack(int64_t v) const {
    const Lanes<Width>& l = lanes_;
    gathers_[v] = l.gather(v);
    for (int64_t phase = 0; phase < phases_; ++phase) {
      const Runs& columns = runs_[phase];
      for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
        float* to = weights_ + v * kernel_block_ + (phase * l.vertical.taps + ky) * kernel_row_;
        for (int64_t r = 0; r < columns.count; ++r) {
          const Run& run = columns.runs[r];
          for (int64_t i = 0; i < l.in_width; ++i)
            for (int64_t k = 0; k < run.taps; ++k, to += kLanes)
              store(to, l.weights(ky, run.tap + k * run.tap_step, i, v));
        }
      }
    }
  }

  bool rows(int64_t image, int64_t first, int64_t last) const {
    const Lanes<Width>& l = lanes_;
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    const int64_t most_runs = l.vertical.taps * l.horizontal.taps;
    // Twice: those of an edge's pixel are cut shorter.
    const int64_t run_floats = 2 * most_runs * int64_t(sizeof(RowRun) / sizeof(float));
    float* memory = gw_scratch(GW_TASK_SLOT, size_t(slots_ * (l.row + words) + run_floats));
    if (!memory) return false;
    auto* runs = reinterpret_cast<RowRun*>(memory + slots_ * l.row);
    Ring ring(memory, reinterpret_cast<int64_t*>(memory + slots_ * l.row + run_floats), slots_, l.row);
    const int64_t in_row = l.horizontal.in_size * l.in_channels;
    const float* from = l.job.a + image * l.vertical.in_size * in_row;
    const int64_t out_row = l.horizontal.out_size * l.out_channels;
    const Finish finish(l.job, l.c.batch * l.vertical.out_size * out_row, l.out_channels);
    int64_t next_row = 0;
    for (int64_t y = first; y < last; ++y) {
      const int64_t position = (image * l.vertical.out_size + y) * out_row;
      for (int64_t phase = 0; phase < phases_; ++phase) {
        const Runs& columns = runs_[phase];
        int64_t count = 0;
        for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
          int64_t offset;
          if (!l.vertical.sees(y % l.vertical.phases(), ky, &offset)) continue;
          const int64_t in_y = y / l.vertical.phases() * l.vertical.step() + offset;
          if (in_y < 0 || in_y >= l.vertical.in_size) continue;
          const float* row = l.read(ring, from, in_y);
          next_row = maximum(next_row, in_y + 1);
          const float* w = weights_ + (phase * l.vertical.taps + ky) * kernel_row_;
          for (int64_t r = 0; r < columns.count; ++r) {
            const Run& run = columns.runs[r];
            runs[count++] = {row + run.offset * l.pixel, w + run.slot * l.in_width * kLanes, run.taps,
                             run.taps * kLanes};
          }
        }
        // The rows after the next output row's, of the next image at the end of this one.
        const int64_t ahead = l.vertical.step() * in_row;
        phase_row(
            runs, count, phase, position, finish,
            Ahead(from + next_row * in_row + ahead, 1, phase ? 0 : ahead, 0, divide_up(columns.out_count, kStrip)));
      }
    }
    return true;
  }

  // All pixels of one phase of one output row.
  void phase_row(RowRun* runs, int64_t count, int64_t phase, int64_t position, const Finish& finish,
                 Ahead ahead) const {
    const Runs& columns = runs_[phase];
    for (int64_t j = 0; j < columns.inside_first; ++j) edge_pixel(runs, count, phase, j, position, finish);
    const int64_t inside = columns.inside_last - columns.inside_first;
    const int64_t strips = divide_up(inside, kStrip);
    for (int64_t i = 0, j = columns.inside_first; i < strips; ++i) {
      const int64_t size = (inside - (j - columns.inside_first)) / (strips - i);
      ahead.ask();
      strip_row(runs, count, phase, j, size, position, finish);
      j += size;
    }
    for (int64_t j = columns.inside_last; j < columns.out_count; ++j)
      edge_pixel(runs, count, phase, j, position, finish);
  }

  // A pixel some of whose taps lie outside: what is left of the runs.
  void edge_pixel(RowRun* runs, int64_t count, int64_t phase, int64_t j, int64_t position, const Finish& finish) const {
    const Lanes<Width>& l = lanes_;
    const Runs& columns = runs_[phase];
    RowRun* cut = runs + count;
    int64_t left = 0;
    for (int64_t r = 0; r < count; ++r) {
      const Run& run = columns.runs[r % columns.count];
      int64_t first = 0, last = run.taps;
      while (first < last && j < columns.first_seeing(run, first)) ++first;
      while (first < last && j >= columns.last_seeing(run, last - 1)) --last;
      if (first == last) continue;
      cut[left++] = {runs[r].x + first * l.horizontal.step() * l.pixel, runs[r].w + first * kLanes, last - first,
                     runs[r].channel_distance};
    }
    strip_row(cut, left, phase, j, 1, position, finish);
  }

  // All channels of a strip.
  void strip_row(const RowRun* runs, int64_t count, int64_t phase, int64_t j, int64_t size, int64_t position,
                 const Finish& finish) const {
    const Lanes<Width>& l = lanes_;
    const int64_t step = l.horizontal.step() * l.pixel, distance = l.horizontal.phases() * l.out_channels;
    const auto function = strip_of<Width>(size, typename MakeSequence<kStrip>::type{});
    for (int64_t v = 0; v < l.blocks; ++v) {
      const int64_t channel = l.channel(v);
      const Place place{runs,
                        count,
                        l.start(v) + j * step,
                        v * kernel_block_,
                        step,
                        position + phase * l.out_channels + j * distance + channel,
                        distance,
                        channel,
                        l.out_channels - channel};
      function(l, gathers_[v], place, finish);
    }
  }

  Lanes<Width> lanes_;
  int64_t slots_, phases_, kernel_row_, kernel_block_;
  float* weights_ = nullptr;
  Runs* runs_ = nullptr;
  Gather* gathers_ = nullptr;
};

}  // namespace

// The passes that make an image: forward and input gradient.
#pragma once
#include "finish.h"
#include "lanes.h"
#include "runs.h"

namespace {

// A run of taps in one row of the image.
struct RowRun {
  const float* x;  // at the first tap's column for the phase's first output
  const float* w;  // weights of the first vector of output channels: [channel of the group][tap][lane]
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
  add_channel<Taps, Strip>(sums, w, [=](int i) { return input_vector<Width, Channel>(x + i * step); });
  if constexpr (Channel + 1 < Width) {
    // Read the inputs again: kept in registers they would push the sums out to memory.
    asm volatile("" ::: "memory");
    add_fixed<Width, Taps, Strip, Channel + 1>(sums, x, w + Taps * kLanes, step);
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

// Whether a strip asks for a part of the next rows with every run, or once: of one channel runs are too short.
template <int Width>
constexpr bool kAsksByRun = Width != 1;

// Where a strip reads and writes, and the rows that it asks for meanwhile.
struct Place {
  Rows& rows;
  const RowRun *runs, *end;
  int64_t x_offset, w_offset;  // of the strip and the vector of channels in every run
  int64_t step;                // floats read between two output pixels
  float* to;
  int64_t distance;  // floats written between two output pixels
};

// One strip of one vector of output channels. Runs of First taps take turns with runs of Second, unless that is 0:
// a choice of the taps in here cost half of the speed.
template <int Width, int Strip, int First, int Second>
__attribute__((noinline)) void strip(const Lanes<Width>& lanes, const Gather& gather, const Place& place) {
  Vector sums[Strip];
  float* to = place.to;
  const int64_t distance = place.distance;
#pragma GCC unroll 32
  for (int s = 0; s < Strip; ++s) sums[s] = Vector{};
  if (!kAsksByRun<Width>) place.rows.step();
  for (const RowRun* run = place.runs; run != place.end; ++run) {
    if (kAsksByRun<Width>) place.rows.step();
    add_run<Width, First, Strip>(sums, lanes, gather, run->x + place.x_offset, run->w + place.w_offset, place.step);
    if constexpr (Second > 0) {
      ++run;
      if (kAsksByRun<Width>) place.rows.step();
      add_run<Width, Second, Strip>(sums, lanes, gather, run->x + place.x_offset, run->w + place.w_offset, place.step);
    }
  }
#pragma GCC unroll 32
  for (int s = 0; s < Strip; ++s, to += distance) store(to, sums[s]);
}

template <int Width>
using Strip = void (*)(const Lanes<Width>&, const Gather&, const Place&);

template <int Width, int First, int Second, int... I>
const Strip<Width>* strips(Sequence<I...>) {
  static constexpr Strip<Width> all[] = {strip<Width, I + 1, First, Second>...};
  return all;
}

// The strips of 1, 2 ... kStrip pixels for a row of the kernel that is cut into these runs; null where there are none.
template <int Width>
const Strip<Width>* strips_of(const Runs& runs) {
  constexpr typename MakeSequence<kStrip>::type sizes;
  const int64_t first = runs.count > 0 ? runs.runs[0].taps : 1, second = runs.count > 1 ? runs.runs[1].taps : 0;
  if (runs.count > 2) return nullptr;
  if (first == 1 && second == 0) return strips<Width, 1, 0>(sizes);
  if (first == 2 && second == 0) return strips<Width, 2, 0>(sizes);
  if (first == 2 && second == 1) return strips<Width, 2, 1>(sizes);
  if (first == 3 && second == 0) return strips<Width, 3, 0>(sizes);
  if (first == 3 && second == 2) return strips<Width, 3, 2>(sizes);
  return nullptr;
}

// The outputs of a row that see the same taps: every one forward, every stride-th of the input gradient.
template <int Width>
struct Phase {
  Runs runs;
  const Strip<Width>* strips;

  Phase(const Axis& axis, int64_t phase, const Columns& columns, Run* memory)
      : runs(axis, phase, columns, memory), strips(strips_of<Width>(runs)) {
    if (strips) return;
    runs = Runs(axis, phase, columns, memory, 1);
    strips = ::strips<Width, 1, 0>(typename MakeSequence<kStrip>::type{});
  }
};

// Everything about one pass that makes an image, prepared once a call.
template <int Width>
class ImagePass {
 public:
  explicit ImagePass(const GwJob& job) : lanes_(job) {
    const Lanes<Width>& l = lanes_;
    phases_count_ = l.horizontal.phases();
    kernel_row_ = l.horizontal.taps * l.in_width * kLanes;
    kernel_block_ = l.vertical.taps * phases_count_ * kernel_row_;
    out_pixel_ = Width ? l.out_channels : l.blocks * kLanes;
    strips_ = divide_up(l.horizontal.count(0), kStrip);
  }

  GwStatus run() {
    const Lanes<Width>& l = lanes_;
    // Some output rows, of several images perhaps; four tasks a thread even out the noise of a shared machine.
    const int64_t rows = l.c.batch * l.vertical.out_size, tasks = minimum(rows, 4 * l.job.executor->threads);
    const int64_t part = l.job.totals ? Gathering::floats(l.out_channels) : 0;
    Scratch scratch;
    float* parts = scratch.take(size_t(tasks * part + floats()));
    if (!parts) return GW_OUT_OF_MEMORY;
    prepare(parts + tasks * part);
    const GwStatus status = try_parallel(*l.job.executor, tasks, [&](int64_t task) {
      Gathering gathering(part ? parts + task * part : nullptr, l.out_channels, !l.transposed);
      return add_rows(rows * task / tasks, rows * (task + 1) / tasks, gathering);
    });
    if (part && status == GW_OK) Gathering::merge(parts, tasks, l.out_channels, !l.transposed, l.job.totals);
    return status;
  }

  // One past the last row of the image that row n of the outputs sees; both are counted through all images.
  int64_t reach(int64_t n) const { return lanes_.reach(lanes_.output_row(n)); }

  RowShape row_shape() const { return lanes_.row_shape(); }

  // What is prepared for all tasks, in so many floats.
  int64_t floats() const { return lanes_.blocks * kernel_block_ + phase_floats() + gather_floats(); }
  void prepare(float* memory) {
    const Lanes<Width>& l = lanes_;
    weights_ = memory;
    phases_ = reinterpret_cast<Phase<Width>*>(memory + l.blocks * kernel_block_);
    auto* items = reinterpret_cast<Run*>(phases_ + phases_count_);
    for (int64_t phase = 0; phase < phases_count_; ++phase)
      phases_[phase] = Phase<Width>(l.horizontal, phase, l.columns, items + phase * l.horizontal.taps);
    gathers_ = reinterpret_cast<Gather*>(memory + l.blocks * kernel_block_ + phase_floats());
    move_in_parallel(*l.job.executor, l.blocks, l.blocks * kernel_block_, [&](int64_t v) { pack(v); });
  }

  // What a task needs of its thread's memory.
  struct Memory {
    float *rows, *line;
    RowRun *runs, **ends;  // of all phases, and where those of a phase end
  };

  int64_t task_floats() const {
    return row_floats() + line_floats() + run_floats() + phases_count_ * int64_t(sizeof(RowRun*) / sizeof(float));
  }
  Memory divide(float* all) const {
    float* others = all + row_floats() + line_floats();
    return {all, all + row_floats(), reinterpret_cast<RowRun*>(others),
            reinterpret_cast<RowRun**>(others + run_floats())};
  }

  // One task's rows of outputs, one after the other, counted through all images.
  class Making {
   public:
    // From row `first` on.
    Making(const ImagePass& pass, const Memory& memory, int64_t first, const RowSource* source = nullptr)
        : pass_(pass), memory_(memory), y_(pass.lanes_.output_row(first)),
          rows_(pass.lanes_.job.a, pass.lanes_.job.reading_of_a(), pass.lanes_.row_shape(), memory.rows,
                pass.lanes_.beginning(y_), source) {}
    // Writes the next row from `position` on; asks meanwhile for what the one after it reads, if that `follows`.
    void next(int64_t position, const Finish& finish, bool follows) {
      pass_.find_runs(y_, rows_, memory_);
      y_ = y_.next();
      const int64_t phases = pass_.phases_count_, runs = memory_.ends[phases - 1] - memory_.runs;
      const int64_t steps = pass_.strips_ * pass_.lanes_.blocks * (kAsksByRun<Width> ? runs : phases);
      rows_.plan(follows ? pass_.lanes_.reach(y_) : 0, steps);
      pass_.row(memory_, position, finish, rows_);
    }

   private:
    const ImagePass& pass_;
    const Memory& memory_;
    OutputRow y_;
    Rows rows_;
  };

 private:
  int64_t phase_floats() const {
    return phases_count_ * int64_t((lanes_.horizontal.taps * sizeof(Run) + sizeof(Phase<Width>)) / sizeof(float));
  }
  int64_t gather_floats() const { return lanes_.blocks * int64_t(sizeof(Gather) / sizeof(float)); }
  int64_t row_floats() const {
    const RowShape shape = lanes_.row_shape();
    return round_up(shape.slots * shape.floats, kLanes);
  }
  int64_t line_floats() const {
    return round_up(minimum(kStrip * phases_count_, lanes_.horizontal.out_size) * out_pixel_, kLanes);
  }
  int64_t run_floats() const {
    return phases_count_ * lanes_.vertical.taps * lanes_.horizontal.taps * int64_t(sizeof(RowRun) / sizeof(float));
  }

  // Lays out the weights of a vector of output channels: [phase][kernel row][run][channel of the group][tap][lane].
  void pack(int64_t v) const {
    const Lanes<Width>& l = lanes_;
    gathers_[v] = l.gather(v);
    for (int64_t phase = 0; phase < phases_count_; ++phase) {
      const Runs& columns = phases_[phase].runs;
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

  // The output rows [first, last), counted through all images.
  bool add_rows(int64_t first, int64_t last, Gathering& gathering) const {
    const Lanes<Width>& l = lanes_;
    Scratch scratch;
    float* all = scratch.take(size_t(task_floats()));
    if (!all) return false;
    const Memory memory = divide(all);
    const int64_t out_row = l.horizontal.out_size * l.out_channels;
    const Finish finish(l.job, l.c.batch * l.vertical.out_size * out_row, Finish::kLine, gathering);
    Making making(*this, memory, first);
    for (int64_t n = first; n < last; ++n) {
      making.next(n * out_row, finish, n + 1 < last);
      finish.count(l.horizontal.out_size);
    }
    return true;
  }

  // The runs by which an output row sees its image, in every phase.
  void find_runs(const OutputRow& row, Rows& rows, const Memory& memory) const {
    const Lanes<Width>& l = lanes_;
    const int64_t phase_y = row.y % l.vertical.phases();
    const int64_t low = row.y / l.vertical.phases() * l.vertical.step();
    RowRun* to = memory.runs;
    for (int64_t phase = 0; phase < phases_count_; ++phase) {
      const Runs& columns = phases_[phase].runs;
      for (int64_t ky = 0, offset; ky < l.vertical.taps; ++ky) {
        if (!l.vertical.sees(phase_y, ky, &offset) || low + offset < 0 || low + offset >= l.vertical.in_size) continue;
        const float* x = rows.row(row.image * l.vertical.in_size + low + offset);
        const float* w = weights_ + (phase * l.vertical.taps + ky) * kernel_row_;
        for (int64_t r = 0; r < columns.count; ++r) {
          const Run& run = columns.runs[r];
          *to++ = {x + run.offset * l.pixel, w + run.slot * l.in_width * kLanes};
        }
      }
      memory.ends[phase] = to;
    }
  }

  // One output row, strip by strip; a strip's pixels of all phases are neighbours.
  void row(const Memory& memory, int64_t position, const Finish& finish, Rows& rows) const {
    const Lanes<Width>& l = lanes_;
    const int64_t outputs = l.horizontal.count(0), distance = phases_count_ * out_pixel_;
    for (int64_t i = 0, j = 0, size; i < strips_; ++i, j += size) {
      size = (outputs - j) / (strips_ - i);
      const int64_t pixels = minimum(size * phases_count_, l.horizontal.out_size - j * phases_count_);
      const int64_t at = position + j * phases_count_ * l.out_channels;
      float* direct = finish.direct(at, out_pixel_ - l.out_channels);
      float* to = direct ? direct : memory.line;
      const float* beside = finish.beside(at + pixels * l.out_channels);
      const RowRun* runs = memory.runs;
      for (int64_t phase = 0; phase < phases_count_; ++phase) {
        const int64_t left = minimum(size, l.horizontal.count(phase) - j);
        const RowRun* end = memory.ends[phase];
        if (left > 0)
          strip_row(phase,
                    {rows, runs, end, j * l.horizontal.step() * l.pixel, 0, l.horizontal.step() * l.pixel,
                     to + phase * out_pixel_, distance},
                    left, beside);
        runs = end;
        if (beside) beside += left * l.blocks * kLanes;
      }
      if (!direct) finish.write_pixels(memory.line, out_pixel_, at, pixels, l.out_channels);
    }
  }

  // All channels of a strip. `beside`: what the end of the next one reads, asked for meanwhile; or null.
  void strip_row(int64_t phase, const Place& strip, int64_t size, const float* beside) const {
    const Lanes<Width>& l = lanes_;
    const auto function = phases_[phase].strips[size - 1];
    Place place = strip;
    for (int64_t v = 0; v < l.blocks; ++v) {
      for (int64_t i = 0; beside && i < size * kLanes; i += Finish::kLine)
        __builtin_prefetch(beside + v * size * kLanes + i, 0, 2);
      place.x_offset = strip.x_offset + l.start(v);
      place.w_offset = v * kernel_block_;
      place.to = strip.to + l.channel(v);
      function(l, gathers_[v], place);
    }
  }

  Lanes<Width> lanes_;
  int64_t phases_count_, kernel_row_, kernel_block_, out_pixel_, strips_;
  float* weights_ = nullptr;
  Phase<Width>* phases_ = nullptr;
  Gather* gathers_ = nullptr;
};

}  // namespace

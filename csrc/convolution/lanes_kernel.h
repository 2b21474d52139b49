// The pass that makes a kernel: its gradient.
#pragma once
#include "lanes_image.h"

namespace {

// Columns whose gradients are in registers at once, beside the sums.
template <int Width>
constexpr int kColumns = GW_REGISTERS >= 32 ? 6
                         : Width == 1       ? 2
                                            : 1;
// Pixels of the outputs' gradient whose sums stay in registers.
constexpr int64_t kLongestStretch = 28;

// Adds input times gradient to sums[row][channel][tap]. Column i of the rows x meets, through tap k, the gradient at
// i + Taps - 1 - k.
template <int Width, int Taps, int Rows, int Channels, int First>
struct Accumulate {
  const float* x[Rows];
  const float* gradient;
  int64_t step, gradient_step;  // between two columns
  const Gather& gather;

  template <int Channel>
  GW_INLINE Vector input(const float* from) const {
    if constexpr (Width != 0) return input_vector<Width, First + Channel>(from);
    else return gather(from);
  }
  template <int Columns, int Channel = 0>
  GW_INLINE void channels(Vector* sums, const float* from, const Vector* gradients) const {
    const Vector value = input<Channel>(from);
#pragma GCC unroll 4
    for (int k = 0; k < Taps; ++k) sums[Channel * Taps + k] += value * gradients[Taps - 1 - k];
    if constexpr (Channel + 1 < Channels) channels<Columns, Channel + 1>(sums, from, gradients);
  }
  template <int Columns>
  GW_INLINE void columns(Vector* sums, int64_t first) const {
    Vector gradients[Columns + Taps - 1];
#pragma GCC unroll 16
    for (int i = 0; i < Columns + Taps - 1; ++i) gradients[i] = kept(load(gradient + (first + i) * gradient_step));
#pragma GCC unroll 8
    for (int i = 0; i < Columns; ++i) {
#pragma GCC unroll 4
      for (int row = 0; row < Rows; ++row)
        channels<Columns>(sums + row * Channels * Taps, x[row] + (first + i) * step, gradients + i);
    }
  }
};

// The same over `count` columns, to the totals of each row.
template <int Width, int Taps, int Rows, int Channels, int First>
__attribute__((noinline)) void accumulate(const float* const* x, int64_t step, const Gather& gather,
                                          const float* gradient, int64_t gradient_step, int64_t count, float* totals,
                                          int64_t row_distance) {
  Accumulate<Width, Taps, Rows, Channels, First> add{{}, gradient, step, gradient_step, gather};
  Vector sums[Rows * Channels * Taps];
#pragma GCC unroll 4
  for (int row = 0; row < Rows; ++row) add.x[row] = x[row];
#pragma GCC unroll 32
  for (int i = 0; i < Rows * Channels * Taps; ++i)
    sums[i] = load(totals + i / (Channels * Taps) * row_distance + i % (Channels * Taps) * kLanes);
  int64_t i = 0;
  for (; i + kColumns<Width> <= count; i += kColumns<Width>) add.template columns<kColumns<Width>>(sums, i);
  for (; i < count; ++i) add.template columns<1>(sums, i);
#pragma GCC unroll 32
  for (int n = 0; n < Rows * Channels * Taps; ++n)
    store(totals + n / (Channels * Taps) * row_distance + n % (Channels * Taps) * kLanes, sums[n]);
}

template <int Width>
class KernelPass {
 public:
  explicit KernelPass(const GwJob& job) : lanes_(job) {
    const Lanes<Width>& l = lanes_;
    total_row_ = l.horizontal.taps * l.in_width * kLanes;
    total_block_ = l.vertical.taps * total_row_;
    gradient_pixel_ = pitch(l.out_channels);
  }

  GwStatus run() {
    const Lanes<Width>& l = lanes_;
    const int64_t rows = l.c.batch * l.vertical.out_size;
    // A part of the rows has sums of its own; the parts are added in order, so that the bits do not depend on timing.
    const int64_t parts = maximum(1, minimum(rows, 4 * l.job.executor->threads));
    const int64_t gather_floats = l.blocks * int64_t(sizeof(Gather) / sizeof(float));
    const int64_t run_floats = l.horizontal.taps * int64_t(sizeof(Run) / sizeof(float));
    const int64_t part_floats = l.blocks * total_block_;
    Scratch scratch;
    float* memory = scratch.take(size_t(parts * part_floats + gather_floats + run_floats));
    if (!memory) return GW_OUT_OF_MEMORY;
    gathers_ = reinterpret_cast<Gather*>(memory + parts * part_floats);
    for (int64_t v = 0; v < l.blocks; ++v) gathers_[v] = l.gather(v);
    const Runs columns(l.horizontal, 0, l.columns,
                       reinterpret_cast<Run*>(memory + parts * part_floats + gather_floats));
    columns_ = &columns;
    const GwStatus status = try_parallel(*l.job.executor, parts, [&](int64_t part) {
      return add_rows(rows * part / parts, rows * (part + 1) / parts, memory + part * part_floats);
    });
    if (status != GW_OK) return status;
    move_in_parallel(*l.job.executor, l.blocks, parts * part_floats,
                     [&](int64_t v) { add_parts(v, memory, parts, part_floats); });
    return GW_OK;
  }

 private:
  // Rows of the kernel whose sums are in registers at once, and channels: as many as leave room for the rest.
  static constexpr int kRows = Width == 1 || (Width == 2 && GW_REGISTERS >= 32) ? 3 : 1;
  static constexpr int kFittingChannels = 4;
  static constexpr int kChunk = Width == 0 ? 1 : Width < kFittingChannels ? Width : kFittingChannels;
  // Zeros on both sides of the copied gradient: what a run's taps see beyond the row.
  static constexpr int64_t kMargin = kLongestRun - 1;

  // The rows of the image that an output row sees through neighbouring rows of the kernel, and the rows that are asked
  // for meanwhile.
  struct RowsSeen {
    const float** x;
    int64_t first, count;
    Rows &inputs, &gradients;

    GW_INLINE void ask() const {
      inputs.step();
      gradients.step();
    }
  };

  // A row of the outputs' gradient, copied with zeros on both sides.
  RowShape gradient_shape() const {
    const Lanes<Width>& l = lanes_;
    const int64_t width = l.horizontal.out_size, floats = (width + 2 * kMargin) * gradient_pixel_;
    return {width, l.out_channels, 0, width, gradient_pixel_, kMargin * gradient_pixel_, floats, 1};
  }

  bool add_rows(int64_t first, int64_t last, float* totals) const {
    const Lanes<Width>& l = lanes_;
    const RowShape shape = l.row_shape(), gradient_rows = gradient_shape();
    const int64_t row_floats = round_up(shape.slots * shape.floats, kLanes);
    const int64_t gradient_floats = round_up(gradient_rows.slots * gradient_rows.floats, kLanes);
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    Scratch scratch;
    float* memory = scratch.take(size_t(row_floats + gradient_floats + l.vertical.taps * words));
    if (!memory) return false;
    auto** x = reinterpret_cast<const float**>(memory + row_floats + gradient_floats);
    __builtin_memset(totals, 0, size_t(l.blocks * total_block_) * sizeof(float));
    const Axis& axis = l.vertical;
    OutputRow y = l.output_row(first);
    Rows inputs(l.job.a, l.job.reading_of_a(), shape, memory, l.beginning(y));
    Rows gradients(l.job.b, l.job.reading_of_b(), gradient_rows, memory + row_floats, first);
    const int64_t turns = Width ? Width / kChunk : l.in_width;  // for all channels of a group
    const int64_t stretches = divide_up(l.horizontal.out_size, kLongestStretch);
    for (int64_t n = first; n < last; ++n) {
      RowsSeen seen{x, 0, 0, inputs, gradients};
      for (int64_t ky = 0; ky < axis.taps; ++ky) {
        const int64_t in_y = y.y * axis.stride - axis.padding + ky * axis.dilation;
        if (in_y < 0 || in_y >= axis.in_size) continue;
        if (seen.count == 0) seen.first = ky;
        x[seen.count++] = inputs.row(y.image * axis.in_size + in_y);
      }
      y = y.next();
      const float* gradient = gradients.row(n) + kMargin * gradient_pixel_;
      const int64_t steps = stretches * l.blocks * columns_->count * divide_up(seen.count, kRows) * turns;
      inputs.plan(n + 1 < last ? l.reach(y) : 0, steps);
      gradients.plan(minimum(n + 2, last), steps);
      for (int64_t i = 0, j = 0, pixels; i < stretches; ++i, j += pixels) {
        pixels = (l.horizontal.out_size - j) / (stretches - i);
        for (int64_t v = 0; v < l.blocks; ++v) {
          add_block(v, seen, gradient + j * gradient_pixel_, j, pixels, totals + v * total_block_);
        }
      }
    }
    return true;
  }

  // All taps and channels of one vector of output channels, over the outputs [first, first + pixels) of a row. Totals
  // stand as [kernel row][run][channel][tap][lane].
  void add_block(int64_t v, const RowsSeen& rows, const float* gradients, int64_t first, int64_t pixels,
                 float* totals) const {
    const Lanes<Width>& l = lanes_;
    const int64_t start = l.start(v) + (Width ? 0 : gathers_[v].first);
    for (int64_t r = 0; r < columns_->count; ++r) {
      const Run& run = columns_->runs[r];
      // Columns, counted in steps from the run's first: the stretch's and, after the row's last pixel, the later taps'.
      const int64_t columns = pixels + (first + pixels == l.horizontal.out_size ? run.taps - 1 : 0);
      const float* gradient = gradients - (run.taps - 1) * gradient_pixel_ + l.channel(v);
      const int64_t column = (run.offset + first * columns_->step) * l.pixel + start;
      float* to = totals + rows.first * total_row_ + run.slot * l.in_width * kLanes;
      for (int64_t row = 0; row < rows.count;) {
        const int64_t left = rows.count - row;
        const float* x[kRows];
        const int64_t together = minimum(left, kRows);
        for (int64_t i = 0; i < together; ++i) x[i] = rows.x[row + i] + column;
        const Work work{rows, x, v, gradient, columns, to + row * total_row_};
        if (together == 1) add_taps<1>(run.taps, work);
        else if (together == 2) add_taps<(kRows < 2 ? kRows : 2)>(run.taps, work);
        else add_taps<kRows>(run.taps, work);
        row += together;
      }
    }
  }

  struct Work {
    const RowsSeen& rows;
    const float** x;
    int64_t v;
    const float* gradient;
    int64_t columns;
    float* totals;
  };

  template <int RowCount>
  void add_taps(int64_t taps, const Work& work) const {
    if (taps == 3) add_channels<3, RowCount>(work);
    else if (taps == 2) add_channels<2, RowCount>(work);
    else add_channels<1, RowCount>(work);
  }
  template <int Taps, int RowCount, int First = 0>
  void add_channels(const Work& work) const {
    const int64_t step = columns_->step * lanes_.pixel, channels = Width ? 1 : lanes_.in_width;
    for (int64_t i = 0; i < channels; ++i) {
      work.rows.ask();
      accumulate<Width, Taps, RowCount, kChunk, First>(work.x, step, gathers_[work.v], work.gradient, gradient_pixel_,
                                                       work.columns, work.totals + (First + i) * Taps * kLanes,
                                                       total_row_);
      if (Width == 0) ++work.x[0];
    }
    if constexpr (First + kChunk < Width) add_channels<Taps, RowCount, First + kChunk>(work);
  }

  void add_parts(int64_t v, const float* memory, int64_t parts, int64_t part_floats) const {
    const Lanes<Width>& l = lanes_;
    // The vector before has written what the last one repeats.
    const int64_t repeated = v * kLanes - l.channel(v),
                  count = minimum(kLanes, l.out_channels - l.channel(v)) - repeated;
    for (int64_t ky = 0; ky < l.vertical.taps; ++ky) {
      const float* from = memory + v * total_block_ + ky * total_row_;
      for (int64_t r = 0; r < columns_->count; ++r) {
        const Run& run = columns_->runs[r];
        for (int64_t i = 0; i < l.in_width; ++i)
          for (int64_t k = 0; k < run.taps; ++k, from += kLanes) {
            Vector sum{};
            for (int64_t part = 0; part < parts; ++part) sum += load(from + part * part_floats);
            const int64_t tap = ky * l.horizontal.taps + run.tap + k * run.tap_step;
            float* to = l.job.out + (tap * l.in_width + i) * l.out_channels + v * kLanes;
            if (count == kLanes) store(to, sum);
            else __builtin_memcpy(to, reinterpret_cast<const float*>(&sum) + repeated, size_t(count) * sizeof(float));
          }
      }
    }
  }

  Lanes<Width> lanes_;
  int64_t total_row_, total_block_, gradient_pixel_;
  const Runs* columns_ = nullptr;
  Gather* gathers_ = nullptr;
};

template <int Width>
GwStatus run_lanes(const GwJob& job) {
  return job.pass == GW_KERNEL_GRADIENT ? KernelPass<Width>(job).run() : ImagePass<Width>(job).run();
}

}  // namespace

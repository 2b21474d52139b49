// The taps that one phase of an axis sees, cut into runs of neighbours.
#pragma once
#include "jobs.h"

namespace {

constexpr int kLongestRun = 3;

// Taps whose reading positions are one step apart, so that what the second sees of an output the first sees of the
// next.
struct Run {
  int64_t tap, tap_step;  // the k-th is tap + k * tap_step
  int64_t offset;         // of the first, for the phase's first output
  int64_t taps;
  int64_t slot;  // taps of earlier runs
};

struct Runs {
  Run* runs;
  int64_t count = 0;
  int64_t step, in_size, out_count;
  int64_t inside_first = 0, inside_last;  // outputs of the phase all of whose taps lie inside the image

  // Positions are counted within `columns`. `memory` holds as many runs as the axis has taps.
  Runs(const Axis& axis, int64_t phase, const Columns& columns, Run* memory)
      : runs(memory), step(axis.step()), in_size(columns.count), out_count(axis.count(phase)), inside_last(out_count) {
    int64_t slot = 0;
    for (int64_t residue = 0; residue < step; ++residue) {
      const int64_t first = count;
      for (int64_t order = 0; order < axis.taps; ++order) {
        // Of the input gradient the last tap reads first.
        const int64_t tap = axis.transposed ? axis.taps - 1 - order : order;
        int64_t offset;
        if (!axis.sees(phase, tap, &offset) || ((offset % step) + step) % step != residue) continue;
        offset -= columns.low;
        if (count > first && extend(runs[count - 1], tap, offset)) {
          ++slot;
          continue;
        }
        runs[count++] = {tap, 0, offset, 1, slot++};
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      inside_first = maximum(inside_first, first_seeing(runs[r], 0));
      inside_last = minimum(inside_last, last_seeing(runs[r], runs[r].taps - 1));
    }
    inside_first = minimum(inside_first, out_count);
    inside_last = maximum(inside_last, inside_first);
  }

  // The outputs [first, last) of the phase that see the image through tap k of a run.
  int64_t first_seeing(const Run& run, int64_t k) const {
    const int64_t before = -(run.offset + k * step);
    return before > 0 ? divide_up(before, step) : 0;
  }
  int64_t last_seeing(const Run& run, int64_t k) const {
    const int64_t inside = in_size - run.offset - k * step;
    return inside > 0 ? minimum(out_count, divide_up(inside, step)) : 0;
  }

 private:
  bool extend(Run& run, int64_t tap, int64_t offset) const {
    if (run.taps == kLongestRun || offset != run.offset + run.taps * step) return false;
    if (run.taps > 1 && tap != run.tap + run.taps * run.tap_step) return false;
    run.tap_step = run.taps == 1 ? tap - run.tap : run.tap_step;
    ++run.taps;
    return true;
  }
};

}  // namespace

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
  int64_t step;

  // Positions are counted within `columns`. `memory` holds as many runs as the axis has taps.
  Runs(const Axis& axis, int64_t phase, const Columns& columns, Run* memory, int64_t longest = kLongestRun)
      : runs(memory), step(axis.step()) {
    int64_t slot = 0;
    for (int64_t residue = 0; residue < step; ++residue) {
      const int64_t first = count;
      for (int64_t order = 0; order < axis.taps; ++order) {
        // Of the input gradient the last tap reads first.
        const int64_t tap = axis.transposed ? axis.taps - 1 - order : order;
        int64_t offset;
        if (!axis.sees(phase, tap, &offset) || ((offset % step) + step) % step != residue) continue;
        offset -= columns.low;
        if (count > first && extend(runs[count - 1], tap, offset, longest)) {
          ++slot;
          continue;
        }
        runs[count++] = {tap, 0, offset, 1, slot++};
      }
    }
  }

 private:
  bool extend(Run& run, int64_t tap, int64_t offset, int64_t longest) const {
    if (run.taps == longest || offset != run.offset + run.taps * step) return false;
    if (run.taps > 1 && tap != run.tap + run.taps * run.tap_step) return false;
    run.tap_step = run.taps == 1 ? tap - run.tap : run.tap_step;
    ++run.taps;
    return true;
  }
};

}  // namespace
